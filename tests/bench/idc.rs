//! IDC beside what else carries bytes between two domains of a host.

use crate::rivals::{PATIENCE, READY};
use crate::{Plan, Turn};
use anyhow::{Context, Result};
use lab::{Dom0, Domain, LinuxServer, Needs, Tree, build_xen_program};

/// The name of the results of libxenvchan.
pub const VCHAN: &str = "vchan";

/// The bytes of a ring in each direction.
const RING: usize = 64 << 10;

/// The settings of the guests.
const GUEST: &str = "type = \"pvh\"\nmemory = 256\nvcpus = 1\ntsc_mode = \"native\"\n";

/// dom0 with the programs of both ends.
pub struct Idc<'a> {
    dom0: &'a Dom0,
    linux: LinuxServer,
}

impl<'a> Idc<'a> {
    /// Brings the programs into dom0.
    pub fn prepare(dom0: &'a Dom0, say: &dyn Fn(&str)) -> Result<Self> {
        let tree = Tree::here();
        let folder = tree.target().join("bench");
        std::fs::create_dir_all(&folder)?;
        let vchan = folder.join("vchan");
        build_xen_program(&tree, &tree.root().join("tests/bench/vchan.c"), &vchan, say)?;
        let linux = LinuxServer::build(&tree, Needs::Neighbours, &vchan, say)?;
        dom0.push(&vchan, "/root/vchan")?;
        dom0.push(&linux.kernel, "/root/vmlinuz")?;
        dom0.push(&linux.initramfs, "/root/vchan.cpio")?;
        Ok(Idc { dom0, linux })
    }

    /// A program in dom0 and one in a Linux guest, over libxenvchan.
    pub fn vchan(&self, plan: Plan) -> Result<Turn> {
        let Plan { mb, count, .. } = plan;
        let cmdline = self.linux.command_line(None, &format!("serve 0 {RING}"));
        let config = format!(
            "{GUEST}kernel = \"/root/vmlinuz\"\nramdisk = \"/root/vchan.cpio\"\n\
             cmdline = \"{cmdline}\"\n"
        );
        let domain = Domain::create(self.dom0, "vchan", &config)?;
        domain.wait_for("vchan serves", READY)?;
        let id = domain.id()?.context("the guest has ended")?;
        let client = format!("/root/vchan visit {id} {mb} {count}");
        let mut turn = Turn::default();
        turn.read(&self.dom0.run_within(&client, PATIENCE)?)?;
        Ok(turn)
    }
}
