//! The end that does as it is asked.

use super::ring::{self, Ring};
use super::{BUFFER, QUOTA, Used, link_beside};
use crate::address::Address;
use crate::buffer::{LocalBuffer, RemoteBuffer, Rights};
use crate::endpoint::{Endpoint, Event, Events};
use crate::node::Node;
use crate::transport::{Meeting, Transport};
use core::convert::Infallible;
use core::pin::pin;
use futures_util::future::{Either, join, select, try_join};
use xen::Errno;

/// Serves one visitor after another at an address. `used` tells what this end has used up.
///
/// Ends only if there is not enough memory to begin with.
pub async fn serve<T: Transport>(
    node: &Node<T>,
    address: &Address,
    used: impl Fn() -> Used,
) -> Errno {
    let work = async {
        let buffer = LocalBuffer::try_new(BUFFER)?;
        let registration = node.register(&buffer, Rights::READ | Rights::WRITE)?;
        let (_endpoint, events, drive) = Endpoint::create(node.resource(QUOTA)?, address.clone());
        let answers = answer(events, registration.reference(), used);
        let endpoint = async { Err(join(answers, drive).await).map_err(|_| Errno::EPIPE) };
        try_join(endpoint, serve_links(node, &link_beside(address))).await
    };
    match select(pin!(work), pin!(node.serve_buffers(2))).await {
        Either::Left((Err(error), _)) | Either::Right((error, _)) => error,
        Either::Left((Ok((never, _)), _)) => never,
    }
}

/// Serves one link after another.
async fn serve_links<T: Transport>(node: &Node<T>, address: &Address) -> Result<Infallible, Errno> {
    let mut reserve = node.transport().reserve()?;
    loop {
        let mut meeting = node.transport().meet(address, reserve);
        if let Err(error) = serve_link(node, &mut meeting).await {
            log::debug!("the link has ended: {error}");
        }
        reserve = meeting.part().await;
    }
}

async fn serve_link<T: Transport>(node: &Node<T>, meeting: &mut T::Meeting) -> Result<(), Errno> {
    let mut link = ring::meet(node, meeting).await?;
    Ring::new(&mut link)?.obey().await
}

/// Echoes transactions. One without parameters asks for the buffer and for what was used up.
async fn answer(mut events: Events, buffer: RemoteBuffer, used: impl Fn() -> Used) {
    while let Some(event) = events.next().await {
        let Event::Transaction(asked) = event else { continue };
        let status = if asked.parameters().is_empty() {
            [&buffer.to_bytes()[..], &used().to_bytes()[..]].concat().into()
        } else {
            asked.parameters().clone()
        };
        if let Err(error) = asked.complete(0, status) {
            log::error!("no answer: {error}");
        }
    }
}
