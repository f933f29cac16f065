//! All that it takes to have a connection with a disk, and to have the next one when it ends.

use super::{Connection, Disk};
use crate::neighbours::{Neighbours, Role};
use crate::protocol::client_quota;
use alloc::rc::Rc;
use alloc::string::ToString;
use core::future::Future;
use futures_util::future::join;
use idc::transport::Transport;
use idc::{Address, Endpoint, Event, Node};
use xen::Errno;

impl<T: Transport> Disk<T> {
    /// The disk at an address, of which this many transactions are possible at a time. The future
    /// drives it: poll it until it ends, which it does after the disk is dropped.
    pub fn open(
        node: &Node<T>,
        address: &Address,
        transactions: u16,
        neighbours: &Neighbours,
    ) -> Result<(Disk<T>, impl Future<Output = ()> + use<T>), Errno> {
        let resource = node.resource(client_quota(transactions))?;
        let (endpoint, mut events, drive) = Endpoint::create(resource, address.clone());
        let server = neighbours.expected(address.to_string(), Role::Server);
        let connection = Rc::new(Connection::new(server));
        let disk = Disk { node: node.clone(), endpoint, connection: connection.clone() };
        let watch = async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::Connect => connection.begin(),
                    Event::Disconnect(_) => connection.end(),
                    // A server sends neither messages nor transactions.
                    _ => {}
                }
            }
        };
        Ok((disk, async { drop(join(drive, watch).await) }))
    }
}
