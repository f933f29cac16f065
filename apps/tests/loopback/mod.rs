//! Apps on a host: a stack over tokio's sockets on loopback, and a thread that runs an app on it.
//!
//! The stack is as unhelpful as the traits permit: a write takes a part of the bytes only, and
//! they stay in memory until a flush or until there are many.
#![allow(dead_code, reason = "each test crate uses its own part")]

mod datagrams;

use apps::config::Config;
use apps::{AppError, Context, Environment, Metric};
use datagrams::Udp;
use edge_nal::{Close, Readable, TcpAccept, TcpBind, TcpConnect, TcpShutdown, TcpSplit, UdpBind};
use embedded_io_async::{ErrorType, Read, Write};
use netfront::{Resolver, TcpOnly};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream as Client};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use xensock_stream::Datagrams;

/// The most bytes that one write takes.
const MAX_WRITE: usize = 40_000;

/// The most unflushed bytes.
const MAX_UNFLUSHED: usize = 4_000;

/// The time limit of all waiting, for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the stack can close one direction of a connection alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum HalfClose {
    Works,
    IsUnknown,
}

/// Binds any free port on loopback and reports it.
pub struct Loopback {
    bound: mpsc::Sender<SocketAddr>,
    half_close: HalfClose,
}

impl TcpBind for Loopback {
    type Error = io::Error;
    type Accept<'a> = Acceptor;

    async fn bind(&self, _: SocketAddr) -> io::Result<Acceptor> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let _ = self.bound.send(listener.local_addr()?);
        Ok(Acceptor(listener, self.half_close))
    }
}

impl TcpConnect for Loopback {
    type Error = io::Error;
    type Socket<'a> = Socket;

    async fn connect(&self, remote: SocketAddr) -> io::Result<Socket> {
        Ok(Socket::new(TcpStream::connect(remote).await?, self.half_close))
    }
}

impl UdpBind for Loopback {
    type Error = io::Error;
    type Socket<'a> = Datagrams<Udp>;

    async fn bind(&self, _: SocketAddr) -> io::Result<Datagrams<Udp>> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let _ = self.bound.send(socket.local_addr()?);
        Ok(Datagrams::new(Udp(socket)))
    }
}

pub struct Acceptor(TcpListener, HalfClose);

impl TcpAccept for Acceptor {
    type Error = io::Error;
    type Socket<'a> = Socket;

    async fn accept(&self) -> io::Result<(SocketAddr, Socket)> {
        let (stream, peer) = self.0.accept().await?;
        Ok((peer, Socket::new(stream, self.1)))
    }
}

pub struct Socket {
    stream: TcpStream,
    unflushed: Vec<u8>,
    half_close: HalfClose,
}

impl Socket {
    fn new(stream: TcpStream, half_close: HalfClose) -> Socket {
        Socket { stream, unflushed: Vec::new(), half_close }
    }
}

impl ErrorType for Socket {
    type Error = io::Error;
}

impl Read for Socket {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        tokio::io::AsyncReadExt::read(&mut self.stream, buffer).await
    }
}

impl Write for Socket {
    async fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.unflushed.len() > MAX_UNFLUSHED {
            self.flush().await?;
        }
        let data = &data[..data.len().min(MAX_WRITE)];
        self.unflushed.extend_from_slice(data);
        Ok(data.len())
    }

    async fn flush(&mut self) -> io::Result<()> {
        tokio::io::AsyncWriteExt::write_all(&mut self.stream, &self.unflushed).await?;
        self.unflushed.clear();
        Ok(())
    }
}

impl Readable for Socket {
    async fn readable(&mut self) -> io::Result<()> {
        self.stream.readable().await
    }
}

impl TcpShutdown for Socket {
    async fn close(&mut self, what: Close) -> io::Result<()> {
        match what {
            Close::Read | Close::Write if self.half_close == HalfClose::IsUnknown => {
                Err(ErrorKind::Unsupported.into())
            }
            Close::Read => Ok(()),
            Close::Write | Close::Both => {
                tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await
            }
        }
    }

    async fn abort(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl TcpSplit for Socket {
    type Read<'a> = Never;
    type Write<'a> = Never;

    fn split(&mut self) -> (Never, Never) {
        panic!("the apps do not split sockets")
    }
}

/// Half a socket, which the apps never request.
pub enum Never {}

impl ErrorType for Never {
    type Error = io::Error;
}

impl Read for Never {
    async fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }
}

impl Write for Never {
    async fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    async fn flush(&mut self) -> io::Result<()> {
        match *self {}
    }
}

impl Readable for Never {
    async fn readable(&mut self) -> io::Result<()> {
        match *self {}
    }
}

/// The guest under a server, which has 7 ports.
struct Guest(Vec<&'static [u8]>);

impl Environment for Guest {
    fn files(&self) -> Vec<&'static [u8]> {
        self.0.clone()
    }

    fn metrics(&self) -> Vec<Metric> {
        vec![("ports_open", "Open ports.", 7)]
    }
}

/// Runs `config`'s app to its end, on this thread.
pub fn run(config: &Config, context: &Context) -> Result<(), AppError> {
    block_on(async |stack| {
        apps::run(config, &stack, &Resolver::new(TcpOnly(&stack), vec![], || 1), context).await
    })
}

/// Runs `work` with a stack, on this thread.
pub fn block_on<F: Future>(work: impl FnOnce(Loopback) -> F) -> F::Output {
    let (bound, _) = mpsc::channel();
    runtime().block_on(work(Loopback { bound, half_close: HalfClose::Works }))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A server that runs until it is dropped.
pub struct Server {
    /// The address that the app bound first.
    pub address: SocketAddr,
    bound: mpsc::Receiver<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts the server that `command_line` names.
    pub fn start(command_line: &str) -> Server {
        Server::start_where(HalfClose::Works, command_line)
    }

    /// Starts it on a stack with or without half-close.
    pub fn start_where(half_close: HalfClose, command_line: &str) -> Server {
        Server::start_with(half_close, command_line, Vec::new())
    }

    /// Starts it with files beside the guest.
    pub fn start_with(
        half_close: HalfClose,
        command_line: &str,
        files: Vec<&'static [u8]>,
    ) -> Server {
        let config = Config::parse(command_line.as_bytes()).unwrap();
        let (sender, bound) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let context = Context::new(Guest(files));
            let stack = Loopback { bound: sender, half_close };
            let names = Resolver::new(TcpOnly(&stack), vec![], || 1);
            runtime().block_on(async {
                tokio::select! {
                    end = apps::run(&config, &stack, &names, &context) => panic!("{end:?}"),
                    _ = stopped => {}
                }
            });
        });
        let address = bound.recv_timeout(PATIENCE).expect("the app binds its port");
        Server { address, bound, stop: Some(stop), thread: Some(thread) }
    }

    /// The next address that the app has bound.
    pub fn next_address(&self) -> SocketAddr {
        self.bound.recv_timeout(PATIENCE).expect("the app binds another port")
    }

    /// Connects.
    pub fn connect(&self) -> Client {
        connect(self.address)
    }

    /// Sends `request`, then the end of stream, and returns the complete response.
    pub fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        io::Write::write_all(&mut client, request.as_ref()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        rest(&mut client)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the app did not panic");
        }
    }
}

/// Connects to a server.
pub fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

/// Everything up to the end of stream.
pub fn rest(client: &mut Client) -> String {
    let mut bytes = Vec::new();
    io::Read::read_to_end(client, &mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the peer has closed or reset the connection.
pub fn is_closed(client: &mut Client) -> bool {
    match io::Read::read(client, &mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}
