//! What the daemon may do in dom0: it runs as its own user, and the kernel refuses it the rest.

pub mod operators {
    use crate::fixture::{Fixture, cases};
    use crate::service::Service;
    use anyhow::{Context, Result, ensure};

    cases![
        the_daemon_has_its_own_user_and_no_rights_but_those_that_it_needs,
        the_daemon_can_neither_open_other_files_nor_run_a_program,
    ];

    fn the_daemon_has_its_own_user_and_no_rights_but_those_that_it_needs(
        fixture: &Fixture,
    ) -> Result<()> {
        let dom0 = fixture.lab()?;
        let status = dom0.run("cat /proc/$(cat /run/xensockd.pid)/status")?;
        let uid = dom0.run("id -u xensockd")?;
        let uid = uid.trim();
        let gid = dom0.run("id -g xensockd")?;
        let gid = gid.trim();
        ensure!(uid != "0", "{uid}");
        let field = |name: &str| -> Result<Vec<&str>> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            Ok(line.with_context(|| format!("no {name} in {status}"))?.split_whitespace().collect())
        };
        for (name, expected) in [
            ("Uid:", &[uid; 4] as &[&str]),
            ("Groups:", &[gid]),
            // CAP_NET_BIND_SERVICE.
            ("CapEff:", &["0000000000000400"]),
            ("CapPrm:", &["0000000000000400"]),
            ("CapInh:", &["0000000000000000"]),
            ("CapAmb:", &["0000000000000000"]),
            ("NoNewPrivs:", &["1"]),
            ("Seccomp:", &["2"]),
        ] {
            ensure!(field(name)? == expected, "{name} is not {expected:?} in {status}");
        }
        // So all of its threads are confined.
        let threads = dom0.run(
            "cat /proc/$(cat /run/xensockd.pid)/task/*/status | grep -c '^Seccomp:.2'; \
             ls /proc/$(cat /run/xensockd.pid)/task | wc -l",
        )?;
        let threads: Vec<_> = threads.split_whitespace().collect();
        ensure!(threads[0] == threads[1], "{threads:?}");

        // It serves all the same, also at a port below 1024.
        let guest = Service::http(fixture)?;
        let body = guest.get("/bytes/100000")?.1;
        ensure!(body.len() == 100_000, "{} bytes", body.len());
        Ok(())
    }

    fn the_daemon_can_neither_open_other_files_nor_run_a_program(fixture: &Fixture) -> Result<()> {
        let dom0 = fixture.lab()?;
        // The same program, which gives up its rights by the same code.
        let said = dom0.run("xensockd check-sandbox")?;
        println!("{said}");
        for (what, reason) in [
            ("open /etc/shadow", "Permission denied"),
            ("open /proc/self/mem", "Permission denied"),
            ("write a file", "Permission denied"),
            ("list a folder", "Permission denied"),
            ("run a program", "Operation not permitted"),
            ("become another program", "Operation not permitted"),
            ("signal a process", "Operation not permitted"),
        ] {
            let line = format!("{what}: refused, {reason}");
            ensure!(said.contains(&line), "no {line:?} in {said}");
        }
        for what in ["read the rules", "open a socket", "start a thread"] {
            ensure!(said.contains(&format!("{what}: done")), "{said}");
        }
        // What it refuses is in the kernel's log.
        let log = dom0.run("dmesg")?;
        ensure!(log.contains("comm=\"xensockd\""), "no refused call in {log}");
        Ok(())
    }
}
