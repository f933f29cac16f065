//! The apps as a Linux program, for comparison: the same code over tokio's sockets.
//!
//! `linux WORD...` takes the words of a guest's command line. The program's environment knows no
//! limit for the connections, so a server's `max-connections=` should be among them. The variable
//! `RAMDISK` names the file that a guest has beside its kernel.

#[path = "../tests/loopback/datagrams.rs"]
mod datagrams;

use apps::config::Config;
use apps::{Context, Environment, Metric, Resolver, TcpOnly};
use datagrams::Udp;
use edge_nal::{Close, Readable, TcpAccept, TcpBind, TcpConnect, TcpShutdown, TcpSplit, UdpBind};
use embedded_io_async::{ErrorType, Read, Write};
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use xensock_stream::Datagrams;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let config = Config::parse(words.join(" ").as_bytes())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (context, stack) = (Context::new(Machine), Linux);
    // By TCP, the numbers of queries need not be hard to guess.
    let names = Resolver::new(TcpOnly(&stack), config.network.dns.clone(), || 1);
    Ok(runtime.block_on(apps::run(&config, &stack, &names, &context))?)
}

/// The machine that runs the program.
struct Machine;

impl Environment for Machine {
    fn metrics(&self) -> Vec<Metric> {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| ("available_bytes", "Memory for programs.", kib << 10)).into_iter().collect()
    }

    fn files(&self) -> Vec<&'static [u8]> {
        let read = |path| std::fs::read(path).expect("RAMDISK names a file");
        std::env::var("RAMDISK").map(read).map(|file| &*file.leak()).into_iter().collect()
    }

    fn clock(&self) -> fn() -> Option<Duration> {
        || SystemTime::now().duration_since(UNIX_EPOCH).ok()
    }

    fn listening(&self) {
        println!("listening");
    }
}

/// Linux's sockets.
struct Linux;

impl TcpBind for Linux {
    type Error = io::Error;
    type Accept<'a> = Tokio<TcpListener>;

    async fn bind(&self, local: SocketAddr) -> io::Result<Tokio<TcpListener>> {
        Ok(Tokio(TcpListener::bind(local).await?))
    }
}

impl TcpConnect for Linux {
    type Error = io::Error;
    type Socket<'a> = Tokio<TcpStream>;

    async fn connect(&self, remote: SocketAddr) -> io::Result<Tokio<TcpStream>> {
        ready(TcpStream::connect(remote).await?)
    }
}

impl UdpBind for Linux {
    type Error = io::Error;
    type Socket<'a> = Datagrams<Udp>;

    async fn bind(&self, local: SocketAddr) -> io::Result<Datagrams<Udp>> {
        Ok(Datagrams::new(Udp(UdpSocket::bind(local).await?)))
    }
}

/// One of tokio's types.
struct Tokio<T>(T);

/// A socket that sends small messages at once, as xensockd's sockets do.
fn ready(stream: TcpStream) -> io::Result<Tokio<TcpStream>> {
    stream.set_nodelay(true)?;
    Ok(Tokio(stream))
}

impl TcpAccept for Tokio<TcpListener> {
    type Error = io::Error;
    type Socket<'a> = Tokio<TcpStream>;

    async fn accept(&self) -> io::Result<(SocketAddr, Tokio<TcpStream>)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((peer, ready(stream)?))
    }
}

impl<T> ErrorType for Tokio<T> {
    type Error = io::Error;
}

impl<T: AsyncRead + Unpin> Read for Tokio<T> {
    async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to).await
    }
}

impl<T: AsyncWrite + Unpin> Write for Tokio<T> {
    async fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }
}

impl Readable for Tokio<TcpStream> {
    async fn readable(&mut self) -> io::Result<()> {
        self.0.readable().await
    }
}

impl Readable for Tokio<ReadHalf<'_>> {
    async fn readable(&mut self) -> io::Result<()> {
        self.0.readable().await
    }
}

impl TcpSplit for Tokio<TcpStream> {
    type Read<'a> = Tokio<ReadHalf<'a>>;
    type Write<'a> = Tokio<WriteHalf<'a>>;

    fn split(&mut self) -> (Tokio<ReadHalf<'_>>, Tokio<WriteHalf<'_>>) {
        let (reader, writer) = self.0.split();
        (Tokio(reader), Tokio(writer))
    }
}

impl TcpShutdown for Tokio<TcpStream> {
    async fn close(&mut self, what: Close) -> io::Result<()> {
        match what {
            // Linux has nothing to tell the peer.
            Close::Read => Ok(()),
            Close::Write | Close::Both => self.0.shutdown().await,
        }
    }

    async fn abort(&mut self) -> io::Result<()> {
        self.0.set_zero_linger()
    }
}
