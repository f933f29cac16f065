//! What the operator of a host decides about guests: the rules of xensockd.

use crate::fixture::{Fixture, Ports, cases, wait_until};
use crate::images::image;
use crate::service::{ECHO, HTTP, PATIENCE, Service, echo};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};
use std::io::{Read, Write};

cases![
    without_rules_a_guest_is_confined_and_the_log_says_what_to_write,
    a_mapped_port_is_served_until_strict_rules_end_it,
    limits_hold_for_both_devices_of_a_guest_that_is_known_by_its_uuid,
    xensockctl_shows_guests_ends_their_sockets_and_reloads_the_rules,
    what_keeps_the_daemon_from_starting_is_one_line,
];

/// Addresses of dom0, where its ssh server listens, as a guest may write them.
const DOM0: [&str; 11] = [
    "127.0.0.1:22",
    "0.0.0.0:22",
    "10.0.2.15:22",
    "10.0.2.129:22",
    "[::1]:22",
    "[::]:22",
    "[::ffff:127.0.0.1]:22",
    "[::ffff:10.0.2.15]:22",
    "[fd00::1]:22",
    "10.77.0.1:22",
    // All of a loopback interface's network leads to dom0.
    "10.77.0.9:22",
];

/// The daemon with rules of its own. The lab's rules come back when it is dropped.
struct Daemon<'l> {
    dom0: &'l Dom0,
    /// The lines of the log before it was started.
    before: usize,
}

const RULES: &str = "/root/rules.toml";
const LOG: &str = "/var/log/xen/xensockd.log";

impl<'l> Daemon<'l> {
    fn start(dom0: &'l Dom0, rules: &str) -> Result<Self> {
        let before = dom0.run(&format!("cat {LOG} | wc -l"))?.trim().parse()?;
        let daemon = Daemon { dom0, before };
        dom0.write(RULES, rules)?;
        dom0.run(&format!("start-xensockd --config {RULES}"))?;
        Ok(daemon)
    }

    fn log(&self) -> Result<String> {
        self.dom0.run(&format!("tail -n +{} {LOG}", self.before + 1))
    }

    /// Replaces the rules, and returns the line of the log about that.
    fn reload(&self, rules: &str) -> Result<String> {
        let about = |log: &str| -> Vec<String> {
            let reload = |line: &&str| line.contains("reloaded: ") || line.contains("rules stay");
            log.lines().filter(reload).map(String::from).collect()
        };
        let before = about(&self.log()?).len();
        self.dom0.write(RULES, rules)?;
        self.dom0.run("kill -HUP $(cat /run/xensockd.pid)")?;
        let lines = || -> Result<Vec<String>> { Ok(about(&self.log()?)) };
        wait_until("the rules are read again", PATIENCE, || Ok(lines()?.len() > before))?;
        lines()?.pop().context("no line")
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        // The other tests need the lab's rules, even if this one fails.
        if let Err(error) = self.dom0.run("start-xensockd") {
            println!("xensockd is not back: {error:#}");
        }
    }
}

/// Creates a guest that makes calls over both devices. It does not run yet.
fn caller(fixture: &Fixture, calls: &str) -> Result<Domain> {
    let dom0 = fixture.lab()?;
    let guest = Domain::create_paused(dom0, "calls", &image(fixture, "calls", calls)?)?;
    dom0.run(&format!("attach-sockets {} xensock", guest.name()))?;
    Ok(guest)
}

/// Runs such a guest to its end, and returns its console.
fn call(fixture: &Fixture, calls: &str) -> Result<(Domain, String)> {
    let guest = caller(fixture, calls)?;
    let console = finish(&guest)?;
    Ok((guest, console))
}

/// Lets such a guest run to its end, and returns its console.
fn finish(guest: &Domain) -> Result<String> {
    guest.unpause()?;
    guest.wait_for_end(PATIENCE)?;
    guest.console()
}

fn over_both(console: &str, call: &str, outcome: &str) -> Result<()> {
    for device in ["pvcalls", "xensock"] {
        let line = format!("{device}: {call}: {outcome}");
        ensure!(console.contains(&line), "no {line:?} in {console}");
    }
    Ok(())
}

fn without_rules_a_guest_is_confined_and_the_log_says_what_to_write(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    let daemon = Daemon::start(dom0, "")?;
    let port = fixture.port()?.inner;
    let mut calls = format!("bind=0.0.0.0:80 bind=[::]:1023 bind=0.0.0.0:{port}");
    for address in DOM0 {
        calls += &format!(" connect={address}");
    }
    // The daemon follows changes of dom0's addresses.
    dom0.run("ip addr add 10.77.0.1/24 dev lo")?;
    let called = call(fixture, &calls);
    dom0.run("ip addr del 10.77.0.1/24 dev lo")?;
    let (guest, console) = called?;
    over_both(&console, &format!("bind 0.0.0.0:{port}"), "ok")?;
    over_both(&console, "bind 0.0.0.0:80", "EACCES")?;
    over_both(&console, "bind [::]:1023", "EACCES")?;
    for address in DOM0 {
        over_both(&console, &format!("connect {address}"), "EACCES")?;
    }

    // One line for a call, and in it what to write.
    let log = daemon.log()?;
    let remedy = |call: &str| -> Result<String> {
        let start = format!("({}): {call} is refused: ", guest.name());
        let line = log.lines().find(|line| line.contains(&start));
        let line = line.with_context(|| format!("no {start:?} in {log}"))?;
        let (_, rest) = line.split_once("; to allow it, write ").context("no remedy")?;
        let section = format!(" below [guest.{}] in {RULES}", guest.name());
        Ok(rest.strip_suffix(&section).with_context(|| line.to_owned())?.to_owned())
    };
    let (listen, connect) = (remedy("listen at 0.0.0.0:80")?, remedy("connect to 127.0.0.1:22")?);
    let said = daemon.reload(&format!("[guest.\"calls-*\"]\n{listen}\n{connect}\n"))?;
    ensure!(said.contains("reloaded"), "{said}");
    // A mistake changes nothing.
    let said = daemon.reload("[guest.\"calls-*\"]\n\nlisen = []\n")?;
    ensure!(said.contains(&format!("{RULES}:3:1: unknown key `lisen`")), "{said}");
    ensure!(said.contains("nearest known one is `listen`"), "{said}");
    let calls = "bind=0.0.0.0:80 bind=0.0.0.0:81 connect=127.0.0.1:22 connect=0.0.0.0:22 \
                 connect=10.0.2.15:22";
    let (_, console) = call(fixture, calls)?;
    over_both(&console, "bind 0.0.0.0:80", "ok")?;
    over_both(&console, "bind 0.0.0.0:81", "EACCES")?;
    over_both(&console, "connect 127.0.0.1:22", "ok")?;
    over_both(&console, "connect 0.0.0.0:22", "ok")?;
    over_both(&console, "connect 10.0.2.15:22", "EACCES")
}

fn a_mapped_port_is_served_until_strict_rules_end_it(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let Ports { host, inner } = fixture.port()?;
    let mapped = format!("[guest.\"http-*\"]\nlisten = {{ 80 = \"10.0.2.15:{inner}\" }}\n");
    let daemon = Daemon::start(dom0, &mapped)?;
    let config = format!("{HTTP}\ncmdline = \"app=http port=80\"\n");
    let domain = Domain::create(dom0, "http", &config)?;
    domain.wait_for("serving on port 80", PATIENCE)?;
    let guest = Service { domain, port: host, inner_port: 80 };
    let said = guest.curl(&[&guest.url("/healthz")])?;
    ensure!(said.trim_ascii() == b"ok", "{}", String::from_utf8_lossy(&said));
    let listening = || dom0.run("netstat -ltn");
    ensure!(listening()?.contains(&format!("10.0.2.15:{inner} ")), "{}", listening()?);
    ensure!(!listening()?.contains(":80 "), "{}", listening()?);

    const SIZE: usize = 1_000_000_000;
    let mut download = guest.connect()?;
    write!(download, "GET /bytes/{SIZE} HTTP/1.0\r\n\r\n")?;
    download.read_exact(&mut [0; 1000])?;
    // Other rules hold for the next call only, unless they are strict.
    daemon.reload("")?;
    download.read_exact(&mut vec![0; 10_000_000])?;
    daemon.reload("strict = true\n")?;
    let mut rest = Vec::new();
    // An end without an error is fine, too: QEMU stands between.
    let _ = download.read_to_end(&mut rest);
    ensure!(rest.len() < SIZE / 2, "{} bytes came after the rules", rest.len());
    wait_until("nobody listens", PATIENCE, || Ok(!listening()?.contains(&format!(":{inner} "))))?;
    let ended = format!("({}): ended 2 sockets", guest.domain.name());
    ensure!(daemon.log()?.contains(&ended), "no {ended:?} in {}", daemon.log()?);
    Ok(())
}

fn limits_hold_for_both_devices_of_a_guest_that_is_known_by_its_uuid(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    let daemon = Daemon::start(dom0, "[defaults]\nsockets = 3\n")?;
    let guest = caller(fixture, "")?;
    let home = format!("/local/domain/{}", guest.id()?.context("the guest has ended")?);
    let vm = dom0.run(&format!("xenstore-read {home}/vm"))?;
    let uuid = vm.strip_prefix("/vm/").context(vm.clone())?;
    // Only the toolstack can write what the rules are found by.
    let nodes = dom0.run(&format!("xenstore-ls -p {home}"))?;
    for node in ["name = ", "vm = "] {
        let line = nodes.lines().find(|line| line.starts_with(node)).context(node)?;
        ensure!(line.contains("(n0,r"), "{line}");
    }
    daemon.reload(&format!("[defaults]\nsockets = 3\n[guest.\"uuid:{uuid}\"]\nsockets = 7\n"))?;
    let console = finish(&guest)?;
    ensure!(console.contains("7 sockets, then EMFILE"), "{console}");
    let line = format!("({}): a socket is refused: sockets is 7", guest.name());
    ensure!(daemon.log()?.contains(&line), "no {line:?} in {}", daemon.log()?);
    Ok(())
}

fn xensockctl_shows_guests_ends_their_sockets_and_reloads_the_rules(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    let daemon = Daemon::start(dom0, "")?;
    let guest = Service::start(fixture, ECHO, "echo", "")?;
    let (name, port) = (guest.domain.name(), guest.inner_port);
    let (mut stream, mut other) = (guest.connect()?, guest.connect()?);
    echo(&mut stream)?;
    echo(&mut other)?;

    let said = dom0.run("xensockctl status")?;
    ensure!(said.lines().any(|line| line.contains(name) && line.ends_with("  3")), "{said}");
    ensure!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    let said = dom0.run(&format!("xensockctl guest {name}"))?;
    ensure!(said.contains(&format!("0.0.0.0:{port} ")) && said.contains("[defaults]"), "{said}");
    let sockets = || -> Result<Vec<serde_json::Value>> {
        let said = dom0.run(&format!("xensockctl guest {name} --json"))?;
        let guest: serde_json::Value = serde_json::from_str(&said)?;
        Ok(guest["sockets"].as_array().context(said)?.clone())
    };
    let accepted: Vec<_> =
        sockets()?.into_iter().filter(|socket| socket["kind"] == "accept").collect();
    ensure!(accepted.len() == 2, "{accepted:?}");
    for socket in &accepted {
        ensure!(socket["bytes_in"] == 4 && socket["bytes_out"] == 4, "{socket}");
        ensure!(socket["ring"]["in_used"] == 0 && socket["ring"]["out_used"] == 0, "{socket}");
    }

    let first = &accepted[0]["number"];
    dom0.run(&format!("xensockctl close {name} {first}"))?;
    ensure!(!matches!(stream.read(&mut [0]), Ok(1..)), "the connection goes on");
    echo(&mut other)?;
    wait_until("the guest releases it", PATIENCE, || Ok(sockets()?.len() == 2))?;
    for (line, reason) in [
        (format!("xensockctl close {name} {first}"), "has no socket"),
        ("xensockctl close nobody 1".into(), "no guest nobody"),
        ("xensockctl guest nobody".into(), "no guest nobody"),
        ("xensockctl --socket /no/such status".into(), "is xensockd running?"),
    ] {
        let output = dom0.exec(&line)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status == 1 && said.contains(reason), "{line}: {output:?}");
    }

    dom0.write(RULES, "strict = 1")?;
    let output = dom0.exec("xensockctl reload")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status == 1 && said.contains(&format!("{RULES}:1:10: ")), "{output:?}");
    dom0.write(RULES, "[guest.a]")?;
    let said = dom0.run("xensockctl reload")?;
    ensure!(said.contains("1 entries"), "{said}");
    ensure!(!daemon.log()?.contains("TRACE]"), "{}", daemon.log()?);
    dom0.run("xensockctl log-level trace")?;
    // Its device makes steps, each of which is a line of this level.
    dom0.run(&format!("detach-sockets {name}"))?;
    dom0.run("xensockctl log-level info")?;
    ensure!(daemon.log()?.contains("TRACE]"), "{}", daemon.log()?);
    let mode = dom0.run("stat -c '%a %U' /run/xensockd /run/xensockd/control")?;
    ensure!(mode == "750 xensockd\n660 xensockd", "{mode}");
    Ok(())
}

fn what_keeps_the_daemon_from_starting_is_one_line(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    dom0.write(RULES, "[defaults]\nsockets = -1\n")?;
    let away = "mv /dev/xen/gntdev /dev/xen/away";
    let back = "mv /dev/xen/away /dev/xen/gntdev";
    let stop = "kill -STOP $(cat /run/xen/xenstored.pid)";
    let go = "kill -CONT $(cat /run/xen/xenstored.pid)";
    let other = "xensockd --lock-file /run/other/lock --control /run/other/control";
    for (before, line, after, reason) in [
        ("true", "xensockd", "true", "already running as process "),
        ("true", "xensockd --config /root/rules.toml", "true", "/root/rules.toml:2:11: -1 is not"),
        ("true", "xensockd --config /root/none.toml", "true", "/root/none.toml: No such file"),
        (away, other, back, "load the kernel module xen-gntdev"),
        (stop, other, go, "xenstored does not answer: start it"),
    ] {
        let line = format!(
            "{before}; timeout 60 {line} 2>&1 >/dev/null; status=$?; {after}; exit $status"
        );
        let output = dom0.exec(&line)?;
        let text = output.text();
        // Lines of the log begin with the time.
        let mut lines = text.lines().filter(|line| !line.starts_with('['));
        let said = lines.next().unwrap_or_default();
        ensure!(output.status == 1 && lines.next().is_none(), "{line}: {output:?}");
        ensure!(said.starts_with("xensockd: ") && said.contains(reason), "{line}: {output:?}");
    }
    // The daemon that runs is not disturbed.
    dom0.run("xensockctl status").map(drop)
}
