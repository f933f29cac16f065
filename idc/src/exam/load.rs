//! Load, for tests in which an end is killed.

use super::{Items, Op, QUOTA, Seen, pattern, words};
use crate::transport::Transport;
use crate::{
    Address, Courier, Endpoint, Event, LocalBuffer, Node, Quota, RemoteBuffer, Rights,
    TransportError,
};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use core::fmt;
use core::future::pending;
use core::pin::pin;
use futures_util::future::{Either, join, join_all, select};

/// The bytes of the buffer that is read all the time.
const BUFFER: u32 = 64 << 10;

/// After so many answers, a connection is busy.
const BUSY: u64 = 50;

/// What a client has submitted to a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The client's connections.
    pub connections: u32,
    /// Whether the latest one is over.
    pub is_over: bool,
    /// What was submitted, and how much of that was completed, in all connections.
    pub submitted: u64,
    /// Of that, what was completed in any way.
    pub completed: u64,
    /// Of that, what the service has answered or finished.
    pub answered: u64,
    /// Bytes that were read from the service's buffer.
    pub read: u64,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { connections, is_over, submitted, completed, answered, read } = self;
        let state = if *is_over { "over" } else { "busy" };
        write!(
            f,
            "connection {connections} is {state}: submitted {submitted}, completed {completed}, \
             answered {answered}, read {read}"
        )
    }
}

/// Keeps a service at an address busy. `report` is told of each connection when it is busy, and
/// when it is over. The error tells what is wrong.
pub async fn load<T: Transport>(
    node: &Node<T>,
    address: &Address,
    report: impl FnMut(&Load),
) -> Result<Infallible, String> {
    let resource = |quota| node.resource(quota).map_err(|error| error.to_string());
    let (endpoint, mut events, drive) = Endpoint::create(resource(QUOTA)?, address.clone());
    let (mut courier, drive_courier) = Courier::create(resource(Quota::default())?);
    let mut client = Client {
        endpoint,
        items: Items::new(node),
        load: Cell::default(),
        report: RefCell::new(report),
    };
    let work = async {
        loop {
            match events.next().await.ok_or("the endpoint has ended")? {
                Event::Connect => client.items.begin_connection(),
                _ => continue,
            }
            client.count(|load| (load.connections, load.is_over) = (load.connections + 1, false));
            let end = async {
                loop {
                    match events.next().await.ok_or("the endpoint has ended")? {
                        Event::Disconnect(disconnect) => return Ok(disconnect),
                        Event::Message(_) | Event::Transaction(_) => {}
                        other => return Err(format!("{other:?} in a connection")),
                    }
                }
            };
            let (worked, disconnect) = join(client.work(&mut courier), end).await;
            worked?;
            client.count(|load| load.is_over = true);
            let Load { submitted, completed, .. } = client.load.get();
            if submitted != completed {
                return Err(format!("{submitted} were submitted, and {completed} completed"));
            }
            client.report();
            drop(disconnect?);
        }
    };
    match select(pin!(work), pin!(join(drive, drive_courier))).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err("the drivers have ended".to_string()),
    }
}

/// The client, in one connection.
struct Client<R> {
    endpoint: Endpoint,
    items: Items,
    load: Cell<Load>,
    report: RefCell<R>,
}

impl<R: FnMut(&Load)> Client<R> {
    fn count(&self, change: impl FnOnce(&mut Load)) {
        let mut load = self.load.get();
        change(&mut load);
        self.load.set(load);
    }

    fn report(&self) {
        (self.report.borrow_mut())(&self.load.get());
    }

    /// Submits until the connection is over.
    async fn work(&self, courier: &mut Courier) -> Result<(), String> {
        let Some(status) = self.submit(Op::Report, &[]).await? else { return Ok(()) };
        let seen = Seen::from_words(&words(&status)).ok_or("the report makes no sense")?;
        if (seen.stale, seen.disorder) != (0, 0) {
            return Err(format!("{seen:?}"));
        }
        let rights = Rights::READ.bits().into();
        let Some(remote) = self.submit(Op::Own, &[BUFFER, rights]).await? else { return Ok(()) };
        let remote = remote[..].try_into().map_err(|_| "there is no reference")?;
        let remote = RemoteBuffer::from_bytes(remote).map_err(|error| error.to_string())?;
        let busy_at = Cell::new(Some(self.load.get().answered + BUSY));
        let busy_at = &busy_at;
        let transactions = join_all((0..4).map(|worker| async move {
            for number in 0u32.. {
                let Some(status) = self.submit(Op::Echo, &[0, worker, number]).await? else {
                    break;
                };
                if words(&status) != [worker, number] {
                    return Err(format!("{worker} {number} is answered by {status:?}"));
                }
                if busy_at.get().is_some_and(|at| self.load.get().answered >= at) {
                    busy_at.set(None);
                    self.report();
                }
            }
            Ok(())
        }));
        let messages = async {
            let mut sent = Ok(());
            while sent.is_ok() {
                self.count(|load| load.submitted += 1);
                sent = self.endpoint.message(self.items.item(Op::Echo, &[])).await;
                self.count(|load| load.completed += 1);
                self.count(|load| load.answered += u64::from(sent.is_ok()));
            }
            sent.or_else(disconnected)
        };
        let reads = async {
            let local = LocalBuffer::new(BUFFER as usize);
            while courier.receive(&remote, 0, &local).await.is_ok() {
                if !local.to_vec().into_iter().eq((0..BUFFER as usize).map(pattern)) {
                    return format!("{remote:?} has other bytes");
                }
                local.shared().zero();
                self.count(|load| load.read += u64::from(BUFFER));
            }
            // The connection is over, or is about to be.
            pending().await
        };
        match select(pin!(reads), pin!(join(transactions, messages))).await {
            Either::Left((error, _)) => Err(error),
            Either::Right(((transactions, messages), _)) => {
                transactions.into_iter().collect::<Result<(), _>>()?;
                messages
            }
        }
    }

    /// The status of a transaction. `None` if the connection is over.
    async fn submit(&self, op: Op, arguments: &[u32]) -> Result<Option<Vec<u8>>, String> {
        self.count(|load| load.submitted += 1);
        let answer = self.endpoint.transaction(self.items.item(op, arguments)).await;
        self.count(|load| load.completed += 1);
        match answer {
            Ok(answer) if answer.error() == 0 => {
                self.count(|load| load.answered += 1);
                Ok(Some(answer.status().to_vec()))
            }
            Ok(answer) => Err(format!("{op:?}: error {}", answer.error())),
            Err(error) => disconnected(error).map(|()| None),
        }
    }
}

fn disconnected(error: TransportError) -> Result<(), String> {
    match error {
        TransportError::Disconnected => Ok(()),
        TransportError::TooLong => Err(error.to_string()),
    }
}
