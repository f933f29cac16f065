//! What the operator of a host decides about guests: the rules of xensockd.

use crate::fixture::{Fixture, Ports, cases, wait_until};
use crate::images::image;
use crate::service::{ECHO, HTTP, PATIENCE, Service, echo, rounds};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain, Tree};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};

cases![
    without_rules_a_guest_is_confined_and_the_log_says_what_to_write,
    a_mapped_port_is_served_until_strict_rules_end_it,
    limits_hold_for_both_devices_of_a_guest_that_is_known_by_its_uuid,
    xensockctl_shows_guests_ends_their_sockets_and_reloads_the_rules,
    what_keeps_the_daemon_from_starting_is_one_line,
    clients_that_connect_while_a_daemon_replaces_another_are_all_served,
    prometheus_gets_the_numbers_of_each_guest,
    an_upgrade_of_the_package_keeps_the_rules_and_the_guest_serves_again,
];

/// Addresses of dom0, where its ssh server listens, as a guest may write them.
const DOM0: [&str; 12] = [
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
    // And so does an address of a local route.
    "10.79.0.5:22",
];

/// The daemon with rules of its own. The lab's rules come back when it is dropped.
pub struct Daemon<'l> {
    dom0: &'l Dom0,
    /// The lines of the log before it was started.
    before: usize,
}

const RULES: &str = "/root/rules.toml";
const LOG: &str = "/var/log/xen/xensockd.log";

impl<'l> Daemon<'l> {
    pub fn start(dom0: &'l Dom0, rules: &str) -> Result<Self> {
        Daemon::start_after(dom0, "true", rules)
    }

    /// Starts it in a shell that has carried out a command.
    pub fn start_after(dom0: &'l Dom0, command: &str, rules: &str) -> Result<Self> {
        let before = dom0.run(&format!("cat {LOG} | wc -l"))?.trim().parse()?;
        let daemon = Daemon { dom0, before };
        dom0.write(RULES, rules)?;
        dom0.run(&format!("{command} && start-xensockd --config {RULES}"))?;
        Ok(daemon)
    }

    pub fn log(&self) -> Result<String> {
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
    dom0.run("ip addr add 10.77.0.1/24 dev lo; ip route add local 10.79.0.0/24 dev lo")?;
    let called = call(fixture, &calls);
    dom0.run("ip addr del 10.77.0.1/24 dev lo; ip route del local 10.79.0.0/24 dev lo")?;
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

    // Two connections, and the sockets of its port over TCP and UDP.
    let said = dom0.run("xensockctl status")?;
    ensure!(said.lines().any(|line| line.contains(name) && line.ends_with("  4")), "{said}");
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
    wait_until("the guest releases it", PATIENCE, || Ok(sockets()?.len() == 3))?;
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

/// Clients of a guest, each with a connection and a request of its own, one after the other.
struct Clients<'g> {
    guest: &'g Service,
    served: AtomicUsize,
    stop: AtomicBool,
}

impl Clients<'_> {
    /// Lets clients come while `work` runs, and some more then. All must be served.
    fn all_served(guest: &Service, work: impl FnOnce(&Clients<'_>) -> Result<()>) -> Result<()> {
        let clients = &Clients { guest, served: 0.into(), stop: false.into() };
        std::thread::scope(|scope| {
            let all = scope.spawn(|| clients.run());
            let worked = work(clients).and_then(|()| clients.more());
            clients.stop.store(true, Relaxed);
            // What happened to a client may be the reason for the other error.
            all.join().expect("the clients do not panic").and(worked)
        })
    }

    fn run(&self) -> Result<()> {
        while !self.stop.load(Relaxed) {
            let number = self.served.load(Relaxed);
            let (status, _) =
                self.guest.get("/healthz").with_context(|| format!("client {number}"))?;
            ensure!(status.contains("200"), "client {number}: {status:?}");
            self.served.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Waits until some more were served.
    fn more(&self) -> Result<()> {
        let before = self.served.load(Relaxed);
        wait_until("more clients are served", PATIENCE, || {
            Ok(self.served.load(Relaxed) > before + 5)
        })
    }
}

fn clients_that_connect_while_a_daemon_replaces_another_are_all_served(
    fixture: &Fixture,
) -> Result<()> {
    let dom0 = fixture.lab()?;
    let daemon = Daemon::start(dom0, "")?;
    let guest = Service::http(fixture)?;
    let output = dom0.exec("xensockctl restart")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status == 1 && said.contains("xensockd --replace"), "{output:?}");
    Clients::all_served(&guest, |clients| {
        for round in 1..=rounds()? {
            clients.more()?;
            // A new daemon that cannot serve does not stop the one that does.
            dom0.write(RULES, "[defaults]\nsockets = -1\n")?;
            ensure!(dom0.exec("xensockd --replace --config /root/rules.toml")?.status == 1);
            dom0.write(RULES, "")?;
            dom0.run(&format!("start-xensockd --replace --config {RULES}"))?;
            clients.more()?;
            let log = daemon.log()?;
            for line in ["left 1 listening sockets", "keeps 1 listening sockets"] {
                ensure!(log.matches(line).count() == round, "round {round}: {line:?}: {log}");
            }
        }
        Ok(())
    })?;
    // The guest has it, so it ends with the guest.
    let port = guest.inner_port;
    drop(guest);
    wait_until("nobody listens", PATIENCE, || {
        Ok(dom0.run(&format!("netstat -ltn | grep -c :{port} || true"))? == "0")
    })
}

fn prometheus_gets_the_numbers_of_each_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let port = fixture.port()?.inner;
    let rules = format!("metrics = \"127.0.0.1:{port}\"\n");
    let daemon = Daemon::start(dom0, &rules)?;
    let guest = Service::start(fixture, ECHO, "echo", "")?;
    let mut stream = guest.connect()?;
    echo(&mut stream)?;
    let scrape = format!("wget -q -O - http://127.0.0.1:{port}/metrics");
    let text = dom0.run(&scrape)?;
    let number = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.with_context(|| format!("no {name} in {text}"))?;
        Ok(value.trim().parse()?)
    };
    let id = guest.domain.id()?.context("the guest has ended")?;
    let labels = format!("guest=\"{}\",domain=\"{id}\"", guest.domain.name());
    let own = |name: &str| number(&format!("xensockd_guest_{name}{{{labels}}} "));
    // It listens, is connected, waits with another one, and has one of UDP.
    ensure!(own("sockets")? == 4.0, "{text}");
    ensure!(own("received_bytes_total")? == 4.0 && own("sent_bytes_total")? == 4.0, "{text}");
    ensure!(own("requests_total")? >= 3.0 && own("ring_pages")? >= 1.0, "{text}");
    let accepted = format!("xensockd_guest_connections_total{{{labels},by=\"peer\"}} ");
    ensure!(number(&accepted)? == 1.0, "{text}");
    // The sandbox lets the daemon count its own files.
    let files = number("process_open_fds ")?;
    ensure!(files > 10.0 && files < number("process_max_fds ")?, "{text}");
    ensure!(number("xensockd_guests ")? == 1.0 && number("xensockd_mappings ")? >= 2.0, "{text}");
    let said = dom0.run("xensockctl metrics")?;
    ensure!(said.lines().count() == text.lines().count(), "{said} {text}");

    daemon.reload("")?;
    wait_until("the port closes", PATIENCE, || Ok(dom0.exec(&scrape)?.status != 0))
}

/// The programs of dpkg, which dom0 lacks.
const DPKG: &str = "/root/dpkg";

/// Copies the host's dpkg to dom0, which has the host's C library. busybox's own dpkg is another.
fn install_dpkg(dom0: &Dom0) -> Result<()> {
    let archive = tempfile::NamedTempFile::new()?;
    // Programs and libraries all go into one folder.
    let script = "programs=$(which dpkg dpkg-deb dpkg-split tar) && \
         libraries=$(ldd $programs | sed -n 's/.* => \\(.*\\) (.*/\\1/p' | sort -u) && \
         tar -chf - --transform 's,.*/,,' $programs $libraries 2>/dev/null >$0";
    let status = Command::new("bash").args(["-c", script]).arg(archive.path()).status()?;
    ensure!(status.success(), "cannot pack dpkg");
    dom0.push(archive.path(), "/root/dpkg.tar")?;
    dom0.run(&format!(
        "mkdir -p {DPKG} /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers && \
         tar -C {DPKG} -xf /root/dpkg.tar && touch /var/lib/dpkg/status"
    ))
    .map(drop)
}

/// Installs a package, as an unattended upgrade does.
fn dpkg(dom0: &Dom0, package: &Path) -> Result<String> {
    dom0.push(package, "/root/package.deb")?;
    let output = dom0.exec(&format!(
        "export PATH={DPKG}:$PATH LD_LIBRARY_PATH={DPKG}; {DPKG}/dpkg --force-depends \
         --force-bad-path --force-confdef --force-confold -i /root/package.deb 2>&1"
    ))?;
    ensure!(output.status == 0, "{}", output.text());
    Ok(output.text())
}

/// The package with another version, and other built-in rules in its file.
fn next_version(package: &Path, folder: &Path) -> Result<PathBuf> {
    let (tree, next) = (folder.join("tree"), folder.join("next.deb"));
    let script = "dpkg-deb -R $0 $1 && sed -i 's/^Version: .*/Version: 99-1/' $1/DEBIAN/control && \
         echo '# Another default.' >>$1/etc/xensockd.toml && dpkg-deb -b $1 $2 >/dev/null";
    let mut command = Command::new("bash");
    command.args(["-c", script]).args([package, &tree, &next]);
    ensure!(command.status()?.success(), "cannot make another version");
    Ok(next)
}

fn an_upgrade_of_the_package_keeps_the_rules_and_the_guest_serves_again(
    fixture: &Fixture,
) -> Result<()> {
    const CONFIG: &str = "/etc/xensockd.toml";
    let dom0 = fixture.lab()?;
    let package = Tree::here().package();
    let rules = dom0.run(&format!("cat {CONFIG}"))?;
    // The lab's daemon comes back in the end.
    let daemon = Daemon::start(dom0, "")?;
    install_dpkg(dom0)?;
    dom0.run(&format!("rm {CONFIG}"))?;
    let installed = dpkg(dom0, &package);
    let own = format!("{rules}\n# The operator was here.\n");
    dom0.write(CONFIG, &own)?;
    installed?;

    dom0.run("start-xensockd")?;
    let guest = Service::http(fixture)?;
    let next = tempfile::tempdir()?;
    let next = next_version(&package, next.path())?;
    Clients::all_served(&guest, |clients| {
        clients.more()?;
        let said = dpkg(dom0, &next)?;
        ensure!(said.contains("xensockd --replace"), "it does not say how to go on: {said}");
        dom0.run("start-xensockd --replace")?;
        clients.more()
    })?;
    ensure!(dom0.run(&format!("cat {CONFIG}"))?.trim() == own.trim(), "the rules changed");
    let new = dom0.run(&format!("tail -n 1 {CONFIG}.dpkg-dist"))?;
    ensure!(new == "# Another default.", "{new}");
    let status = dom0.run("grep -A9 'Package: xensockd' /var/lib/dpkg/status")?;
    ensure!(status.contains("Version: 99-1") && status.contains("install ok installed"));
    ensure!(daemon.log()?.contains("keeps 1 listening sockets"), "{}", daemon.log()?);
    dom0.write(CONFIG, &format!("{rules}\n"))
}
