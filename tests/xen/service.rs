//! A guest that serves on a port, and clients for it.

use crate::fixture::{Fixture, wait_until};
use anyhow::{Context, Result, bail, ensure};
use lab::{Dom0, Domain, Interface, dom0_port};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The example configurations for users.
pub const HTTP: &str = include_str!("../../xensockd/dist/http.cfg");
pub const ECHO: &str = include_str!("../../xensockd/dist/echo.cfg");

/// The time limit for everything that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The device of a guest's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// PV Calls, attached by xl.
    PvCalls,
    /// XenSock draft 1, attached before the guest starts.
    XenSock,
    /// A network interface on dom0's bridge.
    Netfront(Interface),
    /// No device.
    None,
}

impl Device {
    /// Creates a domain from a configuration for PV Calls, but with this device.
    pub fn create(self, dom0: &Dom0, name: &str, config: &str) -> Result<Domain> {
        let without = format!("{config}\npvcalls = []\n");
        match self {
            Device::PvCalls => Domain::create(dom0, name, config),
            Device::None => Domain::create(dom0, name, &without),
            Device::XenSock => {
                let domain = Domain::create_paused(dom0, name, &without)?;
                dom0.run(&format!("attach-sockets {} xensock", domain.name()))?;
                domain.unpause()?;
                Ok(domain)
            }
            Device::Netfront(interface) => {
                let vif = interface.vif();
                // The configuration may replace it.
                Domain::create(dom0, name, &format!("vif = [\"{vif}\"]\n{without}"))
            }
        }
    }

    /// The word of the command line that selects it.
    pub fn word(self) -> &'static str {
        match self {
            Device::Netfront(_) => "stack=netfront",
            _ => "",
        }
    }

    /// The address of a server's port in dom0's network.
    fn place(self, port: u16) -> SocketAddrV4 {
        match self {
            Device::Netfront(interface) => SocketAddrV4::new(interface.address(), port),
            _ => dom0_port(port),
        }
    }
}

/// A domain whose app serves on a port that is forwarded from the host.
pub struct Service {
    pub domain: Domain,
    /// The port on the host's loopback.
    pub port: u16,
    /// The port that the app listens on, in dom0 or in the guest.
    pub inner_port: u16,
}

impl Service {
    /// Starts `app` with a configuration. Options of the command line may follow the app's name.
    /// `settings` are more lines of the configuration; later lines take precedence.
    pub fn start(fixture: &Fixture, config: &str, app: &str, settings: &str) -> Result<Self> {
        Service::start_over(Device::PvCalls, fixture, config, app, settings)
    }

    /// Like [`start`](Service::start), over this device.
    pub fn start_over(
        device: Device,
        fixture: &Fixture,
        config: &str,
        app: &str,
        settings: &str,
    ) -> Result<Self> {
        let ports = fixture.port_at(|port| device.place(port))?;
        let (inner, word) = (ports.inner, device.word());
        let config = format!("{config}\ncmdline = \"app={app} port={inner} {word}\"\n{settings}\n");
        let name = app.split(' ').next().unwrap_or(app);
        let domain = device.create(fixture.lab()?, name, &config)?;
        domain.wait_for(&format!("serving on port {inner}"), PATIENCE)?;
        Ok(Service { domain, port: ports.host, inner_port: inner })
    }

    pub fn http(fixture: &Fixture) -> Result<Self> {
        Service::start(fixture, HTTP, "http", "")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn connect(&self) -> Result<TcpStream> {
        connect(self.port)
    }

    /// Sends a request on a new connection, and returns the status line and the body.
    pub fn get(&self, path: &str) -> Result<(String, Vec<u8>)> {
        let mut stream = self.connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let end = end.with_context(|| format!("{path}: no HTTP answer, {} bytes", answer.len()))?;
        let body = answer.split_off(end + 4);
        let head = String::from_utf8(answer)?;
        Ok((head.lines().next().unwrap_or_default().to_owned(), body))
    }

    /// Runs curl with these arguments and returns its output.
    pub fn curl(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.curl_with_input(arguments, &[])
    }

    /// Sends a body to the guest, which returns its digest.
    pub fn sum(&self, body: &[u8]) -> Result<String> {
        let said = self.curl_with_input(&["--data-binary", "@-", &self.url("/sum")], body)?;
        Ok(String::from_utf8(said)?.trim().to_owned())
    }

    fn curl_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let mut curl = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "300"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let written = curl.stdin.take().context("curl has no input")?.write_all(input);
        let output = curl.wait_with_output()?;
        // If curl ends early, its message explains the failed write.
        if !output.status.success() {
            bail!("curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        written?;
        Ok(output.stdout)
    }

    /// Whether it serves. Until it listens, dom0 refuses and QEMU closes the connection.
    pub fn is_served(&self) -> bool {
        self.get("/healthz").is_ok_and(|(status, _)| status.contains("200"))
    }

    /// The guest's metrics, without their common prefix.
    pub fn metrics(&self) -> Result<BTreeMap<String, u64>> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status.contains("200"), "/metrics: {status}");
        let numbers = String::from_utf8(body)?.lines().filter_map(number).collect();
        Ok(numbers)
    }
}

/// The default of [`rounds`].
const ROUNDS: usize = 2;

/// The number of rounds of a stress test: `SOAK_ROUNDS`, if set.
pub fn rounds() -> Result<usize> {
    match std::env::var("SOAK_ROUNDS") {
        Ok(rounds) => rounds.parse().with_context(|| format!("SOAK_ROUNDS={rounds}")),
        Err(_) => Ok(ROUNDS),
    }
}

/// Four downloads that do not end by themselves.
pub struct Load(Vec<Child>);

impl Load {
    pub fn of(guest: &Service) -> Result<Load> {
        let download = || {
            Command::new("curl")
                .args(["--silent", "--max-time", "300", "--output", "/dev/null"])
                .arg(guest.url("/bytes/10000000000"))
                .stderr(Stdio::null())
                .spawn()
        };
        Ok(Load((0..4).map(|_| download()).collect::<Result<_, _>>()?))
    }

    /// Waits until the downloads have received data.
    pub fn runs(&self, guest: &Service) -> Result<()> {
        let sent = || -> Result<u64> { Ok(guest.metrics()?["socket_sent_bytes_total"]) };
        let start = sent()?;
        wait_until("the downloads run", PATIENCE, || Ok(sent()? > start + 1_000_000))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The resources of a guest's sockets at both ends, without parked rings: their number depends on
/// the largest number of connections so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InUse {
    grants: u64,
    ports: u64,
    backend: Held,
}

impl InUse {
    /// Waits until earlier connections are closed at both ends, and measures.
    pub fn at_rest(guest: &Service, dom0: &Dom0) -> Result<InUse> {
        let mut before = InUse::by(guest, dom0)?;
        comes_back_to(&true, || {
            std::thread::sleep(Duration::from_millis(500));
            let now = InUse::by(guest, dom0)?;
            Ok(now == std::mem::replace(&mut before, now) && guest.metrics()?["sockets_open"] == 1)
        })?;
        Ok(before)
    }

    /// Measures a guest over PV Calls, which must be the only guest. Counts the connection of the
    /// request for the metrics, but not the pages of rings.
    pub fn by(guest: &Service, dom0: &Dom0) -> Result<InUse> {
        let numbers = guest.metrics()?;
        let backend = Held::by_backend(dom0)?;
        let parked = numbers["parked_rings"];
        Ok(InUse {
            grants: numbers["grants_in_use"] - numbers["ring_pages"],
            ports: numbers["ports_open"] - parked,
            backend: Held { mappings: backend.mappings - parked, ..backend },
        })
    }
}

fn number(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.strip_prefix("xensock_")?.split_once(' ')?;
    Some((name.to_owned(), value.parse().ok()?))
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a few bytes on a connection to an echo server, and checks the echo.
pub fn echo(stream: &mut TcpStream) -> Result<()> {
    let (sent, mut got) = (b"echo", [0; 4]);
    stream.write_all(sent)?;
    stream.read_exact(&mut got)?;
    ensure!(got == *sent, "{got:?} came back");
    Ok(())
}

/// Sends bytes and the end of the stream to an echo server on the host's `port`, and checks the
/// echo.
pub fn exchange(port: u16, sent: &[u8]) -> Result<()> {
    let mut stream = connect(port)?;
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        let mut half = stream.try_clone()?;
        let writer = scope.spawn(move || {
            half.write_all(sent)?;
            half.shutdown(std::net::Shutdown::Write)
        });
        stream.read_to_end(&mut got)?;
        writer.join().expect("the writer panicked")
    })?;
    ensure!(got == sent, "{} bytes came back of {}, or others", got.len(), sent.len());
    Ok(())
}

/// The median of some measurements.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The body of `/bytes/N`.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|offset| (offset % 251) as u8).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs the fetch app with `words` on its command line, and returns its console output.
pub fn fetch(dom0: &Dom0, device: Device, words: &str) -> Result<String> {
    let words = format!("app=fetch {words} {}", device.word());
    let client = device.create(dom0, "fetch", &format!("{HTTP}\ncmdline = \"{words}\"\n"))?;
    client.wait_for_end(PATIENCE)?;
    client.console()
}

/// The backend's mapped grants and open files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub mappings: u64,
    pub files: u64,
}

impl Held {
    pub fn by_backend(dom0: &Dom0) -> Result<Held> {
        let pid = "$(cat /run/xensockd.pid)";
        let mappings = dom0.run(&format!("grep -c gntdev /proc/{pid}/maps || true"))?;
        // Files of gntdev are not counted: their number follows from that of the mappings.
        let files = dom0.run(&format!("ls -l /proc/{pid}/fd | grep -vc gntdev"))?;
        Ok(Held { mappings: mappings.parse()?, files: files.parse()? })
    }
}

/// Measures until the result is `wanted`: resources are released a little after the client has seen
/// its connection end.
pub fn comes_back_to<T: PartialEq + std::fmt::Debug>(
    wanted: &T,
    mut measure: impl FnMut() -> Result<T>,
) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let now = measure()?;
        if now == *wanted {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "{now:?} did not come back to {wanted:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}
