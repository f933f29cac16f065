//! TLS over loopback: the HTTP server with curl and `openssl s_client`, and the fetch app with
//! `openssl s_server`.
#![cfg(feature = "tls")]

mod loopback;

use apps::config::Config;
use apps::{Context, Environment};
use loopback::{HalfClose, Server, connect, is_closed};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tls::testing::{Authority, Identity, Key, VALID};

/// All names of the server in these tests.
const NAMES: &str = "DNS:localhost,IP:127.0.0.1";

fn leaked(file: &str) -> &'static [u8] {
    file.to_owned().leak().as_bytes()
}

/// The HTTP app over TLS.
fn serve(words: &str, identity: &Identity) -> Server {
    let words = format!("app=http tls=on {words}");
    Server::start_with(HalfClose::Works, &words, vec![leaked(&identity.file())])
}

/// Runs curl for a path of the server. It trusts `authority`.
fn curl(server: &Server, authority: &Authority, arguments: &[&str], path: &str) -> Output {
    let root = authority.root_file();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60", "--cacert"]);
    curl.arg(root).args(arguments).arg(format!("https://{}{path}", server.address));
    curl.output().expect("curl is installed")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn curl_gets_pages_and_downloads_over_tls_with_each_kind_of_key() {
    for key in [Key::P256, Key::P384, Key::Rsa] {
        let authority = Authority::new("an authority", key);
        let server = serve("", &authority.issue(NAMES, key, VALID));
        let page = curl(&server, &authority, &["--include"], "/");
        let said = text(&page.stderr);
        assert!(page.status.success(), "{key:?}: {said}");
        assert!(text(&page.stdout).starts_with("HTTP/1.1 200"), "{}", text(&page.stdout));
        let bytes = curl(&server, &authority, &[], "/bytes/3000003").stdout;
        let pattern = (0..3_000_003).map(|at| (at % 251) as u8);
        assert!(pattern.eq(bytes.iter().copied()), "{key:?}: {} bytes", bytes.len());
        let body = vec![7; 1_000_003];
        let path = authority.write("body", &text(&body));
        let upload = format!("@{}", path.display());
        let sum = curl(&server, &authority, &["--data-binary", &upload], "/sum").stdout;
        let expected: String =
            Sha256::digest(&body).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text(&sum).trim(), expected);
    }
}

#[test]
fn a_client_with_another_root_refuses_the_server_which_lives_on() {
    let (authority, other) = (Authority::new("one", Key::P256), Authority::new("two", Key::P256));
    let server = serve("", &authority.issue(NAMES, Key::P256, VALID));
    let refused = curl(&server, &other, &[], "/healthz");
    assert_eq!(refused.status.code(), Some(60), "{}", text(&refused.stderr));
    assert_eq!(curl(&server, &authority, &[], "/healthz").stdout, b"ok\n");
}

#[test]
fn there_is_tls_1_3_alone_with_each_of_its_ciphers_and_groups() {
    let authority = Authority::new("an authority", Key::P256);
    let server = serve("", &authority.issue(NAMES, Key::P256, VALID));
    let get = |arguments: &[&str]| curl(&server, &authority, arguments, "/bytes/100000");
    assert!(!get(&["--tls-max", "1.2"]).status.success());
    for cipher in
        ["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]
    {
        let got = get(&["--tls13-ciphers", cipher]);
        assert_eq!(got.stdout.len(), 100_000, "{cipher}: {}", text(&got.stderr));
    }
    for group in ["X25519", "P-256"] {
        let got = get(&["--curves", group]);
        assert_eq!(got.stdout.len(), 100_000, "{group}: {}", text(&got.stderr));
    }
    assert!(!get(&["--curves", "P-521"]).status.success());
}

#[test]
fn garbage_silence_and_half_a_handshake_end_one_connection_only() {
    let authority = Authority::new("an authority", Key::P256);
    // The silent ones end after ten seconds, which curl has for each handshake, too.
    let server = serve("", &authority.issue(NAMES, Key::P256, VALID));
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let clients: Vec<_> =
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 20_000], &hello, b"", &[0x16, 3, 1]]
            .iter()
            .map(|bytes| {
                let mut client = connect(server.address);
                // The server may have ended the connection before all is sent.
                let _ = client.write_all(bytes);
                client
            })
            .collect();
    assert_eq!(curl(&server, &authority, &[], "/healthz").stdout, b"ok\n");
    for mut client in clients {
        // An alert may come first.
        let mut alert = Vec::new();
        let _ = client.read_to_end(&mut alert);
        assert!(alert.len() < 100 && is_closed(&mut client), "{alert:?}");
    }
    let numbers = text(&curl(&server, &authority, &[], "/metrics").stdout);
    assert!(numbers.contains("xensock_app_connections_failed_total 5\n"), "{numbers}");
}

#[test]
fn a_connection_that_idles_after_its_handshake_is_closed() {
    let authority = Authority::new("an authority", Key::P256);
    let server = serve("idle-timeout=5", &authority.issue(NAMES, Key::P256, VALID));
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &server.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its input stays open, so it ends when the server closes the connection.
    client.wait().unwrap();
}

#[test]
fn a_file_that_no_server_can_use_is_an_error_at_the_start() {
    let authority = Authority::new("an authority", Key::P256);
    let good = authority.issue(NAMES, Key::P256, VALID);
    let other = authority.issue(NAMES, Key::P256, VALID);
    let ed25519 = text(&authority.run(&["genpkey", "-algorithm", "ed25519"]));
    let broken = good.file().replace("MI", "!!");
    for (file, expected) in [
        (String::new(), "no file has the server's certificate and key"),
        ("garbage".into(), "the file of certificates has none"),
        (broken, "it is no valid PEM"),
        (good.key.clone(), "the file of certificates has none"),
        (good.certificate.clone(), "has no private key"),
        (format!("{}{}", good.file(), other.key), "more than one private key"),
        (format!("{}{}", good.certificate, other.key), "is not that of the first certificate"),
        (format!("{}{ed25519}", good.certificate), "none of ECDSA with P-256 or P-384, and RSA"),
    ] {
        let error = run(Some(file), "app=http tls=on", now).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

/// The guest of a client.
struct Guest {
    file: Option<&'static [u8]>,
    clock: fn() -> Option<Duration>,
}

impl Environment for Guest {
    fn files(&self) -> Vec<&'static [u8]> {
        self.file.into_iter().collect()
    }

    fn clock(&self) -> fn() -> Option<Duration> {
        self.clock
    }
}

fn now() -> Option<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok()
}

/// Runs an app to its end.
fn run(file: Option<String>, words: &str, clock: fn() -> Option<Duration>) -> Result<(), String> {
    let config = Config::parse(words.as_bytes()).unwrap();
    let context = Context::new(Guest { file: file.map(|file| leaked(&file)), clock });
    loopback::run(&config, &context).map_err(|error| error.to_string())
}

/// `openssl s_server`, which answers GET with a page about the connection.
struct OpenSsl {
    child: Child,
    port: u16,
}

impl OpenSsl {
    fn start(authority: &Authority, identity: &Identity, arguments: &[&str]) -> OpenSsl {
        let (file, port) = (authority.write("server.pem", &identity.file()), free_port());
        let mut child = Command::new("openssl")
            .args(["s_server", "-www", "-accept", &format!("127.0.0.1:{port}"), "-cert"])
            .arg(&file)
            .arg("-key")
            .arg(&file)
            .arg("-cert_chain")
            .arg(&file)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.find(|line| line.as_ref().is_ok_and(|line| line == "ACCEPT")).unwrap().unwrap();
        OpenSsl { child, port }
    }

    /// Fetches its page.
    fn fetch(&self, roots: &str, clock: fn() -> Option<Duration>) -> Result<(), String> {
        run(Some(roots.into()), &format!("app=fetch url=https://127.0.0.1:{}/", self.port), clock)
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_page_is_fetched_from_servers_with_each_kind_of_key_and_each_cipher() {
    for (key, cipher, group) in [
        (Key::P256, "TLS_CHACHA20_POLY1305_SHA256", "X25519"),
        (Key::P384, "TLS_AES_256_GCM_SHA384", "P-256"),
        (Key::Rsa, "TLS_AES_128_GCM_SHA256", "X25519"),
    ] {
        let authority = Authority::new("an authority", key);
        let identity = authority.issue(NAMES, key, VALID);
        let arguments = ["-ciphersuites", cipher, "-groups", group];
        let server = OpenSsl::start(&authority, &identity, &arguments);
        assert_eq!(server.fetch(authority.root(), now), Ok(()), "{key:?}");
    }
}

#[test]
fn the_root_may_be_one_of_many_and_in_der() {
    let (authority, other) = (Authority::new("one", Key::P256), Authority::new("two", Key::Rsa));
    let identity = authority.issue(NAMES, Key::P256, VALID);
    let server = OpenSsl::start(&authority, &identity, &[]);
    let both = format!("# Roots\n{}\n{}", other.root(), authority.root());
    assert_eq!(server.fetch(&both, now), Ok(()));
    let mut der = other.run(&["x509", "-in", "ca.pem", "-outform", "der"]);
    der.extend(authority.run(&["x509", "-in", "ca.pem", "-outform", "der"]));
    let url = format!("app=fetch url=https://127.0.0.1:{}/", server.port);
    let context = Context::new(Guest { file: Some(der.leak()), clock: now });
    let config = Config::parse(url.as_bytes()).unwrap();
    let ended = loopback::run(&config, &context);
    assert!(ended.is_ok(), "{ended:?}");
}

#[test]
fn what_is_wrong_with_a_certificate_has_an_error_each() {
    let (authority, other) = (Authority::new("one", Key::P256), Authority::new("two", Key::P256));
    type Clock = fn() -> Option<Duration>;
    let cases: [(Identity, Clock, &str); 8] = [
        (
            authority.issue(NAMES, Key::P256, (2020, 2021)),
            now,
            "the certificate expired on 2021-01-01 00:00 UTC, and it is 20",
        ),
        (
            authority.issue(NAMES, Key::P256, (2098, 2099)),
            now,
            "the certificate is not valid before 2098-01-01 00:00 UTC, and it is 20",
        ),
        (
            authority.issue("DNS:elsewhere.example", Key::P256, VALID),
            now,
            "the certificate is not for 127.0.0.1, but for DnsName(\"elsewhere.example\")",
        ),
        (
            other.issue(NAMES, Key::P256, VALID),
            now,
            "the certificate's issuer is none of the roots",
        ),
        (
            other.signs_itself("127.0.0.1", Key::P256),
            now,
            "the certificate's issuer is none of the roots, or is the certificate itself",
        ),
        (
            authority.issue(NAMES, Key::P256, VALID),
            || None,
            "the time is unknown, so no certificate can be checked",
        ),
        (
            authority.issue(NAMES, Key::P256, VALID),
            || Some(Duration::from_secs(86_400)),
            "the clock says 1970-01-02 00:00 UTC, so no certificate can be checked: set the host's",
        ),
        (
            authority.issue(NAMES, Key::P256, (2020, 2030)),
            || Some(Duration::from_secs(1 << 31)),
            "the certificate expired on 2030-01-01 00:00 UTC, and it is 2038-01-19 03:14 UTC",
        ),
    ];
    for (identity, clock, expected) in cases {
        let server = OpenSsl::start(&authority, &identity, &[]);
        let error = server.fetch(authority.root(), clock).unwrap_err();
        assert!(error.contains(expected), "{expected:?}: {error}");
    }
}

#[test]
fn a_server_that_speaks_no_tls_1_3_or_leaves_or_sends_garbage_is_an_error() {
    let authority = Authority::new("an authority", Key::P256);
    let identity = authority.issue(NAMES, Key::P256, VALID);
    let server = OpenSsl::start(&authority, &identity, &["-tls1_2"]);
    let error = server.fetch(authority.root(), now).unwrap_err();
    assert!(error.contains("TLS: the peer refuses the connection"), "{error}");
    for (answer, expected) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), "TLS: the peer speaks no TLS 1.3"),
        (b"", "TLS: the connection ended without the peer's word"),
        (&[0x16, 3, 3, 0x40], "TLS: the connection ended without the peer's word"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.read_exact(&mut [0; 100]).unwrap();
            socket.write_all(answer).unwrap();
            socket.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = socket.read_to_end(&mut Vec::new());
        });
        let url = format!("app=fetch url=https://127.0.0.1:{port}/");
        let error = run(Some(authority.root().into()), &url, now).unwrap_err();
        assert!(error.contains(expected), "{error}");
        server.join().unwrap();
    }
}

#[test]
fn roots_that_are_none_are_an_error() {
    for (file, expected) in [
        (None, "no file has the roots that the guest trusts"),
        (Some("garbage"), "the file of certificates has none"),
        (
            Some("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"),
            "certificate 1 of the file is broken",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let url = format!("app=fetch url=https://{address}/");
        let error = run(file.map(Into::into), &url, now).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
