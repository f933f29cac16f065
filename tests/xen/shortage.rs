//! What guests use up in dom0: new work is refused, what is open goes on, and there is room again
//! when something ends.

use crate::fixture::{Fixture, cases, wait_until};
use crate::operators::Daemon;
use crate::service::{ECHO, Held, PATIENCE, Service, echo};
use anyhow::{Context, Result, ensure};
use lab::Dom0;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

cases![
    many_rings_are_mapped_through_files_that_are_opened_in_the_sandbox,
    without_files_connections_wait_and_xensockctl_still_works,
    without_mappings_connections_wait,
    new_addresses_do_not_end_a_daemon_without_files,
];

/// An echo server with memory for some hundreds of connections.
fn server(fixture: &Fixture) -> Result<Service> {
    Service::start(fixture, ECHO, "echo max-connections=1000 idle-timeout=0", "")
}

/// So many connections, each of which echoes.
fn connections(guest: &Service, count: usize) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|_| {
            let mut stream = guest.connect()?;
            echo(&mut stream)?;
            Ok(stream)
        })
        .collect()
}

/// A field of a file in the daemon's folder of `/proc`, in KiB.
fn kib(dom0: &Dom0, file: &str, field: &str) -> Result<i64> {
    let line = dom0.run(&format!("grep '^{field}:' {file}"))?;
    let number = line.split_whitespace().nth(1).with_context(|| line.clone())?;
    Ok(number.parse()?)
}

fn many_rings_are_mapped_through_files_that_are_opened_in_the_sandbox(
    fixture: &Fixture,
) -> Result<()> {
    const MANY: usize = 300;
    let dom0 = fixture.lab()?;
    let _daemon = Daemon::start(dom0, "")?;
    let guest = server(fixture)?;
    let files = || -> Result<usize> {
        let files = dom0.run("ls -l /proc/$(cat /run/xensockd.pid)/fd | grep -c gntdev")?;
        Ok(files.parse()?)
    };
    // The first connections leave what is used again.
    drop(connections(&guest, 20)?);
    let status = "/proc/$(cat /run/xensockd.pid)/status";
    let measure = || -> Result<(i64, i64)> {
        Ok((kib(dom0, status, "RssAnon")?, kib(dom0, "/proc/meminfo", "MemFree")?))
    };
    let (before, (own, free)) = (files()?, measure()?);
    let mut streams = connections(&guest, MANY)?;
    let (own_after, free_after) = measure()?;
    let each = |bytes: i64| bytes * 1024 / MANY as i64;
    println!(
        "each connection takes {} bytes of the daemon and {} of dom0's free memory",
        each(own_after - own),
        each(free - free_after)
    );
    ensure!(each(own_after - own) < 16 << 10, "{own} KiB, then {own_after}");
    // 64 mappings share a file.
    ensure!(files()? >= before + MANY / 64, "{before} files, then {}", files()?);
    streams.iter_mut().try_for_each(echo)?;
    drop(streams);
    // Some rings stay mapped for the next connections.
    wait_until("the others are unmapped", PATIENCE, || {
        Ok(Held::by_backend(dom0)?.mappings < MANY as u64 / 10)
    })
}

/// Opens more connections than there is room for, and checks that the others are served when room
/// is made. `line` is what the daemon's log then says of the guest, which it calls `name`.
pub fn more_than_fit(
    guest: &Service,
    name: &str,
    log: impl Fn() -> Result<String>,
    all: usize,
    line: &str,
) -> Result<()> {
    let mut streams: Vec<_> = (0..all).map(|_| guest.connect()).collect::<Result<_>>()?;
    for stream in &mut streams {
        stream.write_all(b"echo")?;
    }
    let line = format!("{name}: {line}");
    let count = || -> Result<usize> { Ok(log()?.matches(&line).count()) };
    wait_until("the log says so", PATIENCE, || Ok(count()? > 0))?;
    // Those that are served are the first ones, as they are accepted in order.
    let mut waiting = streams.split_off(all / 2);
    for stream in &mut streams {
        stream.read_exact(&mut [0; 4])?;
        echo(stream)?;
    }
    let last = waiting.last_mut().context("no connection")?;
    last.set_read_timeout(Some(Duration::from_millis(500)))?;
    let early = last.read(&mut [0; 4]).map_err(|error| error.kind());
    ensure!(matches!(early, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{early:?}");
    last.set_read_timeout(Some(PATIENCE))?;
    drop(streams);
    for stream in &mut waiting {
        stream.read_exact(&mut [0; 4])?;
        echo(stream)?;
    }
    // The guest tries again every second or so.
    let lines = count()?;
    ensure!(lines <= 12, "{lines} lines in {}", log()?);
    Ok(())
}

fn without_files_connections_wait_and_xensockctl_still_works(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let daemon = Daemon::start_after(dom0, "ulimit -n 150", "")?;
    let guest = server(fixture)?;
    let (name, log) = (format!("({})", guest.domain.name()), || daemon.log());
    more_than_fit(&guest, &name, log, 150, "a socket is refused: the daemon has no more files")?;
    let mut held = connections(&guest, 90)?;
    let _more = (0..20).map(|_| guest.connect()).collect::<Result<Vec<_>>>()?;
    let said = dom0.run("xensockctl status")?;
    ensure!(said.contains(guest.domain.name()), "{said}");
    dom0.run("xensockctl reload")?;
    held.iter_mut().try_for_each(echo)
}

fn without_mappings_connections_wait(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let usual = dom0.run("cat /proc/sys/vm/max_map_count")?;
    let set = |most: &str| dom0.run(&format!("echo {most} >/proc/sys/vm/max_map_count"));
    // Other programs of dom0 have mappings, too.
    set("400")?;
    let done = (|| {
        let daemon = Daemon::start(dom0, "")?;
        let guest = server(fixture)?;
        let (name, log) = (format!("({})", guest.domain.name()), || daemon.log());
        let line = "a ring is refused: no memory or no mapping is left";
        more_than_fit(&guest, &name, log, 240, line)
    })();
    set(&usual)?;
    done
}

fn new_addresses_do_not_end_a_daemon_without_files(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let daemon = Daemon::start(dom0, "")?;
    let files = dom0.run("ls /proc/$(cat /run/xensockd.pid)/fd | wc -l")?;
    drop(daemon);
    let daemon = Daemon::start_after(dom0, &format!("ulimit -n {files}"), "")?;
    dom0.run("ip addr add 10.78.0.1/32 dev lo")?;
    let failed = wait_until("the addresses cannot be read", PATIENCE, || {
        Ok(daemon.log()?.contains("cannot read this domain's addresses: "))
    });
    dom0.run("ip addr del 10.78.0.1/32 dev lo")?;
    failed?;
    std::thread::sleep(Duration::from_secs(1));
    dom0.run("kill -0 $(cat /run/xensockd.pid)").map(drop)
}
