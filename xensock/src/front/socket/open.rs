//! How a socket comes to be: the calls for that, made all at once.

use super::super::calls::{Answer, Reply};
use super::super::device::{Attachment, Device};
use super::super::stream::{Connection, Stream};
use super::{Names, Socket};
use crate::wire::{Call, Family, Options, SocketOption};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use futures_util::future::join_all;
use xen::Errno;
use xen::Machine;

/// Opens a socket and connects it: a job.
pub(in crate::front) async fn connect<M: Machine>(
    device: &Rc<Device<M>>,
    to: SocketAddr,
    options: &Options,
) -> Result<Stream<M>, Errno> {
    let at = device.attached().await?;
    let sizes = [SocketOption::ReceiveBuffer, SocketOption::SendBuffer].map(|of| options.get(of));
    let (ring, offer) = device.memory.open_ring(&at, at.order_for(sizes[0], sizes[1]))?;
    let name = device.name_socket();
    let mut calls = preparations(&at, Family::of(to), options);
    calls.push(Call::Connect { addr: to, flags: 0, ring: offer });
    match make(device, &at, name, calls).await {
        Ok(reply) => {
            let names = Names { local: reply.name, peer: Some(to) };
            let socket = Socket::new(device, name, at, ring, names);
            socket.sizes.set(sizes);
            Ok(Stream::new(Connection::new(socket)))
        }
        Err(error) => {
            // The backend may still know the socket, and after a lost answer even the ring. Only when it has
            // answered this, or is gone, it cannot come to map the ring later.
            match device.call(at.session, name, Call::Release { reuse: false }).await {
                Err(Errno::ETIMEDOUT) => device.memory.keep(ring),
                _ => device.memory.close_ring(ring),
            }
            Err(error)
        }
    }
}

/// The calls that create a socket, if that takes one of its own, and set its options.
pub(in crate::front) fn preparations(
    at: &Attachment,
    family: Family,
    options: &Options,
) -> Vec<Call> {
    let creates = at.protocol.dialect.has_socket_command();
    let create = creates.then_some(Call::Socket { family });
    let options = options.iter().filter(|(option, _)| !option.is_ring_size());
    let set = options.map(|(option, value)| Call::SetOption { option, value });
    create.into_iter().chain(set).collect()
}

/// Makes calls about a new socket, all at once: backends carry them out in order, and refuse what comes
/// after a failure. The reply is the last one that has a name.
pub(in crate::front) async fn make<M: Machine>(
    device: &Device<M>,
    at: &Attachment,
    name: u64,
    calls: Vec<Call>,
) -> Answer {
    let calls = calls.into_iter().map(|call| device.call(at.session, name, call));
    let mut last = Reply::default();
    for reply in join_all(calls).await {
        let reply = reply?;
        last = Reply { name: reply.name.or(last.name), ..reply };
    }
    Ok(last)
}
