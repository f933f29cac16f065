//! TLS in the guest: the server with curl, and the client with `openssl s_server` in dom0.

use crate::fixture::{Fixture, build, cases, wait_until};
use crate::service::{Device, HTTP, PATIENCE, Service, pattern};
use anyhow::{Context, Result, bail, ensure};
use lab::{Dom0, Domain, Interface, Tree};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use tls::testing::{Authority, Identity, Key, VALID};

cases![
    https_is_served_to_clients_that_trust_the_root,
    peers_that_send_garbage_or_nothing_end_their_own_connection,
    ten_downloads_over_tls_at_a_time_are_whole_and_leave_nothing_behind,
    a_page_is_fetched_over_https,
    each_fault_of_a_certificate_or_a_clock_has_its_error,
    files_that_no_guest_can_use_are_errors,
    tls_without_random_numbers_is_an_error_and_a_seed_helps,
];

/// The names of all servers here: the forwarded port of the host, dom0's loopback, and its bridge.
const NAMES: &str = "DNS:localhost,IP:127.0.0.1,IP:10.0.2.129";

/// The authority that the guests trust.
fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("an authority", Key::P256))
}

/// The configuration of a guest with TLS, and this file beside its kernel.
fn config(fixture: &Fixture, file: Option<&str>) -> Result<String> {
    let dom0 = fixture.lab()?;
    build("tls")?;
    fixture.copy(&Tree::here().target().join("xensock-kernel-tls"), "/root/xensock-kernel-tls")?;
    let config = HTTP.replace("/root/xensock-kernel", "/root/xensock-kernel-tls");
    let Some(file) = file else { return Ok(config) };
    dom0.write("/root/tls.pem", file)?;
    Ok(config + "ramdisk = \"/root/tls.pem\"\n")
}

/// A guest that serves HTTPS.
fn serve(fixture: &Fixture, words: &str) -> Result<Service> {
    let file = authority().issue(NAMES, Key::P256, VALID).file();
    Service::start(fixture, &config(fixture, Some(&file))?, &format!("http tls=on {words}"), "")
}

/// Runs curl for a path of the guest, with `root` as the only one that it trusts.
fn curl(guest: &Service, root: &Authority, arguments: &[&str], path: &str) -> Result<Vec<u8>> {
    let root = root.root_file();
    let root = root.to_str().context("the path of the root is no text")?;
    let url = format!("https://127.0.0.1:{}{path}", guest.port);
    guest.curl(&[&["--cacert", root][..], arguments, &[&url]].concat())
}

fn https_is_served_to_clients_that_trust_the_root(fixture: &Fixture) -> Result<()> {
    let guest = serve(fixture, "")?;
    let page = String::from_utf8(curl(&guest, authority(), &["--include"], "/")?)?;
    ensure!(page.starts_with("HTTP/1.1 200") && page.contains("<html"), "{page}");
    let body = curl(&guest, authority(), &[], "/bytes/1000003")?;
    ensure!(body == pattern(1_000_003), "{} bytes came", body.len());

    let other = Authority::new("another authority", Key::P256);
    let refused = curl(&guest, &other, &[], "/healthz").unwrap_err().to_string();
    ensure!(refused.contains("certificate"), "{refused}");
    let old = curl(&guest, authority(), &["--tls-max", "1.2"], "/healthz").unwrap_err();
    ensure!(old.to_string().contains("version"), "{old}");
    ensure!(curl(&guest, authority(), &[], "/healthz")? == b"ok\n", "it has ended");
    Ok(())
}

fn peers_that_send_garbage_or_nothing_end_their_own_connection(fixture: &Fixture) -> Result<()> {
    // Those that are silent have the time limit of a handshake.
    let guest = serve(fixture, "")?;
    let half = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let mut clients = Vec::new();
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 20_000], &half, b""] {
        let mut client = guest.connect()?;
        // The guest may have ended the connection before all is sent.
        let _ = client.write_all(bytes);
        clients.push(client);
    }
    ensure!(curl(&guest, authority(), &[], "/healthz")? == b"ok\n", "it does not serve");
    for client in &mut clients {
        let mut alert = Vec::new();
        match client.read_to_end(&mut alert) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => bail!(error),
            _ => ensure!(alert.len() < 100, "{alert:?}"),
        }
    }
    ensure!(metrics(&guest)?["app_connections_failed_total"] == 4, "{:?}", metrics(&guest)?);
    Ok(())
}

/// The guest's numbers, over TLS.
fn metrics(guest: &Service) -> Result<BTreeMap<String, u64>> {
    let text = String::from_utf8(curl(guest, authority(), &[], "/metrics")?)?;
    let number = |line: &str| {
        let (name, value) = line.strip_prefix("xensock_")?.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Ok(text.lines().filter_map(number).collect())
}

fn ten_downloads_over_tls_at_a_time_are_whole_and_leave_nothing_behind(
    fixture: &Fixture,
) -> Result<()> {
    let guest = serve(fixture, "idle-timeout=12")?;
    let download = || -> Result<()> {
        let body = curl(&guest, authority(), &[], "/bytes/300007")?;
        ensure!(body == pattern(300_007), "{} bytes came", body.len());
        Ok(())
    };
    let round = || {
        thread::scope(|scope| {
            let downloads: Vec<_> = (0..10).map(|_| scope.spawn(download)).collect();
            downloads.into_iter().try_for_each(|download| download.join().expect("no panic"))
        })
    };
    // The first connections fill pools.
    round()?;
    let heap = metrics(&guest)?["heap_used_bytes"];
    round()?;
    round()?;
    // Ten connections that leak a record each would show.
    wait_until("the heap is as before", PATIENCE, || {
        Ok(metrics(&guest)?["heap_used_bytes"] < heap + (64 << 10))
    })
}

/// `openssl s_server` in dom0, with the host's program. It ends when it is dropped.
struct OpenSsl<'l> {
    dom0: &'l Dom0,
    process: String,
    port: u16,
}

impl<'l> OpenSsl<'l> {
    fn start(fixture: &'l Fixture, identity: &Identity) -> Result<OpenSsl<'l>> {
        let dom0 = fixture.lab()?;
        dom0.run("mkdir -p /root/openssl")?;
        let needed = Command::new("ldd").arg("/usr/bin/openssl").output()?;
        let needed = String::from_utf8(needed.stdout)?;
        let paths = needed.split_whitespace().filter(|word| word.starts_with('/'));
        let own = paths.filter(|path| path.contains("libssl") || path.contains("libcrypto"));
        for path in own.chain(["/usr/bin/openssl"]) {
            let name = path.rsplit('/').next().unwrap_or(path);
            fixture.copy(path.as_ref(), &format!("/root/openssl/{name}"))?;
        }
        let port = fixture.port()?.inner;
        dom0.write("/root/openssl/server.pem", &identity.file())?;
        let process = dom0.run(&format!(
            "cd /root/openssl && chmod +x openssl && export LD_LIBRARY_PATH=. && \
             (./openssl s_server -www -accept {port} -cert server.pem -key server.pem \
             </dev/null >said-{port} 2>&1 & echo $!)"
        ))?;
        let server = OpenSsl { dom0, process: process.trim().to_owned(), port };
        wait_until("the server accepts", PATIENCE, || {
            Ok(dom0.run(&format!("cat /root/openssl/said-{port}"))?.contains("ACCEPT"))
        })?;
        Ok(server)
    }

    /// What a guest says that fetches the server's page. `settings` are more lines of its
    /// configuration.
    fn fetch(&self, fixture: &Fixture, roots: &str, settings: &str) -> Result<String> {
        self.fetch_over(Device::PvCalls, fixture, roots, settings)
    }

    /// Like [`fetch`](Self::fetch), over this device.
    fn fetch_over(
        &self,
        device: Device,
        fixture: &Fixture,
        roots: &str,
        settings: &str,
    ) -> Result<String> {
        let host = match device {
            Device::Netfront(_) => Interface::DOM0,
            _ => Ipv4Addr::LOCALHOST,
        };
        let words = format!("app=fetch url=https://{host}:{}/ {}", self.port, device.word());
        let config = config(fixture, Some(roots))?;
        fetch(device, fixture, &format!("{config}cmdline = \"{words}\"\n{settings}"))
    }
}

impl Drop for OpenSsl<'_> {
    fn drop(&mut self) {
        let _ = self.dom0.run(&format!("kill {}", self.process));
    }
}

/// What a guest says until it ends.
fn fetch(device: Device, fixture: &Fixture, config: &str) -> Result<String> {
    let guest = device.create(fixture.lab()?, "fetch", config)?;
    guest.wait_for_end(PATIENCE)?;
    guest.console()
}

fn a_page_is_fetched_over_https(fixture: &Fixture) -> Result<()> {
    for (key, device) in [
        (Key::P256, Device::PvCalls),
        (Key::Rsa, Device::PvCalls),
        (Key::P256, Device::Netfront(Interface::FIRST)),
    ] {
        let server = OpenSsl::start(fixture, &authority().issue(NAMES, key, VALID))?;
        let other = Authority::new("another authority", Key::Rsa);
        let roots = format!("{}{}", other.root(), authority().root());
        let console = server.fetch_over(device, fixture, &roots, "")?;
        ensure!(console.contains(": 200 ok, "), "{key:?}, {device:?}: {console}");
    }
    Ok(())
}

fn each_fault_of_a_certificate_or_a_clock_has_its_error(fixture: &Fixture) -> Result<()> {
    let (good, other) = (authority(), Authority::new("another authority", Key::P256));
    let valid = good.issue(NAMES, Key::P256, VALID);
    for (identity, settings, expected) in [
        (
            good.issue(NAMES, Key::P256, (2020, 2021)),
            "",
            "the certificate expired on 2021-01-01 00:00 UTC, and it is 20",
        ),
        (
            good.issue(NAMES, Key::P256, (2098, 2099)),
            "",
            "the certificate is not valid before 2098-01-01 00:00 UTC, and it is 20",
        ),
        (
            good.issue("DNS:elsewhere.example", Key::P256, VALID),
            "",
            "the certificate is not for 127.0.0.1, but for",
        ),
        (other.issue(NAMES, Key::P256, VALID), "", "the certificate's issuer is none of the roots"),
        (
            other.signs_itself("127.0.0.1", Key::P256),
            "",
            "the certificate's issuer is none of the roots, or is the certificate itself",
        ),
        // 31 years before dom0's clock.
        (
            valid,
            "rtc_timeoffset = \"-1000000000\"\n",
            "so no certificate can be checked: set the host's clock",
        ),
    ] {
        let server = OpenSsl::start(fixture, &identity)?;
        let console = server.fetch(fixture, good.root(), settings)?;
        ensure!(console.contains(expected), "no {expected:?}: {console}");
        ensure!(!console.contains("200 ok"), "{console}");
    }
    Ok(())
}

fn files_that_no_guest_can_use_are_errors(fixture: &Fixture) -> Result<()> {
    let good = authority().issue(NAMES, Key::P256, VALID);
    let other = authority().issue(NAMES, Key::P256, VALID);
    let mismatch = format!("{}{}", good.certificate, other.key);
    for (words, file, expected) in [
        ("app=http tls=on", None, "no file has the server's certificate and key"),
        ("app=http tls=on", Some("garbage"), "the file of certificates has none"),
        ("app=http tls=on", Some(&*good.certificate), "has no private key"),
        ("app=http tls=on", Some(&*mismatch), "is not that of the first certificate"),
        ("app=fetch url=https://127.0.0.1:22/", None, "no file has the roots"),
        ("app=fetch url=https://127.0.0.1:22/", Some(&*good.key), "has none: it must be PEM"),
    ] {
        let config = config(fixture, file)?;
        let config = format!("{config}cmdline = \"{words}\"\n");
        let console = fetch(Device::PvCalls, fixture, &config)?;
        ensure!(console.contains(expected), "no {expected:?}: {console}");
    }
    Ok(())
}

fn tls_without_random_numbers_is_an_error_and_a_seed_helps(fixture: &Fixture) -> Result<()> {
    let server = OpenSsl::start(fixture, &authority().issue(NAMES, Key::P256, VALID))?;
    let without = "cpuid = \"host,rdrand=0\"\n";
    let console = server.fetch(fixture, authority().root(), without)?;
    ensure!(console.contains("there are no random numbers"), "{console}");

    let url = format!("app=fetch url=https://127.0.0.1:{}/", server.port);
    let config = config(fixture, Some(authority().root()))?;
    let config = format!("{config}cmdline = \"{url}\"\n{without}");
    let guest = Domain::create_paused(fixture.lab()?, "fetch", &config)?;
    let id = guest.id()?.context("it has ended")?;
    let seed = "5a".repeat(32);
    fixture.lab()?.run(&format!("xenstore-write /local/domain/{id}/data/seed {seed}"))?;
    guest.unpause()?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains(": 200 ok, "), "{console}");
    Ok(())
}
