//! The service.

use super::{Op, POISON, QUOTA, Seen, Stage, bytes, digest, pattern, words};
use crate::transport::Transport;
use crate::{
    Address, Endpoint, Event, Events, Incoming, LocalBuffer, Node, Received, Registration, Rights,
};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::future::Future;
use core::pin::{Pin, pin};
use embassy_time::Timer;
use futures_util::future::{Either, join, join_all, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xen::Errno;
use zerocopy::TryFromBytes;

/// Serves `clients` at a time at an address, and the buffers that they ask for.
pub async fn serve<T: Transport>(node: &Node<T>, address: &Address, clients: usize) -> Errno {
    let state = RefCell::default();
    let ends = (0..clients).map(|_| end(node, address, &state)).collect::<FuturesUnordered<_>>();
    match select(pin!(ends.into_future()), pin!(node.serve_buffers(2 * clients))).await {
        Either::Left(((Some(Err(error)), _), _)) | Either::Right((error, _)) => error,
        Either::Left(((None, _), _)) => Errno::EINVAL,
    }
}

/// What the ends of a service know.
#[derive(Default)]
struct State {
    seen: Seen,
    /// The latest connection of each client.
    clients: BTreeMap<Vec<u8>, u32>,
}

/// Serves one client after another.
async fn end<T: Transport>(
    node: &Node<T>,
    address: &Address,
    state: &RefCell<State>,
) -> Result<Infallible, Errno> {
    let mut resource = node.resource(QUOTA)?;
    loop {
        let (endpoint, events, drive) = Endpoint::create(resource, address.clone());
        let service = Service {
            node,
            endpoint,
            state,
            stage: Stage::Gone,
            latest: None,
            items: 0,
            kept: Vec::new(),
            owned: None,
            pause: 0,
        };
        let (pause, free) = join(service.run(events), drive).await;
        resource = free;
        Timer::after_millis(pause.into()).await;
    }
}

/// What a client wants to be kept.
enum Kept {
    Message(Received),
    Transaction(Incoming),
}

/// A buffer, while it is registered.
struct Owned<T: Transport> {
    buffer: LocalBuffer,
    registration: Option<Registration<T>>,
}

/// One endpoint of the service.
struct Service<'a, T: Transport> {
    node: &'a Node<T>,
    endpoint: Endpoint,
    state: &'a RefCell<State>,
    stage: Stage,
    /// The connection and number of the latest item of this connection.
    latest: Option<(Vec<u8>, u32)>,
    items: u32,
    kept: Vec<Kept>,
    owned: Option<Owned<T>>,
    /// How long to stay away.
    pause: u32,
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>>;

impl<T: Transport> Service<'_, T> {
    /// Does as it is asked until it is told to leave. Returns how long to stay away.
    async fn run(mut self, mut events: Events) -> u32 {
        let mut work = Work::new();
        loop {
            let event = match select(pin!(events.next()), work.next()).await {
                Either::Left((Some(event), _)) => event,
                Either::Left((None, _)) => return self.pause,
                Either::Right((Some(()), _)) => continue,
                Either::Right((None, next)) => match next.await {
                    Some(event) => event,
                    None => return self.pause,
                },
            };
            match self.stage.after(&event) {
                Some(stage) => self.stage = stage,
                None => self.state.borrow_mut().seen.disorder += 1,
            }
            match event {
                Event::Connect => {
                    self.state.borrow_mut().seen.connections += 1;
                    (self.latest, self.items) = (None, 0);
                }
                Event::Message(message) => {
                    let (op, _) = self.check(&message.body().to_vec());
                    if op == Some(Op::Keep) {
                        self.kept.push(Kept::Message(message));
                    }
                }
                Event::Transaction(asked) => {
                    let (op, arguments) = self.check(&asked.parameters().to_vec());
                    match op {
                        Some(op) => self.answer(asked, op, &arguments, &work),
                        None => drop(asked),
                    }
                }
                Event::Disconnect(disconnect) => {
                    // The client's next connection must wait for all of this, and sees none of it.
                    Timer::after_millis(20).await;
                    self.release(usize::MAX);
                    (self.owned, work) = (None, Work::new());
                    drop(disconnect);
                }
                Event::Appear | Event::Disappear => {}
            }
        }
    }

    /// Reads an item, and notes whether it may come now.
    fn check(&mut self, item: &[u8]) -> (Option<Op>, Vec<u32>) {
        let State { seen, clients } = &mut *self.state.borrow_mut();
        self.items += 1;
        seen.items = self.items;
        let Some((connection, rest)) = item.split_at_checked(12) else {
            seen.disorder += 1;
            return Default::default();
        };
        let rest = words(rest);
        let [number, op, arguments @ ..] = &rest[..] else {
            seen.disorder += 1;
            return Default::default();
        };
        match &self.latest {
            Some((former, last)) => {
                seen.stale += u32::from(former != connection);
                seen.disorder += u32::from(number <= last);
            }
            // A client counts its connections.
            None => {
                let (client, now) = (connection[..8].to_vec(), words(&connection[8..])[0]);
                let former = clients.insert(client, now).unwrap_or_default();
                seen.stale += u32::from(now <= former);
            }
        }
        self.latest = Some((connection.to_vec(), *number));
        (Op::try_read_from_bytes(&op.to_ne_bytes()).ok(), arguments.to_vec())
    }

    fn answer(&mut self, asked: Incoming, op: Op, arguments: &[u32], work: &Work) {
        let argument = |at: usize| arguments.get(at).copied().unwrap_or_default();
        let first = argument(0);
        let status = match op {
            Op::Echo => {
                return complete(asked, first, bytes(arguments.get(1..).unwrap_or_default()));
            }
            Op::Keep => return self.kept.push(Kept::Transaction(asked)),
            Op::Abandon => return,
            Op::TooLong => {
                let long = LocalBuffer::new(asked.status_limit() + 1);
                let refused = asked.complete(0, long).is_err();
                self.state.borrow_mut().seen.refused += u32::from(refused);
                return;
            }
            Op::Ask => {
                let endpoint = self.endpoint.clone();
                return work.push(Box::pin(ask(endpoint, first, asked)));
            }
            Op::Leave => {
                self.pause = first;
                self.endpoint.destroy();
                return self.kept.push(Kept::Transaction(asked));
            }
            Op::Release => {
                self.release(first as usize);
                Vec::new()
            }
            Op::Flood => {
                let message = |number: u32| self.endpoint.try_message(bytes(&[number]).into());
                let send = |number: &u32| message(*number).is_some();
                bytes(&[(0..).take_while(send).count() as u32])
            }
            Op::Own => {
                let rights = Rights::from_bits_truncate(argument(1) as u8);
                let buffer: Vec<u8> = (0..first as usize).map(pattern).collect();
                let buffer = LocalBuffer::from(buffer);
                let registration = self.node.register(&buffer, rights).ok();
                let reference = registration.as_ref().map(|it| it.reference().to_bytes().to_vec());
                self.owned = Some(Owned { buffer, registration });
                reference.unwrap_or_default()
            }
            Op::Revoke => {
                if let Some(owned) = &mut self.owned {
                    owned.registration = None;
                    let poison = [POISON; 4096];
                    for at in (0..owned.buffer.len()).step_by(poison.len()) {
                        let count = poison.len().min(owned.buffer.len() - at);
                        owned.buffer.write(at, &poison[..count]);
                    }
                }
                Vec::new()
            }
            Op::Digest => {
                let owned = self.owned.as_ref().map(|owned| owned.buffer.to_vec());
                bytes(&digest(owned.unwrap_or_default().into_iter()))
            }
            Op::Report => bytes(&self.state.borrow().seen.words()),
        };
        complete(asked, 0, status);
    }

    /// Finishes so many of what is kept, the latest first.
    fn release(&mut self, count: usize) {
        let start = self.kept.len().saturating_sub(count);
        for (number, kept) in self.kept.drain(start..).rev().enumerate() {
            match kept {
                Kept::Message(message) => drop(message),
                Kept::Transaction(asked) => complete(asked, number as u32, Vec::new()),
            }
        }
    }
}

fn complete(asked: Incoming, error: u32, status: Vec<u8>) {
    if let Err(error) = asked.complete(error, status) {
        log::error!("the exam's answer: {error}");
    }
}

/// Submits transactions, and tells how they were answered.
async fn ask(endpoint: Endpoint, count: u32, asked: Incoming) {
    let answers = join_all((0..count).map(|number| endpoint.transaction(bytes(&[number]))));
    let mut status = Vec::new();
    for answer in answers.await {
        // At the end of the connection, nobody reads it.
        let Ok(answer) = answer else { return };
        status.extend(bytes(&[answer.error(), answer.status().len() as u32]));
    }
    complete(asked, 0, status);
}
