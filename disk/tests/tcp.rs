//! Disks over real TCP connections of this machine's loopback.

mod suite;

use disk::Blocks;
use edge_nal::{TcpAccept, TcpBind, TcpConnect};
use edge_nal_std::{Stack, TcpAcceptor, TcpSocket};
use embassy_time::Timer;
use futures_util::future::join;
use idc::tcp::Tcp;
use idc::{Address, Place};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;
use suite::{Rig, Tasks};

/// Processes of this machine.
#[derive(Clone)]
struct Loopback;

impl Rig for Loopback {
    type Transport = Tcp<'static, Dialler, Listener>;

    async fn start(&self, again: Option<Place>, tasks: &Tasks) -> (Self::Transport, Place) {
        let stack: &'static Dialler = Box::leak(Box::new(Dialler(Stack::new())));
        let (acceptor, here) = loop {
            let address = match again {
                Some(Place::Host(former)) => former,
                _ => free_port(),
            };
            match stack.0.bind(address).await {
                Ok(acceptor) => break (acceptor, address),
                Err(error) if again.is_some() => panic!("cannot listen again: {error}"),
                Err(_) => {}
            }
        };
        let listener = Listener(RefCell::new(Some(Rc::new(acceptor))));
        let listener: &'static Listener = Box::leak(Box::new(listener));
        let transport = Tcp::new(stack, Some(here));
        let (door, close) = (transport.clone(), CloseOnDrop(listener));
        tasks.spawn(async move {
            let _close = close;
            panic!("nobody can be accepted: {:?}", door.serve(listener).await)
        });
        (transport, Place::Host(here))
    }
}

/// The stack cannot say which port 0 became.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An acceptor that lives as long as the program, but listens only until it is closed.
struct Listener(RefCell<Option<Rc<TcpAcceptor>>>);

struct CloseOnDrop(&'static Listener);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.0.take();
    }
}

impl TcpAccept for Listener {
    type Error = std::io::Error;
    type Socket<'a> = TcpSocket;

    async fn accept(&self) -> std::io::Result<(SocketAddr, TcpSocket)> {
        let acceptor = self.0.borrow().clone().expect("nobody accepts after it was closed");
        let (from, socket) = acceptor.accept().await?;
        socket.get_ref().set_nodelay(true)?;
        Ok((from, socket))
    }
}

/// Dials without the delays of Nagle's algorithm, as the stacks of guests do.
struct Dialler(Stack);

impl TcpConnect for Dialler {
    type Error = std::io::Error;
    type Socket<'a> = TcpSocket;

    async fn connect(&self, remote: SocketAddr) -> std::io::Result<TcpSocket> {
        let socket = self.0.connect(remote).await?;
        socket.get_ref().set_nodelay(true)?;
        Ok(socket)
    }
}

suite!(Loopback);

/// Forwards connections to a server. The first one can be held up.
#[derive(Default)]
struct Network {
    /// Keeps what the client sends through the first connection.
    hold: AtomicBool,
    /// How many bytes are kept.
    held: AtomicUsize,
    /// Ends the first connection as the client sees it.
    cut: AtomicBool,
    /// Passes on what was kept.
    release: AtomicBool,
}

impl Network {
    /// Returns the address that leads to `server`.
    fn start(self: &Arc<Self>, server: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let network = self.clone();
        thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
                let (to, from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let network = network.clone();
                thread::spawn(move || match number {
                    0 => network.forward_first(from, to),
                    _ => forward(from, to),
                });
                thread::spawn(move || forward(server, client));
            }
        });
        address
    }

    fn forward_first(&self, mut client: TcpStream, mut server: TcpStream) {
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let (mut bytes, mut held) = ([0; 4096], Vec::new());
        loop {
            if let Ok(count) = client.read(&mut bytes) {
                held.extend_from_slice(&bytes[..count]);
            }
            self.held.store(held.len(), SeqCst);
            if self.cut.load(SeqCst) {
                let _ = client.shutdown(Shutdown::Both);
            }
            if !self.hold.load(SeqCst) || self.release.load(SeqCst) {
                if server.write_all(&held).is_err() {
                    return;
                }
                held.clear();
            }
        }
    }
}

fn forward(mut from: TcpStream, to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut &to);
    let _ = to.shutdown(Shutdown::Write);
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        Timer::after_millis(1).await;
    }
}

#[test]
fn a_write_that_the_network_held_up_does_not_overwrite_a_later_one() {
    suite::run(Loopback, async |server| {
        let memory = suite::Memory::new();
        server.serve(memory.clone(), Default::default());
        let client = server.another().await;
        let Place::Host(host) = server.place else { unreachable!("it is over TCP") };
        let network = Arc::new(Network::default());
        let place = Place::Host(network.start(host));
        let disk = client.open_at(Address { place, ..server.address() }, 4);
        disk.connected().await;
        network.hold.store(true, SeqCst);
        let lost = async {
            until(|| network.held.load(SeqCst) > 0).await;
            network.cut.store(true, SeqCst);
        };
        // It is repeated through the next connection.
        let former = suite::filled(1, 1);
        join(disk.write(5, &former), lost).await.0.unwrap();
        disk.write(5, &suite::filled(1, 2)).await.unwrap();
        network.release.store(true, SeqCst);
        until(|| server.neighbours.list()[0].counts().failures == 1).await;
        assert_eq!(*memory.log.borrow(), [(5, 1), (5, 2)]);
    });
}
