//! Linux's own PV Calls frontend, in a guest of Linux, over xensockd.

use crate::fixture::{Fixture, cases, wait_until};
use crate::service::{PATIENCE, comes_back_to, exchange, pattern, sha256};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain, LinuxEnds, Tree};

cases![linux_s_frontend_connects_serves_reconnects_and_leaves_nothing_behind];

const GUEST: &str = r#"
type = "pvh"
kernel = "/tmp/vmlinuz"
ramdisk = "/tmp/linux-guest.cpio"
memory = 160
vcpus = 1
pvcalls = ["backend=0"]
tsc_mode = "native"
"#;

fn linux_s_frontend_connects_serves_reconnects_and_leaves_nothing_behind(
    fixture: &Fixture,
) -> Result<()> {
    let (dom0, tree) = (fixture.lab()?, Tree::here());
    let ends = LinuxEnds::get(&tree, &|text| println!("lab: {text}"))?;
    dom0.push(&tree.cache().join("vmlinuz"), "/tmp/vmlinuz")?;
    dom0.push(&ends.guest(), "/tmp/linux-guest.cpio")?;
    let folder = tempfile::tempdir()?;
    let said = pattern(300_007);
    std::fs::write(folder.path().join("said"), &said)?;
    dom0.push(&folder.path().join("said"), "/tmp/said")?;
    let ports = fixture.port()?;
    let (keeps, echoes, says, serves) =
        (fixture.port()?.inner, fixture.port()?.inner, fixture.port()?.inner, ports.inner);
    let _servers = [
        Server::start(dom0, keeps, "tee /tmp/kept")?,
        Server::start(dom0, echoes, "cat")?,
        Server::start(dom0, says, "cat /tmp/said")?,
    ];

    let steps = [
        "test=refused port=1".to_owned(),
        format!("test=echo port={keeps} bytes=1000003"),
        format!("test=echo port={echoes} bytes=200003 sockets=8"),
        format!("test=eof port={says} bytes={}", said.len()),
        format!("test=serve port={serves} sockets=2"),
        "rebind".to_owned(),
        format!("test=echo port={echoes} bytes=100003 sockets=3"),
    ];
    let run = steps.join(";");
    // The kernel's console has only the steps, warnings and errors.
    let cmdline = format!("cmdline = \"console=hvc0 loglevel=5 rdinit=/init run=\\\"{run}\\\"\"");
    let guest = Domain::create(dom0, "linux-front", &format!("{GUEST}{cmdline}"))?;
    for (number, step) in (1..).zip(&steps) {
        if step.starts_with("test=serve") {
            guest.wait_for(&format!("serving on port {serves}"), PATIENCE)?;
            // The guest waits for the first connection by poll, for the second one by accept.
            for count in 1..=2 {
                exchange(ports.host, &pattern(500_009))
                    .with_context(|| format!("client {count}"))?;
            }
        }
        let end = guest.wait_for(&format!("step {number}: "), PATIENCE)?;
        ensure!(
            end.ends_with(&format!("step {number}: done")),
            "{step}: {end}; {}",
            guest.console()?
        );
    }
    let kept = dom0.run("sha256sum /tmp/kept")?;
    ensure!(kept.starts_with(&sha256(&pattern(1_000_003))), "what came to the server: {kept}");

    guest.wait_for_end(PATIENCE)?;
    comes_back_to(&true, || Ok(counts(dom0)?.iter().all(|count| count.ends_with("=0"))))
        .with_context(|| format!("{:?}", counts(dom0)))
}

/// The resources that xensockd counts as in use.
fn counts(dom0: &Dom0) -> Result<Vec<String>> {
    let line = dom0.run(
        "log=/var/log/xen/xensockd.log; lines() { grep -c ' guests=' $log; }; before=$(lines); \
         kill -USR1 $(cat /run/xensockd.pid); until [ $(lines) -gt $before ]; do sleep 0.1; done; \
         grep ' guests=' $log | tail -n 1",
    )?;
    Ok(line.split(' ').filter(|word| word.contains('=')).map(str::to_owned).collect())
}

/// A server in dom0, which runs a program for each connection, as inetd does.
struct Server<'a> {
    dom0: &'a Dom0,
    id: String,
}

impl<'a> Server<'a> {
    fn start(dom0: &'a Dom0, port: u16, program: &str) -> Result<Self> {
        let id = dom0.run(&format!("nc -ll -p {port} -e {program} >/dev/null 2>&1 & echo $!"))?;
        let server = Server { dom0, id };
        wait_until("nc listens", PATIENCE, || {
            Ok(dom0.exec(&format!("netstat -ltn | grep -q ':{port} '"))?.status == 0)
        })?;
        Ok(server)
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // The machine may have ended.
        let _ = self.dom0.exec(&format!("kill {}", self.id));
    }
}
