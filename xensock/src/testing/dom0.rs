//! A backend's domain in a world of fakes.

use super::net::{Acceptor, Net, Socket};
use crate::back::{self, Channel, Host, Mapping, Stream};
use crate::wire::{Options, Shutdown, SocketOption};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use xen::testing::{BoundPort, MappedPages, Peer, World};
use xen::{DomId, Errno, GrantRef, Port, Shared, Signal};

/// The domain with the backends and the network.
#[derive(Clone)]
pub struct Dom0 {
    peer: Peer,
    net: Net,
}

impl Dom0 {
    /// A domain with backends, whose sockets are on `net`.
    pub fn new(world: &World, id: DomId, net: &Net) -> Dom0 {
        Dom0 { peer: world.peer(id), net: net.clone() }
    }
}

impl Mapping for MappedPages {
    fn shared(&self) -> Shared<'_> {
        MappedPages::shared(self)
    }
}

impl Channel for BoundPort {
    fn notify(&self) {
        BoundPort::notify(self);
    }
}

impl Stream for Socket {
    fn poll_recv(&self, cx: &mut Context<'_>, room: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        self.poll_take(cx, |bytes| crate::ring::copy_in(&room, bytes))
    }

    fn poll_send(&self, cx: &mut Context<'_>, data: [Shared<'_>; 2]) -> Poll<Result<usize, Errno>> {
        self.poll_put(cx, |bytes| crate::ring::copy_out(&data, bytes))
    }

    fn shutdown(&self, how: Shutdown) -> Result<(), Errno> {
        if how.reads() {
            self.abandon();
        }
        if how.writes() {
            self.finish();
        }
        Ok(())
    }

    fn peer_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.peer())
    }
}

/// An option's value: one that was never set is 0.
fn option(options: &Cell<Options>, option: SocketOption) -> Result<u32, Errno> {
    Ok(options.get().get(option).unwrap_or(0))
}

/// The network knows all options but one, so that a test can see what becomes of that.
fn set_option(options: &Cell<Options>, option: SocketOption, value: u32) -> Result<(), Errno> {
    if option == SocketOption::BusyPoll {
        return Err(Errno::EPERM);
    }
    options.set(options.get().with(option, value));
    Ok(())
}

fn set_options(of: &Cell<Options>, options: &Options) -> Result<(), Errno> {
    options.iter().try_for_each(|(option, value)| set_option(of, option, value))
}

impl back::Socket for Socket {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set_option(self.options(), option, value)
    }

    fn option(&self, wanted: SocketOption) -> Result<u32, Errno> {
        option(self.options(), wanted)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.local())
    }
}

impl back::Socket for Acceptor {
    fn set_option(&self, option: SocketOption, value: u32) -> Result<(), Errno> {
        set_option(self.options(), option, value)
    }

    fn option(&self, wanted: SocketOption) -> Result<u32, Errno> {
        option(self.options(), wanted)
    }

    fn local_addr(&self) -> Result<SocketAddr, Errno> {
        Ok(self.address())
    }
}

impl Host for Dom0 {
    type Mapping = MappedPages;
    type Channel = BoundPort;
    type Stream = Socket;
    type Listener = Acceptor;

    async fn sleep(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        embassy_time::Timer::after_micros(micros).await;
    }

    fn map(&self, guest: DomId, refs: &[GrantRef]) -> Result<MappedPages, Errno> {
        self.peer.map(guest, refs)
    }

    fn bind_port(&self, guest: DomId, port: Port, signal: Arc<Signal>) -> Result<BoundPort, Errno> {
        self.peer.bind_port(guest, port, signal)
    }

    async fn connect(&self, _: DomId, to: SocketAddr, options: &Options) -> Result<Socket, Errno> {
        let socket = self.net.connect(to).await?;
        set_options(socket.options(), options)?;
        Ok(socket)
    }

    fn bind(&self, _: DomId, at: SocketAddr, options: &Options) -> Result<Acceptor, Errno> {
        let socket = self.net.bind(at)?;
        set_options(socket.options(), options)?;
        Ok(socket)
    }

    fn listen(&self, socket: &Acceptor, backlog: u32) -> Result<(), Errno> {
        socket.listen(backlog as usize);
        Ok(())
    }

    fn poll_acceptable(&self, cx: &mut Context<'_>, socket: &Acceptor) -> Poll<Result<(), Errno>> {
        socket.poll_acceptable(cx).map(Ok)
    }

    fn poll_accept(&self, cx: &mut Context<'_>, socket: &Acceptor) -> Poll<Result<Socket, Errno>> {
        socket.poll_accept(cx).map(Ok)
    }
}
