//! QEMU's command line: a machine in which Xen runs.

use crate::process;
use crate::tree::Tree;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

/// Memory for dom0, in MiB. Guests and Xen use the rest of the machine's memory.
const DOM0_MEMORY: u32 = 1024;
/// The minimum of memory, in MiB, for dom0 and a small guest.
const LEAST_MEMORY: u32 = 1536;

/// dom0's address in QEMU's network.
const DOM0_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// The address of a port of dom0, to forward a port of the host to.
pub fn dom0_port(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(DOM0_ADDRESS, port)
}

/// QEMU's processor, without features whose emulation fails under Xen:
/// - `smap`: dom0 crashes at its first IRET, whose frame QEMU 7.2 reads with supervisor rights;
/// - `rdtscp`: its interception in a guest loops forever;
/// - `xsave`, `avx`, `avx2`: dom0's registers are corrupted once a PVH domain has run;
/// - `pku`: Linux guests warn about XSAVE's layout.
const EMULATED_CPU: &str = "max,-smap,-rdtscp,-pku,-xsave,-avx,-avx2";

// The comments on `Accel` and on the fields of `Options` are also the command line's help.

/// QEMU's accelerator
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM if it supports nesting, emulation otherwise
    #[default]
    Auto,
    /// Nested hardware virtualization
    Kvm,
    /// Emulation
    Tcg,
}

/// How to boot a lab
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The machine's folder: its logs, sockets and state
    #[arg(skip)]
    pub folder: PathBuf,
    /// Processors, two at least: dom0 stays on the first
    #[arg(long, default_value_t = SMP, value_parser = clap::value_parser!(u32).range(2..))]
    pub smp: u32,
    /// Memory of the whole machine in MiB; dom0 takes 1024 of it
    #[arg(long, default_value_t = MEMORY)]
    pub memory: u32,
    /// QEMU's accelerator
    #[arg(long, value_enum, default_value_t)]
    pub accel: Accel,
    /// Serves gdb on this loopback port
    #[arg(long, value_name = "PORT")]
    pub gdb: Option<u16>,
    /// The guests' kernel, /root/xensock-kernel in dom0 [default: target/xensock-kernel if it
    /// exists]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The backend daemon's Debian package for dom0 [default: that in target/debian if it exists]
    #[arg(long, value_name = "FILE")]
    pub package: Option<PathBuf>,
    /// Ports forwarded from the start: the host's on loopback, and where it leads
    #[arg(skip)]
    pub forwards: Vec<(u16, SocketAddrV4)>,
    /// Further files for dom0: their path on the host, and in dom0
    #[arg(skip)]
    pub files: Vec<(PathBuf, String)>,
}

const SMP: u32 = 2;
const MEMORY: u32 = 2048;

impl Options {
    /// Two processors, 2 GiB, no additional files in dom0.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            smp: SMP,
            memory: MEMORY,
            accel: Accel::Auto,
            gdb: None,
            kernel: None,
            package: None,
            forwards: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Adds the tree's files for dom0: the guests' configurations, and the kernel and the backend
    /// if they are built and no others are given.
    pub fn add_built(&mut self, tree: &Tree) -> Result<()> {
        for (option, built) in
            [(&mut self.kernel, tree.kernel()), (&mut self.package, tree.package())]
        {
            if option.is_none() && built.is_file() {
                *option = Some(built);
            }
        }
        for (name, path) in tree.guests()? {
            self.files.push((path, format!("/root/{name}.cfg")));
        }
        Ok(())
    }
}

/// QEMU's command line. Paths are relative to the machine's folder: its own path may contain
/// separators of QEMU's options, and be too long for a socket.
pub fn command(options: &Options) -> Result<Command> {
    if options.memory < LEAST_MEMORY {
        bail!("{} MiB are too little: dom0 alone has {DOM0_MEMORY}", options.memory);
    }
    let kvm = match options.accel {
        Accel::Auto => kvm_nests(),
        Accel::Kvm => true,
        Accel::Tcg => false,
    };
    let mut command = process::owned(&["qemu-system-x86_64"]);
    command.args(if kvm {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
    });
    command.args(["-machine", "q35", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none", "-name", "lab"]);
    command.args(["-smp", &options.smp.to_string(), "-m", &options.memory.to_string()]);
    // dom0_max_vcpus=1: while Linux patches its own code, a second one can run a stale
    // translation of the breakpoint that guards the patch, and dom0 panics in `exc_int3` once in a
    // few boots.
    // dom0_vcpus_pin: if domains move between the processors, QEMU (7.2 and 10.0) sometimes resumes
    // a guest with registers of Xen, and the guest ends in a triple fault. Saving and restoring
    // guests met three of these in four minutes, and with a dom0 that stays none in half an hour.
    // sched=credit: the clocks of QEMU's processors drift apart, and Xen's default scheduler,
    // credit2, then leaves dom0 waiting for minutes while both processors are idle.
    // gnttab_max_frames: a domain's configuration may raise its limit above the default of 64.
    // bootscrub=0: QEMU need not allocate memory that nobody uses.
    command.args(["-kernel", "xen", "-append"]).arg(format!(
        "console=com1 com1=115200,8n1 console_timestamps=boot sched=credit gnttab_max_frames=128 \
         bootscrub=0 dom0_mem={DOM0_MEMORY}M,max:{DOM0_MEMORY}M dom0_max_vcpus=1 \
         dom0_vcpus_pin loglvl=all guest_loglvl=all"
    ));
    command.args([
        "-initrd",
        "vmlinuz console=hvc0 earlyprintk=xen loglevel=5 rdinit=/init,dom0.cpio",
    ]);
    command.args(["-serial", "file:serial.log", "-qmp", "unix:qmp.sock,server=on,wait=off"]);
    // Port 0: the system chooses a free port for ssh, which QMP then reports.
    let mut network = String::from("user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22");
    for (host, to) in &options.forwards {
        network += &format!(",hostfwd=tcp:127.0.0.1:{host}-{to}");
    }
    command.arg("-netdev").arg(network).args(["-device", "e1000,netdev=n0,romfile="]);
    if let Some(port) = options.gdb {
        command.arg("-gdb").arg(format!("tcp:127.0.0.1:{port}"));
    }
    command.current_dir(&options.folder);
    Ok(command)
}

/// Whether KVM can run a hypervisor in a guest, which a usable `/dev/kvm` does not prove.
fn kvm_nests() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flag = |wanted: &str| {
        cpu.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| flag == wanted))
    };
    let nested = |module: &str| {
        fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    };
    ((flag("svm") && nested("kvm_amd")) || (flag("vmx") && nested("kvm_intel")))
        && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// A command as a shell's command line.
pub fn printable(command: &Command) -> String {
    let words = command.get_args().skip_while(|word| *word != "qemu-system-x86_64");
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    shlex::try_join(words.iter().map(|word| &**word)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_and_debugger_listen_on_loopback_only() {
        let mut options = Options::new("/nowhere");
        options.accel = Accel::Tcg;
        options.forwards = vec![(8080, dom0_port(80))];
        options.gdb = Some(1234);
        let line = printable(&command(&options).unwrap());
        assert!(line.contains("hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80"), "{line}");
        assert!(line.contains("-gdb tcp:127.0.0.1:1234"), "{line}");
        assert!(line.contains("restrict=on"), "{line}");
        assert!(line.starts_with("qemu-system-x86_64 "), "{line}");
    }

    #[test]
    fn too_little_memory_is_refused() {
        let mut options = Options::new("/nowhere");
        options.memory = 1024;
        assert!(command(&options).is_err());
    }
}
