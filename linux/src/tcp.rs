//! TCP for tasks of a [`Runtime`](crate::runtime::Runtime): the traits of `edge-nal` over Linux's
//! sockets. Nagle's algorithm is off, as in guests' stacks.
//!
//! A peer that is gone without a word, such as a destroyed guest with a network interface, is
//! noticed in half a minute.

use crate::errno;
use crate::runtime::{READABLE, Reactor, SOCKET, Watched};
use edge_nal::{Close, TcpAccept, TcpBind, TcpConnect};
use rustix::io::Errno as Os;
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, sockopt,
};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use xen::{Errno, Side};
use xensock_stream::{PollSocket, Stream};

/// The connections of a listener that Linux keeps until they are accepted.
const BACKLOG: i32 = 128;

/// After how long a silent peer is probed, and how often.
const PROBE_AFTER: Duration = Duration::from_secs(10);
const PROBES: u32 = 2;

/// How long a peer may leave data unacknowledged, in milliseconds.
const SILENCE: u32 = 30_000;

/// How long a listener rests if there are no more file descriptors or no more memory.
const REST: Duration = Duration::from_millis(100);

/// Opens sockets. Clones are the same stack.
///
/// ```
/// use edge_nal::{TcpAccept, TcpBind, TcpConnect};
/// use embedded_io_async::{Read, Write};
/// use xen_linux::{runtime::Runtime, tcp};
///
/// let mut runtime = Runtime::new()?;
/// let stack = tcp::Stack::new(runtime.reactor());
/// let said = runtime.block_on(async {
///     let listener = stack.bind(([127, 0, 0, 1], 0).into()).await?;
///     let mut to = stack.connect(listener.local_addr()?).await?;
///     let (_, mut from) = listener.accept().await?;
///     to.write_all(b"hello").await?;
///     let mut said = [0; 5];
///     from.read(&mut said).await?;
///     Ok::<_, xen::Errno>(said)
/// })?;
/// assert_eq!(said.as_ref(), Ok(b"hello"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Stack(Reactor);

/// Accepts connections.
pub struct Listener {
    socket: Watched,
    reactor: Reactor,
    /// Whether that was logged.
    is_short: Cell<bool>,
}

/// A connected socket.
pub struct Socket(Watched);

impl Stack {
    /// Sockets for the thread of this reactor.
    pub fn new(reactor: &Reactor) -> Self {
        Stack(reactor.clone())
    }
}

/// Opens a socket for this address, which does not block. It sends small messages at once, and so
/// do the connections that it accepts.
pub fn open(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP));
    let socket = socket.map_err(errno)?;
    sockopt::set_tcp_nodelay(&socket, true).map_err(errno)?;
    Ok(socket)
}

/// Opens a socket that notices when its peer is gone, as the connections that it accepts do.
fn open_probed(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = open(address)?;
    sockopt::set_socket_keepalive(&socket, true)
        .and_then(|()| sockopt::set_tcp_keepidle(&socket, PROBE_AFTER))
        .and_then(|()| sockopt::set_tcp_keepintvl(&socket, PROBE_AFTER))
        .and_then(|()| sockopt::set_tcp_keepcnt(&socket, PROBES))
        .and_then(|()| sockopt::set_tcp_user_timeout(&socket, SILENCE))
        .map_err(errno)?;
    Ok(socket)
}

/// Connects a socket, and waits until it is connected.
pub async fn connect(
    reactor: &Reactor,
    socket: OwnedFd,
    remote: SocketAddr,
) -> Result<Watched, Errno> {
    match net::connect(&socket, &remote) {
        Ok(()) | Err(Os::INPROGRESS) => {}
        Err(error) => return Err(errno(error)),
    }
    // Registered only now: epoll reports a socket that was never connected as closed.
    let socket = reactor.watch(Rc::new(socket), SOCKET).map_err(errno)?;
    poll_fn(|cx| socket.poll_ready(cx, Side::Tx)).await;
    sockopt::socket_error(&*socket).map_err(errno)?.map_err(errno)?;
    Ok(socket)
}

/// Accepts a connection, for [`Watched::poll_io`]. The socket does not block.
pub fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    match net::acceptfrom_with(listener, flags) {
        // Retry: the peer aborted before accept.
        Err(Os::CONNABORTED) => Err(Os::INTR.into()),
        Err(error) => Err(error.into()),
        Ok((socket, peer)) => Ok((socket, peer.and_then(|peer| peer.try_into().ok()))),
    }
}

/// A socket's own address.
pub fn local_addr(socket: &OwnedFd) -> Result<SocketAddr, Errno> {
    let address = net::getsockname(socket).map_err(errno)?;
    address.try_into().map_err(|_| Errno::EAFNOSUPPORT)
}

impl TcpConnect for Stack {
    type Error = Errno;
    type Socket<'a> = Stream<Socket>;

    async fn connect(&self, remote: SocketAddr) -> Result<Stream<Socket>, Errno> {
        let socket = connect(&self.0, open_probed(remote)?, remote).await?;
        Ok(Stream::new(Socket(socket)))
    }
}

impl TcpBind for Stack {
    type Error = Errno;
    type Accept<'a> = Listener;

    async fn bind(&self, local: SocketAddr) -> Result<Listener, Errno> {
        let socket = open_probed(local)?;
        sockopt::set_socket_reuseaddr(&socket, true).map_err(errno)?;
        net::bind(&socket, &local).map_err(errno)?;
        net::listen(&socket, BACKLOG).map_err(errno)?;
        let socket = self.0.watch(Rc::new(socket), READABLE).map_err(errno)?;
        Ok(Listener { socket, reactor: self.0.clone(), is_short: Cell::new(false) })
    }
}

impl Listener {
    /// The address at which it listens.
    pub fn local_addr(&self) -> Result<SocketAddr, Errno> {
        local_addr(&self.socket)
    }
}

impl TcpAccept for Listener {
    type Error = Errno;
    type Socket<'a> = Stream<Socket>;

    /// Waits for a connection, also while there are no file descriptors or no memory for it. At
    /// most one task may wait.
    async fn accept(&self) -> Result<(SocketAddr, Stream<Socket>), Errno> {
        loop {
            let accepted = poll_fn(|cx| self.socket.poll_io(cx, Side::Rx, accept)).await;
            match accepted {
                Ok((socket, peer)) => {
                    self.is_short.set(false);
                    let socket = self.reactor.watch(Rc::new(socket), SOCKET).map_err(errno)?;
                    return Ok((peer.ok_or(Errno::EAFNOSUPPORT)?, Stream::new(Socket(socket))));
                }
                Err(error) if is_short(&error) => {
                    if !self.is_short.replace(true) {
                        log::warn!("cannot accept a connection: {error}; trying again");
                    }
                    self.reactor.sleep(REST).await;
                }
                Err(error) => return Err(errno(error)),
            }
        }
    }
}

/// Whether there are no more file descriptors or no more memory.
fn is_short(error: &io::Error) -> bool {
    let short = [Os::MFILE, Os::NFILE, Os::NOMEM, Os::NOBUFS];
    Os::from_io_error(error).is_some_and(|error| short.contains(&error))
}

impl PollSocket for Socket {
    type Error = Errno;

    fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Errno>> {
        let size = to.len();
        let receive = |socket: &OwnedFd| match size {
            0 => Ok(net::recv(socket, &mut [0], RecvFlags::PEEK).map(|_| 0)?),
            _ => Ok(net::recv(socket, &mut *to, RecvFlags::empty())?.0),
        };
        let received = ready!(self.0.poll_io(cx, Side::Rx, receive));
        if matches!(received, Ok(count) if count < size) {
            self.0.clear_after_short_read();
        }
        Poll::Ready(received.map_err(errno))
    }

    fn poll_write(&self, cx: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Errno>> {
        let send = |socket: &OwnedFd| Ok(net::send(socket, from, SendFlags::NOSIGNAL)?);
        let sent = ready!(self.0.poll_io(cx, Side::Tx, send));
        if matches!(sent, Ok(count) if count < from.len()) {
            self.0.clear(Side::Tx);
        }
        Poll::Ready(sent.map_err(errno))
    }

    fn check_writable(&self) -> Result<(), Errno> {
        // Linux reports an error once, to whatever comes first: leave it to the next read or write.
        Ok(())
    }

    async fn close(&self, what: Close) -> Result<(), Errno> {
        let how = match what {
            Close::Read => Shutdown::Read,
            Close::Write => Shutdown::Write,
            Close::Both => Shutdown::Both,
        };
        match net::shutdown(&*self.0, how) {
            // The peer was faster.
            Ok(()) | Err(Os::NOTCONN) => Ok(()),
            Err(error) => Err(errno(error)),
        }
    }

    async fn abort(&self) -> Result<(), Errno> {
        // Dissolves the association: Linux resets the connection.
        net::connect_unspec(&*self.0).map_err(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{Runtime, timeout};
    use edge_nal::{Readable, TcpShutdown, TcpSplit};
    use embedded_io_async::{Read, Write};
    use futures_util::future::join;

    /// More than all buffers of a connection together.
    const MUCH: usize = 6 << 20;

    /// Runs a test with the two ends of a connection.
    fn connected<F: Future<Output = ()>>(
        test: impl FnOnce(Reactor, Stream<Socket>, Stream<Socket>) -> F,
    ) {
        let mut runtime = Runtime::new().unwrap();
        let reactor = runtime.reactor().clone();
        let test = async {
            let stack = Stack::new(&reactor);
            let listener = stack.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (near, far) = join(stack.connect(address), listener.accept()).await;
            test(reactor.clone(), near.unwrap(), far.unwrap().1).await;
        };
        runtime.block_on(test).unwrap();
    }

    #[test]
    fn much_data_arrives_in_both_directions_at_once() {
        connected(async |_, mut near, mut far| {
            let exchange = async |stream: &mut Stream<Socket>| {
                let (mut reader, mut writer) = stream.split();
                let write = async {
                    let bytes: Vec<u8> = (0..MUCH).map(|at| (at / 251) as u8).collect();
                    writer.write_all(&bytes).await.unwrap();
                };
                let read = async {
                    let (mut bytes, mut done) = (vec![0; 100_000], 0);
                    while done < MUCH {
                        let count = reader.read(&mut bytes).await.unwrap();
                        assert!(count > 0, "the end after {done} bytes");
                        let expected = (done..done + count).map(|at| (at / 251) as u8);
                        assert!(bytes[..count].iter().copied().eq(expected));
                        done += count;
                    }
                };
                join(write, read).await;
            };
            join(exchange(&mut near), exchange(&mut far)).await;
        });
    }

    #[test]
    fn a_closed_direction_ends_the_stream_and_the_other_one_goes_on() {
        connected(async |_, mut near, mut far| {
            near.write_all(b"last").await.unwrap();
            near.close(Close::Write).await.unwrap();
            let mut bytes = [0; 8];
            far.readable().await.unwrap();
            assert_eq!(far.read(&mut bytes).await, Ok(4));
            assert_eq!(far.read(&mut bytes).await, Ok(0));
            far.write_all(b"answer").await.unwrap();
            assert_eq!(near.read(&mut bytes).await, Ok(6));
            near.close(Close::Both).await.unwrap();
        });
    }

    #[test]
    fn an_aborted_connection_is_an_error_at_the_other_end() {
        connected(async |_, mut near, mut far| {
            near.abort().await.unwrap();
            let mut bytes = [0; 1];
            assert_eq!(far.read(&mut bytes).await, Err(Errno::ECONNRESET));
            assert_eq!(far.write(b"x").await, Err(Errno::EPIPE));
        });
    }

    #[test]
    fn both_ends_of_a_connection_are_probed() {
        connected(async |_, near, far| {
            for stream in [&near, &far] {
                assert!(sockopt::socket_keepalive(&*stream.0).unwrap());
                assert_eq!(sockopt::tcp_keepidle(&*stream.0).unwrap(), PROBE_AFTER);
                assert_eq!(sockopt::tcp_user_timeout(&*stream.0).unwrap(), SILENCE);
            }
        });
    }

    #[test]
    fn a_reader_waits_for_data() {
        connected(async |reactor, mut near, mut far| {
            let time = Duration::from_millis(20);
            assert_eq!(timeout(&reactor, time, far.readable()).await, None);
            near.write_all(b"x").await.unwrap();
            assert_eq!(
                timeout(&reactor, Duration::from_secs(9), far.readable()).await,
                Some(Ok(()))
            );
        });
    }

    #[test]
    fn a_port_at_which_nobody_listens_refuses() {
        let mut runtime = Runtime::new().unwrap();
        let stack = Stack::new(runtime.reactor());
        let refused = runtime.block_on(async {
            let listener = stack.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            let address = listener.local_addr().unwrap();
            drop(listener);
            stack.connect(address).await.err()
        });
        assert_eq!(refused.unwrap(), Some(Errno::ECONNREFUSED));
    }
}
