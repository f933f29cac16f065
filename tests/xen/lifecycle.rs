//! Guests that start and end, and what they leave in dom0.

use crate::fixture::{Fixture, cases};
use crate::service::{HTTP, Held, PATIENCE, Service, comes_back_to, pattern, rounds, sha256};
use anyhow::{Result, ensure};
use lab::Domain;

cases![
    xl_shutdown_ends_a_guest,
    guests_leave_nothing_in_dom0,
    fetch_prints_status_length_and_digest_and_shuts_down,
    an_invalid_command_line_is_explained_and_ends_the_guest,
    a_port_in_use_is_logged_and_ends_the_guest,
    sigterm_ends_all_threads_of_the_backend_and_its_guests_sockets,
];

/// A configuration with this command line.
fn with(cmdline: &str) -> String {
    format!("{HTTP}\ncmdline = \"{cmdline}\"\n")
}

fn xl_shutdown_ends_a_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    dom0.run(&format!("xl shutdown -w {}", guest.domain.name()))?;
    guest.domain.wait_for_end(PATIENCE)?;
    let console = guest.domain.console()?;
    ensure!(!console.contains("panic"), "{console}");
    Ok(())
}

fn guests_leave_nothing_in_dom0(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let in_dom0 = || -> Result<(Held, String, String)> {
        let nodes = dom0.run("xenstore-ls /local/domain/0/backend 2>/dev/null | wc -l")?;
        let domains = dom0.run("xl list | wc -l")?;
        Ok((Held::by_backend(dom0)?, nodes, domains))
    };
    // The first guest creates folders that remain.
    drop(Service::http(fixture)?);
    let before = in_dom0()?;
    for _ in 0..3 * rounds()? {
        let port = fixture.port()?.inner;
        let guest = Domain::create(dom0, "again", &with(&format!("app=http port={port}")))?;
        guest.wait_for(&format!("serving on port {port}"), PATIENCE)?;
        let got = dom0.run(&format!("wget -q -O - http://127.0.0.1:{port}/healthz"))?;
        ensure!(got == "ok", "{got:?}");
        dom0.run(&format!("xl shutdown -w {}", guest.name()))?;
        guest.wait_for_end(PATIENCE)?;
    }
    comes_back_to(&before, in_dom0)
}

fn fetch_prints_status_length_and_digest_and_shuts_down(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let server = Domain::create(dom0, "server", &with(&format!("app=http port={}", 7999)))?;
    server.wait_for("serving on port 7999", PATIENCE)?;
    let url = "http://127.0.0.1:7999/bytes/1000003";
    let client = Domain::create(dom0, "fetch", &with(&format!("app=fetch url={url}")))?;
    client.wait_for_end(PATIENCE)?;
    let console = client.console()?;
    let digest = sha256(&pattern(1_000_003));
    ensure!(
        console.lines().any(|line| {
            line.contains("200") && line.contains("1000003") && line.contains(&digest)
        }),
        "{console}"
    );
    ensure!(!console.contains("panic"), "{console}");

    let refused = Domain::create(dom0, "fetch", &with("app=fetch url=http://127.0.0.1:1/"))?;
    refused.wait_for_end(PATIENCE)?;
    let console = refused.console()?;
    ensure!(console.contains("refused"), "{console}");
    Ok(())
}

fn an_invalid_command_line_is_explained_and_ends_the_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    for (cmdline, explanation) in [
        ("app=gopher", "gopher"),
        ("app=http port=65536", "65536"),
        ("app=http prot=80", "prot"),
        ("app=fetch", "url"),
    ] {
        let guest = Domain::create(dom0, "wrong", &with(cmdline))?;
        guest.wait_for_end(PATIENCE)?;
        let console = guest.console()?;
        ensure!(console.contains(explanation), "{cmdline}: {console}");
        ensure!(!console.contains("panic"), "{cmdline}: {console}");
    }
    Ok(())
}

fn a_port_in_use_is_logged_and_ends_the_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    // The first guest has the port, so the second one cannot bind it.
    let port = fixture.port()?.inner;
    let first = Domain::create(dom0, "first", &with(&format!("app=http port={port}")))?;
    first.wait_for(&format!("serving on port {port}"), PATIENCE)?;
    let second = Domain::create(dom0, "second", &with(&format!("app=http port={port}")))?;
    second.wait_for_end(PATIENCE)?;
    let console = second.console()?;
    ensure!(console.contains(&format!("port {port}")) && console.contains("in use"), "{console}");
    let got = dom0.run(&format!("wget -q -O - http://127.0.0.1:{port}/healthz"))?;
    ensure!(got == "ok", "{got:?}");
    Ok(())
}

fn sigterm_ends_all_threads_of_the_backend_and_its_guests_sockets(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let ports = [fixture.port()?.inner, fixture.port()?.inner];
    dom0.run("start-xensockd --threads 2")?;
    let guests = ports.map(|port| -> Result<Domain> {
        let guest = Domain::create(dom0, "orphan", &with(&format!("app=http port={port}")))?;
        guest.wait_for(&format!("serving on port {port}"), PATIENCE)?;
        let got = dom0.run(&format!("wget -q -O - http://127.0.0.1:{port}/healthz"))?;
        ensure!(got == "ok", "{got:?}");
        Ok(guest)
    });
    let found = dom0.run("tail -n 20 /var/log/xen/xensockd.log");
    let ended = dom0.run(
        "pid=$(cat /run/xensockd.pid); kill -TERM $pid; tries=0; \
         while kill -0 $pid 2>/dev/null; do tries=$((tries+1)); \
         if [ $tries -gt 300 ]; then echo still there; exit 0; fi; sleep 0.1; done; echo ended",
    )?;
    let [first, second] = ports;
    let listening = dom0.run(&format!("netstat -ltn | grep -cE ':({first}|{second}) ' || true"));
    // The other tests need xensockd, even if this one fails.
    dom0.run("start-xensockd")?;
    ensure!(ended == "ended", "{ended}");
    ensure!(listening? == "0", "the guest's socket outlived the backend");
    let found = found?;
    for (guest, thread) in guests.into_iter().zip(["thread 0", "thread 1"]) {
        let guest = guest?;
        let id = guest.id()?;
        ensure!(id.is_some(), "the guest died with its backend: {}", guest.console()?);
        let line = format!("domain {}, which {thread} serves", id.unwrap_or_default());
        ensure!(found.contains(&line), "no {line:?} in {found}");
    }
    let after = Service::http(fixture)?;
    ensure!(after.get("/healthz")?.0.contains("200"));
    Ok(())
}
