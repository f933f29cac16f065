//! The benchmarks' client, which runs in dom0 and measures a guest's apps.
//!
//! `client http ADDRESS:PORT` or `client echo ADDRESS:PORT` prints a figure per line: name and
//! value.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of each bulk transfer.
const BULK: usize = 40_000_000;
/// The duration of the other measurements.
const WHILE: Duration = Duration::from_secs(3);
/// The number of concurrent connections.
const AT_ONCE: usize = 16;
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: f64 = 1048576.0;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match &words[..] {
        [app, at] if app == "http" => http(at),
        [app, at] if app == "echo" => echo(at),
        _ => Err("usage: client http|echo ADDRESS:PORT".into()),
    }
}

fn connect(at: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn http(at: &str) -> Result<()> {
    // Not measured: first uses are slow.
    let mut first = Connection::open(at)?;
    first.get("/bytes/1000000")?;

    let before = counters(at)?;
    let start = Instant::now();
    let got = first.get(&format!("/bytes/{BULK}"))?.len();
    let out = rate(got, start);
    if got != BULK {
        return Err(format!("{got} bytes came").into());
    }
    println!("out_mib_per_s {out:.3}");
    per_mib("out", &before, &counters(at)?);

    let before = counters(at)?;
    let start = Instant::now();
    first.post("/sum", BULK)?;
    println!("in_mib_per_s {:.3}", rate(BULK, start));
    per_mib("in", &before, &counters(at)?);

    let requests = keep_asking(at)?;
    println!("requests_per_s {requests:.1}");
    let many: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let at = at.to_owned();
            thread::spawn(move || keep_asking(&at))
        })
        .collect();
    let mut sum = 0.0;
    for one in many {
        sum += one.join().map_err(|_| "a thread panicked")??;
    }
    println!("requests_at_once_per_s {sum:.1}");
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < WHILE {
        Connection::open(at)?.get("/healthz")?;
        count += 1;
    }
    println!("connections_per_s {:.1}", f64::from(count) / start.elapsed().as_secs_f64());
    Ok(())
}

/// Sequential requests per second.
fn keep_asking(at: &str) -> Result<f64> {
    let mut connection = Connection::open(at)?;
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < WHILE {
        connection.get("/healthz")?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn echo(at: &str) -> Result<()> {
    let mut stream = connect(at)?;
    let mut buffer = [7; 64];
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < WHILE {
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        count += 1;
    }
    let each = start.elapsed().as_secs_f64() / f64::from(count);
    println!("round_trip_us {:.1}", each * 1e6);

    let mut half = stream.try_clone()?;
    let start = Instant::now();
    let writer = thread::spawn(move || {
        let block = vec![7; 1 << 16];
        for _ in 0..BULK / block.len() {
            half.write_all(&block)?;
        }
        half.shutdown(std::net::Shutdown::Write)
    });
    let mut block = vec![0; 1 << 16];
    let mut got = 0;
    loop {
        match stream.read(&mut block)? {
            0 => break,
            count => got += count,
        }
    }
    writer.join().map_err(|_| "the writer panicked")??;
    println!("echo_mib_per_s {:.3}", rate(got, start));
    Ok(())
}

fn rate(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / MIB / since.elapsed().as_secs_f64()
}

/// The guest's counters of hypercalls, notifications and frames.
const COUNTED: [&str; 4] = ["hypercalls", "notifications", "frames_sent", "frames_received"];

fn counters(at: &str) -> Result<[f64; COUNTED.len()]> {
    let text = String::from_utf8(Connection::open(at)?.get("/metrics")?)?;
    let mut values = [0.0; COUNTED.len()];
    for (value, name) in values.iter_mut().zip(COUNTED) {
        let start = format!("xensock_{name}_total ");
        let line = text.lines().find_map(|line| line.strip_prefix(&*start));
        *value = line.ok_or("a counter is missing")?.parse()?;
    }
    Ok(values)
}

fn per_mib(direction: &str, before: &[f64], after: &[f64]) {
    for ((name, before), after) in COUNTED.iter().zip(before).zip(after) {
        println!("{direction}_{name}_per_mib {:.2}", (after - before) / (BULK as f64 / MIB));
    }
}

/// A connection for several requests.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(at: &str) -> Result<Self> {
        Ok(Connection(BufReader::with_capacity(1 << 16, connect(at)?)))
    }

    fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        self.0
            .get_mut()
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").as_bytes())?;
        self.answer()
    }

    fn post(&mut self, path: &str, len: usize) -> Result<Vec<u8>> {
        let head = format!("POST {path} HTTP/1.1\r\nHost: guest\r\nContent-Length: {len}\r\n\r\n");
        let stream = self.0.get_mut();
        stream.write_all(head.as_bytes())?;
        let block = vec![7; 1 << 16];
        let mut left = len;
        while left > 0 {
            let some = left.min(block.len());
            stream.write_all(&block[..some])?;
            left -= some;
        }
        self.answer()
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
            return Err(format!("the guest answers {status:?}").into());
        }
        let mut body = vec![0; len.ok_or("an answer without a length")?];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }
}
