//! The benchmarks' client, which runs in dom0 or in a driver domain, and measures the servers of
//! `app=bench`.
//!
//! `client ADDRESS:PORT [KEY=VALUE...] PHASE...`, where PORT is the first of the servers' ports.
//! Each phase prints its figures, one per line: name and value. A phase that fails prints a line
//! `failed PHASE REASON`, and the next one runs.
//!
//! The sockets block and there is one thread, except while bytes go both ways at once: in dom0 a
//! system call and a switch between threads are slow, and the server needs the same processor.

mod datagrams;
mod tls;

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
/// The time limit of one attempt to connect to a guest that is booting.
const ATTEMPT: Duration = Duration::from_millis(20);
/// The pause between two attempts. The backend and the toolstack need dom0's processor.
const PAUSE: Duration = Duration::from_millis(5);
const PIECE: usize = 256 << 10;
const MIB: f64 = 1048576.0;
/// The bytes of a round trip.
const MESSAGE: usize = 64;
/// The kept connections of the second figure of requests.
const KEPT: usize = 64;
/// Further samples before the first measurement, to know what a sample costs.
const CALIBRATIONS: u32 = 3;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let at = words.next().ok_or("usage: client ADDRESS:PORT [KEY=VALUE...] PHASE...")?.parse()?;
    let mut client = Client {
        at,
        mb: 64,
        count: 1000,
        idle: 1000,
        times: 1,
        bare: false,
        domain: String::new(),
        started: String::new(),
        roots: String::new(),
        name: String::new(),
        meter: None,
    };
    for word in words {
        match word.split_once('=') {
            Some(("mb", value)) => client.mb = value.parse()?,
            Some(("count", value)) => client.count = value.parse()?,
            Some(("idle", value)) => client.idle = value.parse()?,
            Some(("times", value)) => client.times = value.parse()?,
            Some(("bare", value)) => client.bare = value == "yes",
            Some(("domain", value)) => client.domain = value.to_owned(),
            Some(("started", value)) => client.started = value.to_owned(),
            Some(("roots", value)) => client.roots = value.to_owned(),
            Some(("name", value)) => client.name = value.to_owned(),
            Some(_) => return Err(format!("no such key: {word}").into()),
            None => {
                if let Err(error) = client.phase(&word) {
                    println!("failed {word} {error}");
                }
            }
        }
    }
    Ok(())
}

/// The servers under test.
struct Client {
    /// The first port.
    at: SocketAddr,
    /// MiB of a transfer, which the source also sends.
    mb: usize,
    /// Round trips, requests and connections of a measurement.
    count: usize,
    /// Connections that stay open.
    idle: usize,
    /// Repetitions of a transfer.
    times: usize,
    /// Whether to do nothing besides the transfers, round trips and requests.
    bare: bool,
    /// The domain of the servers, if they are in a guest.
    domain: String,
    /// What the guest prints on its console when it starts its first program.
    started: String,
    /// The file of the roots that are trusted, if the only server is that of HTTPS.
    roots: String,
    /// What its certificate is for.
    name: String,
    meter: Option<Meter>,
}

impl Client {
    fn phase(&mut self, name: &str) -> Result<()> {
        match name {
            "boot" => self.boot(),
            "out" => self.bulk("out", Client::out),
            "in" => self.bulk("in", Client::inward),
            "both" => self.both(),
            "round-trip" => self.round_trip(),
            "requests" => self.requests(),
            "requests-64" => self.requests_of_many(),
            "connections" => self.connections(),
            "tls-connections" => self.tls_connections(),
            "tls-out" => self.bulk("tls_out", Client::tls_out),
            "idle" => self.measure_idle(),
            "hold" => self.hold(),
            "datagrams" => self.measure_datagrams(),
            "datagram-sizes" => self.datagram_sizes(),
            "longest-datagram" => self.longest_datagram(),
            "datagram-flood" => self.flood_datagrams(),
            _ => Err("there is no such phase".into()),
        }
    }

    fn connect(&self, server: Server) -> Result<TcpStream> {
        ready(TcpStream::connect(self.address(server))?)
    }

    fn address(&self, server: Server) -> SocketAddr {
        SocketAddr::new(self.at.ip(), self.at.port() + server as u16)
    }

    fn meter(&mut self) -> Result<&mut Meter> {
        if self.meter.is_none() {
            let http = match self.roots.is_empty() {
                true => Some(Http::open(self.connect(Server::Http)?)),
                false => None,
            };
            let mut meter = Meter { http, domain: self.domain.clone(), cost: Sample::default() };
            if !self.bare {
                meter.calibrate()?;
            }
            self.meter = Some(meter);
        }
        Ok(self.meter.as_mut().expect("it was just made"))
    }

    /// What has been used up, or nothing if that is not wanted.
    fn sample(&mut self) -> Result<Sample> {
        if self.bare { Ok(Sample::default()) } else { self.meter()?.sample() }
    }

    /// What has been used up since `before`, without the samples themselves.
    fn since(&mut self, before: &Sample) -> Result<Sample> {
        let used = self.sample()?.minus(before);
        let cost = self.meter.as_ref().map_or(Sample::default(), |meter| meter.cost);
        Ok(used.minus(&cost).map(|used| used.max(0.0)))
    }

    /// Starts the paused guest and waits until it echoes a byte.
    fn boot(&mut self) -> Result<()> {
        let start = Instant::now();
        let status = Command::new("xl").args(["unpause", &self.domain]).status()?;
        if !status.success() {
            return Err("xl unpause failed".into());
        }
        println!("unpause_ms {:.1}", start.elapsed().as_secs_f64() * 1e3);
        let log = format!("/var/log/xen/guest-{}.log", self.domain);
        let mut starts = !self.started.is_empty();
        while start.elapsed() < PATIENCE {
            if starts && fs::read_to_string(&log).is_ok_and(|log| log.contains(&self.started)) {
                println!("init_ms {:.1}", start.elapsed().as_secs_f64() * 1e3);
                starts = false;
            }
            if let Ok(stream) = TcpStream::connect_timeout(&self.address(Server::Echo), ATTEMPT) {
                let mut stream = ready(stream)?;
                stream.write_all(&[7])?;
                stream.read_exact(&mut [0])?;
                println!("boot_ms {:.1}", start.elapsed().as_secs_f64() * 1e3);
                return Ok(());
            }
            thread::sleep(PAUSE);
        }
        Err("the guest serves nothing".into())
    }

    fn bulk(&mut self, name: &str, transfer: fn(&mut Client) -> Result<Duration>) -> Result<()> {
        let before = self.sample()?;
        let mut time = Duration::ZERO;
        for _ in 0..self.times {
            time += transfer(self)?;
        }
        let mib = (self.mb * self.times) as f64;
        println!("{name}_mib_per_s {:.3}", mib / time.as_secs_f64());
        let cost = self.since(&before)?;
        cost.print_cpu(name, "s_per_gib", mib / 1024.0);
        cost.print_counts(name, "per_mib", mib);
        Ok(())
    }

    /// Out of the guest. Does not rely on the end of the stream, which not every backend reports.
    fn out(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let mut stream = self.connect(Server::Source)?;
        discard(&mut stream, self.mb << 20)?;
        Ok(start.elapsed())
    }

    /// Into the guest: until its app has received all, by its own counter.
    fn inward(&mut self) -> Result<Duration> {
        let bytes = self.mb << 20;
        let wanted = if self.bare { 0.0 } else { self.meter()?.received()? + bytes as f64 };
        let start = Instant::now();
        let mut stream = self.connect(Server::Sink)?;
        send_zeroes(&mut stream, bytes)?;
        stream.shutdown(Shutdown::Write)?;
        if self.bare {
            // Requests for the counter would be work, too.
            stream.read_exact(&mut [0]).err().ok_or("the sink sends bytes")?;
            return Ok(start.elapsed());
        }
        while self.meter()?.received()? < wanted {
            if start.elapsed() > PATIENCE {
                return Err("some bytes did not arrive".into());
            }
            thread::sleep(PAUSE);
        }
        Ok(start.elapsed())
    }

    /// Into the guest and out again on one connection.
    fn both(&mut self) -> Result<()> {
        let bytes = (self.mb / 2).max(1) << 20;
        let mut stream = self.connect(Server::Echo)?;
        let mut half = stream.try_clone()?;
        let start = Instant::now();
        let writer = thread::spawn(move || send_zeroes(&mut half, bytes));
        discard(&mut stream, bytes)?;
        println!("both_mib_per_s {:.3}", bytes as f64 / MIB / start.elapsed().as_secs_f64());
        writer.join().map_err(|_| "the writer panicked")?
    }

    fn round_trip(&mut self) -> Result<()> {
        let mut stream = self.connect(Server::Echo)?;
        round_trips(&mut stream, 50)?;
        let before = self.sample()?;
        let times = round_trips(&mut stream, self.count)?;
        let cost = self.since(&before)?;
        println!("round_trip_us {:.1}", percentile(&times, 50));
        println!("round_trip_p99_us {:.1}", percentile(&times, 99));
        cost.print_cpu("round_trip", "ms_each", self.count as f64 / 1e3);
        cost.print_counts("round_trip", "each", self.count as f64);
        Ok(())
    }

    fn requests(&mut self) -> Result<()> {
        let mut kept = [Http::open(self.connect(Server::Http)?)];
        let rate = ask(&mut kept, self.count)?;
        println!("requests_per_s {rate:.1}");
        Ok(())
    }

    fn requests_of_many(&mut self) -> Result<()> {
        let open = |_| Ok(Http::open(self.connect(Server::Http)?));
        let mut kept = (0..KEPT).map(open).collect::<Result<Vec<_>>>()?;
        ask(&mut kept, KEPT)?;
        let before = self.sample()?;
        let rate = ask(&mut kept, self.count)?;
        let cost = self.since(&before)?;
        println!("requests_of_{KEPT}_per_s {rate:.1}");
        cost.print_cpu("request", "ms_each", self.count as f64 / 1e3);
        cost.print_counts("request", "each", self.count as f64);
        Ok(())
    }

    /// Connections one after the other: connect, one round trip, close.
    fn connections(&mut self) -> Result<()> {
        let count = (self.count / 2).max(1);
        let mut times = Vec::with_capacity(count);
        let before = self.sample()?;
        let start = Instant::now();
        let mut since = start;
        for _ in 0..count {
            round_trips(&mut self.connect(Server::Echo)?, 1)?;
            let now = Instant::now();
            times.push(now - since);
            since = now;
        }
        println!("connections_per_s {:.1}", count as f64 / start.elapsed().as_secs_f64());
        println!("connection_us {:.1}", percentile(&times, 50));
        let cost = self.since(&before)?;
        cost.print_cpu("connection", "ms_each", count as f64 / 1e3);
        Ok(())
    }

    /// Opens the connections that stay open. Each has echoed once, so the guest has accepted it.
    fn open_idle(&self) -> Result<Vec<TcpStream>> {
        let open = |number| {
            let mut stream = self.connect(Server::Echo)?;
            let echoed = round_trips(&mut stream, 1);
            echoed.map_err(|error| format!("connection {number}: {error}"))?;
            Ok(stream)
        };
        (1..=self.idle).map(open).collect()
    }

    fn measure_idle(&mut self) -> Result<()> {
        let memory = self.meter()?.free()?;
        let dom0 = available()?;
        let start = Instant::now();
        let mut open = self.open_idle()?;
        let each = self.idle as f64;
        println!("idle_connections {each}");
        println!("idle_open_us {:.1}", start.elapsed().as_secs_f64() * 1e6 / each);
        if !self.domain.is_empty() {
            println!("idle_guest_kib {:.2}", (memory - self.meter()?.free()?) / 1024.0 / each);
        }
        println!("idle_dom0_kib {:.2}", (dom0 - available()?) / 1024.0 / each);
        let last = open.last_mut().ok_or("no connection")?;
        let times = round_trips(last, (self.count / 2).max(1))?;
        println!("idle_round_trip_us {:.1}", percentile(&times, 50));
        Ok(())
    }

    /// Opens connections and holds them until the program is ended.
    fn hold(&self) -> Result<()> {
        let open = self.open_idle()?;
        println!("holding {}", open.len());
        loop {
            thread::park();
        }
    }
}

/// The servers, with their ports counted from the first one.
#[derive(Clone, Copy)]
enum Server {
    Sink = 0,
    Echo = 1,
    Source = 2,
    Http = 3,
}

fn ready(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends this many bytes.
fn send_zeroes(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    let piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let some = left.min(PIECE);
        stream.write_all(&piece[..some])?;
        left -= some;
    }
    Ok(())
}

/// Receives this many bytes.
fn discard(stream: &mut TcpStream, bytes: usize) -> Result<()> {
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut piece)? {
            0 => return Err(format!("the stream ended {left} bytes early").into()),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// The time of each of some round trips.
fn round_trips(stream: &mut TcpStream, count: usize) -> Result<Vec<Duration>> {
    let mut message = [7; MESSAGE];
    let mut times = Vec::with_capacity(count);
    let mut since = Instant::now();
    for _ in 0..count {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        let now = Instant::now();
        times.push(now - since);
        since = now;
    }
    Ok(times)
}

/// A percentile, in microseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len() - 1);
    times[at].as_secs_f64() * 1e6
}

/// Sends requests on all connections in turn, and returns the answers per second. Each connection
/// has a request in progress at any time.
fn ask(kept: &mut [Http], count: usize) -> Result<f64> {
    let start = Instant::now();
    for connection in &mut *kept {
        connection.send("/healthz")?;
    }
    let mut answered = 0;
    while answered < count {
        for connection in &mut *kept {
            connection.answer()?;
            connection.send("/healthz")?;
            answered += 1;
        }
    }
    let time = start.elapsed();
    for connection in kept {
        connection.answer()?;
    }
    Ok(answered as f64 / time.as_secs_f64())
}

/// What has been used up since the boot.
#[derive(Clone, Copy, Default)]
struct Sample {
    /// CPU seconds of dom0, if this is dom0.
    dom0: Option<f64>,
    /// CPU seconds of the guest, if there is one.
    guest: Option<f64>,
    /// Hypercalls and notifications of the guest, if it counts them.
    counts: Option<[f64; 2]>,
}

impl Sample {
    fn minus(&self, other: &Sample) -> Sample {
        let pair = |one: Option<f64>, two: Option<f64>| Some(one? - two?);
        let counts = self.counts.zip(other.counts);
        Sample {
            dom0: pair(self.dom0, other.dom0),
            guest: pair(self.guest, other.guest),
            counts: counts.map(|([a, b], [c, d])| [a - c, b - d]),
        }
    }

    fn map(&self, change: impl Fn(f64) -> f64) -> Sample {
        Sample {
            dom0: self.dom0.map(&change),
            guest: self.guest.map(&change),
            counts: self.counts.map(|counts| counts.map(&change)),
        }
    }

    fn print_cpu(&self, name: &str, unit: &str, count: f64) {
        for (domain, used) in [("dom0", self.dom0), ("guest", self.guest)] {
            if let Some(used) = used {
                println!("{name}_{domain}_cpu_{unit} {:.4}", used / count);
            }
        }
    }

    fn print_counts(&self, name: &str, unit: &str, count: f64) {
        if let Some([hypercalls, notifications]) = self.counts {
            println!("{name}_hypercalls_{unit} {:.4}", hypercalls / count);
            println!("{name}_notifications_{unit} {:.4}", notifications / count);
        }
    }
}

/// Takes samples, by `xl list`, which works only in dom0, and by the guest's own numbers.
struct Meter {
    /// The server of the numbers, if there is one without TLS.
    http: Option<Http>,
    domain: String,
    /// What one sample uses up.
    cost: Sample,
}

impl Meter {
    /// Measures what a sample uses up.
    fn calibrate(&mut self) -> Result<()> {
        let first = self.sample()?;
        for _ in 1..CALIBRATIONS {
            self.sample()?;
        }
        let all = self.sample()?.minus(&first);
        self.cost = all.map(|used| used / f64::from(CALIBRATIONS));
        Ok(())
    }

    fn sample(&mut self) -> Result<Sample> {
        let list = Command::new("xl").arg("list").output()?.stdout;
        let list = String::from_utf8(list)?;
        let seconds = |name: &str| {
            let line = list.lines().find(|line| line.split(' ').next() == Some(name))?;
            line.split_whitespace().last()?.parse().ok()
        };
        let numbers = self.numbers()?;
        let count = |name| number(&numbers, name);
        Ok(Sample {
            dom0: seconds("Domain-0"),
            guest: seconds(&self.domain),
            counts: count("hypercalls_total").zip(count("notifications_total")).map(Into::into),
        })
    }

    fn numbers(&mut self) -> Result<String> {
        let Some(http) = &mut self.http else { return Ok(String::new()) };
        http.send("/metrics")?;
        Ok(String::from_utf8(http.answer()?)?)
    }

    /// The bytes that the app has received.
    fn received(&mut self) -> Result<f64> {
        Ok(number(&self.numbers()?, "app_received_bytes_total").ok_or("bytes are not counted")?)
    }

    /// The guest's free memory, in bytes.
    fn free(&mut self) -> Result<f64> {
        let numbers = self.numbers()?;
        let get = |name| number(&numbers, name).ok_or(format!("{name} is missing"));
        if let Ok(available) = get("available_bytes") {
            return Ok(available);
        }
        Ok(get("heap_total_bytes")? - get("heap_used_bytes")? + 4096.0 * get("free_pages")?)
    }
}

fn number(numbers: &str, name: &str) -> Option<f64> {
    let of = |line: &str| {
        let (key, value) = line.strip_prefix("xensock_")?.split_once(' ')?;
        if key == name { value.parse().ok() } else { None }
    };
    numbers.lines().find_map(of)
}

/// dom0's available memory, in bytes.
fn available() -> Result<f64> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no MemAvailable")?;
    Ok(kib.parse::<f64>()? * 1024.0)
}

/// A connection for several requests.
struct Http(BufReader<TcpStream>);

impl Http {
    fn open(stream: TcpStream) -> Http {
        Http(BufReader::with_capacity(16 << 10, stream))
    }

    fn send(&mut self, path: &str) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n");
        Ok(self.0.get_mut().write_all(request.as_bytes())?)
    }

    fn answer(&mut self) -> Result<Vec<u8>> {
        let (mut line, mut len, mut status) = (String::new(), None, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    len = Some(value.parse()?);
                }
                Some(_) => {}
                None if line.trim_end().is_empty() => break,
                None => status = line.trim_end().to_owned(),
            }
        }
        if !status.contains(" 200 ") {
            return Err(format!("the server answers {status:?}").into());
        }
        let mut body = vec![0; len.ok_or("an answer without a length")?];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }
}
