//! A TCP network in memory, for tests and fuzzing (feature `testing`).
//!
//! A connection buffers a few bytes in each direction, so that an end which does not read soon
//! stops the other end.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use edge_nal::{Close, Readable, TcpAccept, TcpBind, TcpConnect, TcpShutdown, TcpSplit};
use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use xen::WaitList;

/// The first port for connections.
const EPHEMERAL: u16 = 49152;

/// A network. Clones are the same network.
#[derive(Clone)]
pub struct FakeNet(Rc<Net>);

struct Net {
    listeners: RefCell<BTreeMap<SocketAddr, Rc<Backlog>>>,
    /// The bytes that each direction of a connection buffers.
    capacity: usize,
    last_port: Cell<u16>,
}

#[derive(Default)]
struct Backlog {
    waiting: RefCell<VecDeque<Result<(SocketAddr, FakeSocket), ErrorKind>>>,
    changed: WaitList,
}

/// A host of a network.
pub struct FakeHost {
    net: FakeNet,
    ip: IpAddr,
}

/// A listening socket. Dropping it closes it.
pub struct FakeAcceptor {
    net: FakeNet,
    at: SocketAddr,
    backlog: Rc<Backlog>,
}

/// One end of a connection. Dropping it closes it. Bytes that were sent still arrive.
pub struct FakeSocket {
    input: Input,
    output: Output,
}

/// The stream from the other end.
pub struct Input(Rc<Pipe>);

/// The stream to the other end.
pub struct Output(Rc<Pipe>);

struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    capacity: usize,
    /// Whether one of its ends is gone.
    closed: Cell<bool>,
    changed: WaitList,
}

impl FakeNet {
    /// A network whose connections buffer so many bytes in each direction.
    pub fn new(capacity: usize) -> Self {
        let (listeners, last_port) = (RefCell::default(), Cell::new(EPHEMERAL));
        FakeNet(Rc::new(Net { listeners, capacity, last_port }))
    }

    /// The host with this address.
    pub fn host(&self, ip: [u8; 4]) -> FakeHost {
        FakeHost { net: self.clone(), ip: Ipv4Addr::from(ip).into() }
    }

    /// Forgets who has dialled and was not accepted.
    pub fn clear(&self) {
        for backlog in self.0.listeners.borrow().values() {
            drop(backlog.waiting.take());
        }
    }

    /// Lets the next call of `accept` at an address fail.
    ///
    /// # Panics
    /// If nobody listens there.
    pub fn fail_accept(&self, at: SocketAddr, error: ErrorKind) {
        self.0.listeners.borrow()[&at].push(Err(error));
    }
}

impl Backlog {
    fn push(&self, accepted: Result<(SocketAddr, FakeSocket), ErrorKind>) {
        self.waiting.borrow_mut().push_back(accepted);
        self.changed.wake_all();
    }
}

impl TcpConnect for FakeHost {
    type Error = ErrorKind;
    type Socket<'a> = FakeSocket;

    async fn connect(&self, remote: SocketAddr) -> Result<FakeSocket, ErrorKind> {
        let FakeNet(net) = &self.net;
        let listener = net.listeners.borrow().get(&remote).cloned();
        let listener = listener.ok_or(ErrorKind::ConnectionRefused)?;
        let pipe = || {
            let (bytes, closed, changed) = Default::default();
            Rc::new(Pipe { bytes, capacity: net.capacity, closed, changed })
        };
        let (there, back) = (pipe(), pipe());
        let socket = |input: &Rc<Pipe>, output: &Rc<Pipe>| FakeSocket {
            input: Input(input.clone()),
            output: Output(output.clone()),
        };
        let port = net.last_port.get();
        net.last_port.set(port.checked_add(1).unwrap_or(EPHEMERAL));
        listener.push(Ok((SocketAddr::new(self.ip, port), socket(&there, &back))));
        Ok(socket(&back, &there))
    }
}

impl TcpBind for FakeHost {
    type Error = ErrorKind;
    type Accept<'a> = FakeAcceptor;

    async fn bind(&self, local: SocketAddr) -> Result<FakeAcceptor, ErrorKind> {
        let at = SocketAddr::new(self.ip, local.port());
        let backlog = Rc::<Backlog>::default();
        self.net.0.listeners.borrow_mut().insert(at, backlog.clone());
        Ok(FakeAcceptor { net: self.net.clone(), at, backlog })
    }
}

impl TcpAccept for FakeAcceptor {
    type Error = ErrorKind;
    type Socket<'a> = FakeSocket;

    async fn accept(&self) -> Result<(SocketAddr, FakeSocket), ErrorKind> {
        self.backlog.changed.until(|| self.backlog.waiting.borrow_mut().pop_front()).await
    }
}

impl Drop for FakeAcceptor {
    fn drop(&mut self) {
        self.net.0.listeners.borrow_mut().remove(&self.at);
    }
}

impl Pipe {
    fn close(&self) {
        self.closed.set(true);
        self.changed.wake_all();
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl ErrorType for FakeSocket {
    type Error = ErrorKind;
}

impl ErrorType for Input {
    type Error = ErrorKind;
}

impl ErrorType for Output {
    type Error = ErrorKind;
}

impl Read for Input {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, ErrorKind> {
        self.readable().await?;
        let mut bytes = self.0.bytes.borrow_mut();
        let count = to.len().min(bytes.len());
        to.iter_mut().zip(bytes.drain(..count)).for_each(|(to, byte)| *to = byte);
        drop(bytes);
        self.0.changed.wake_all();
        Ok(count)
    }
}

impl Readable for Input {
    async fn readable(&mut self) -> Result<(), ErrorKind> {
        let Pipe { bytes, closed, changed, .. } = &*self.0;
        changed.until(|| (!bytes.borrow().is_empty() || closed.get()).then_some(())).await;
        Ok(())
    }
}

impl Write for Output {
    async fn write(&mut self, from: &[u8]) -> Result<usize, ErrorKind> {
        let pipe = &*self.0;
        let room = || pipe.capacity - pipe.bytes.borrow().len();
        pipe.changed.until(|| (room() > 0 || pipe.closed.get()).then_some(())).await;
        if pipe.closed.get() {
            return Err(ErrorKind::BrokenPipe);
        }
        let count = from.len().min(room());
        pipe.bytes.borrow_mut().extend(&from[..count]);
        pipe.changed.wake_all();
        Ok(count)
    }

    async fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

impl Read for FakeSocket {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, ErrorKind> {
        self.input.read(to).await
    }
}

impl Readable for FakeSocket {
    async fn readable(&mut self) -> Result<(), ErrorKind> {
        self.input.readable().await
    }
}

impl Write for FakeSocket {
    async fn write(&mut self, from: &[u8]) -> Result<usize, ErrorKind> {
        self.output.write(from).await
    }

    async fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

impl TcpSplit for FakeSocket {
    type Read<'a> = &'a mut Input;
    type Write<'a> = &'a mut Output;

    fn split(&mut self) -> (&mut Input, &mut Output) {
        (&mut self.input, &mut self.output)
    }
}

impl TcpShutdown for FakeSocket {
    async fn close(&mut self, _: Close) -> Result<(), ErrorKind> {
        self.output.0.close();
        Ok(())
    }

    async fn abort(&mut self) -> Result<(), ErrorKind> {
        self.input.0.close();
        self.output.0.close();
        Ok(())
    }
}
