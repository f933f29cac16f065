//! The client.

use super::{Items, Op, POISON, QUOTA, Seen, Stage, bytes, digest, pattern, words};
use crate::transport::Transport;
use crate::wire::ABANDONED;
use crate::{
    Address, Courier, Disconnect, Endpoint, Event, Events, LocalBuffer, Node, Quota, RemoteBuffer,
    Resource, Response, Rights, TransferError, TransportError,
};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Debug;
use core::future::Future;
use core::pin::pin;
use embassy_time::{Duration, Timer, with_timeout};
use futures_util::future::{Either, join, join_all, poll_immediate, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

/// Longer than a step takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a buffer that takes a while to transfer.
const LARGE: u32 = 3 << 20;

/// What a step found wrong.
type Outcome<T = ()> = Result<T, String>;

/// Fails unless something is as it should be.
fn expect<V: PartialEq + Debug>(what: &str, is: V, should: V) -> Outcome {
    if is == should { Ok(()) } else { Err(format!("{what}: {is:?} instead of {should:?}")) }
}

/// What a service has seen, which is nothing wrong.
fn report_of(status: &[u8]) -> Outcome<Seen> {
    let seen = Seen::from_words(&words(status)).ok_or("the service's report makes no sense")?;
    expect("what the service has seen that is stale", seen.stale, 0)?;
    expect("what the service has seen that was out of order", seen.disorder, 0)?;
    Ok(seen)
}

/// Examines the service at an address. `report` is told the name of each step that has passed. The
/// error tells what is wrong.
///
/// The service must have no other client meanwhile.
pub async fn examine<T: Transport>(
    node: &Node<T>,
    address: &Address,
    mut report: impl FnMut(&str),
) -> Result<(), String> {
    let mut items = Items::new(node);
    let mut resource = node.resource(QUOTA).map_err(|error| error.to_string())?;
    // The second endpoint has the resource of the first one.
    for part in 0..2 {
        let (endpoint, events, drive) = Endpoint::create(resource, address.clone());
        let mut drive = pin!(drive);
        let mut exam = Exam { node, endpoint, events, items, stage: Stage::Gone };
        let steps = async {
            macro_rules! steps {
                ($($step:ident)*) => { $( {
                    let step = stringify!($step);
                    match with_timeout(PATIENCE, exam.$step()).await {
                        Ok(Ok(())) => report(step),
                        Ok(Err(error)) => return Err(format!("{step}: {error}")),
                        Err(_) => return Err(format!("{step}: it takes too long")),
                    }
                } )* };
            }
            if part == 0 {
                steps!(
                    the_ends_appear_and_connect
                    messages_come_in_order_and_are_complete_when_the_receiver_is_done
                    there_are_as_many_messages_at_a_time_as_the_quota_says
                    transactions_are_answered_in_any_order
                    what_is_too_long_is_refused
                    the_service_keeps_to_this_ends_quota
                    the_service_submits_transactions
                    buffers_are_read_and_written_by_reference
                    forged_references_and_other_rights_are_refused
                    a_buffer_is_unregistered_in_the_middle_of_a_transfer
                    the_service_leaves_and_comes_back
                );
            } else {
                steps!(the_service_has_seen_the_former_endpoint_end);
            }
            Ok(())
        };
        match select(drive.as_mut(), pin!(steps)).await {
            Either::Left(_) => return Err("the endpoint has ended by itself".to_string()),
            Either::Right((outcome, _)) => outcome?,
        }
        let ends = with_timeout(PATIENCE, exam.end(drive));
        (resource, items) = ends.await.map_err(|_| "the endpoint does not end".to_string())??;
        report("the_endpoint_ends_with_all_that_is_outstanding");
    }
    Ok(())
}

/// One endpoint of the client.
struct Exam<'n, T: Transport> {
    node: &'n Node<T>,
    endpoint: Endpoint,
    events: Events,
    items: Items,
    stage: Stage,
}

impl<T: Transport> Exam<'_, T> {
    async fn event(&mut self) -> Outcome<Event> {
        let event = self.events.next().await.ok_or("the endpoint has ended")?;
        let stage = self.stage.after(&event);
        self.stage = stage.ok_or_else(|| format!("{event:?} after {:?}", self.stage))?;
        if self.stage == Stage::Connected && matches!(event, Event::Connect) {
            self.items.begin_connection();
        }
        Ok(event)
    }

    async fn connected(&mut self) -> Outcome {
        while self.stage != Stage::Connected {
            drop(self.event().await?);
        }
        Ok(())
    }

    /// Waits for the end of the connection. Messages and transactions are dropped.
    async fn disconnected(&mut self) -> Outcome<Disconnect> {
        loop {
            if let Event::Disconnect(disconnect) = self.event().await? {
                return Ok(disconnect);
            }
        }
    }

    /// A transaction, submitted at the first poll.
    fn transaction(
        &self,
        op: Op,
        arguments: &[u32],
    ) -> impl Future<Output = Result<Response, TransportError>> + use<T> {
        let (endpoint, item) = (self.endpoint.clone(), self.items.item(op, arguments));
        async move { endpoint.transaction(item).await }
    }

    fn message(&self, op: Op) -> impl Future<Output = Result<(), TransportError>> + use<T> {
        let (endpoint, item) = (self.endpoint.clone(), self.items.item(op, &[]));
        async move { endpoint.message(item).await }
    }

    /// The status of a transaction that succeeds.
    async fn ask(&self, op: Op, arguments: &[u32]) -> Outcome<Vec<u8>> {
        let answer = self.transaction(op, arguments).await;
        let answer = answer.map_err(|error| format!("{op:?}: {error}"))?;
        expect("the error", answer.error(), 0)?;
        Ok(answer.status().to_vec())
    }

    async fn seen(&self) -> Outcome<Seen> {
        report_of(&self.ask(Op::Report, &[]).await?)
    }

    /// Waits for a connection after another one, and asks what the service has seen. The service
    /// may have gone through a connection that this end learns of when it is over.
    async fn seen_in_another_connection(&mut self) -> Outcome<Seen> {
        loop {
            self.connected().await?;
            match self.transaction(Op::Report, &[]).await {
                Ok(answer) => return report_of(&answer.status().to_vec()),
                Err(_) => drop(self.disconnected().await?),
            }
        }
    }

    async fn the_ends_appear_and_connect(&mut self) -> Outcome {
        expect("a message", self.message(Op::Echo).await, Err(TransportError::Disconnected))?;
        self.connected().await?;
        expect("the service's quota", self.endpoint.peer_quota(), Some(QUOTA))?;
        expect("its items", self.seen().await?.items, 1)
    }

    async fn messages_come_in_order_and_are_complete_when_the_receiver_is_done(
        &mut self,
    ) -> Outcome {
        let before = self.seen().await?.items;
        for _ in 0..100 {
            expect("a message", self.message(Op::Echo).await, Ok(()))?;
        }
        expect("the items", self.seen().await?.items, before + 101)?;
        let mut kept = pin!(self.message(Op::Keep));
        expect("a kept message", poll_immediate(kept.as_mut()).await, None)?;
        // The service has it when it has this.
        self.seen().await?;
        expect("a kept message", poll_immediate(kept.as_mut()).await, None)?;
        self.ask(Op::Release, &[1]).await?;
        expect("a finished message", poll_immediate(kept.as_mut()).await, Some(Ok(())))
    }

    async fn there_are_as_many_messages_at_a_time_as_the_quota_says(&mut self) -> Outcome {
        let most = u32::from(QUOTA.messages);
        // Nobody waits for these.
        let send = |_: &u32| {
            let message = || self.endpoint.try_message(self.items.item(Op::Keep, &[]));
            message().is_some()
        };
        expect("the messages", (0..2 * most).take_while(send).count() as u32, most)?;
        self.ask(Op::Release, &[2]).await?;
        expect("more messages", (0..most).take_while(send).count(), 2)?;
        // It waits, and comes after the other.
        let release = self.transaction(Op::Release, &[most]);
        let next = self.message(Op::Echo);
        let (next, released) = join(next, release).await;
        expect("a message that waited", next, Ok(()))?;
        expect("the release", released.err(), None)
    }

    async fn transactions_are_answered_in_any_order(&mut self) -> Outcome {
        for len in [0, 1, QUOTA.parameters as usize / 4 - 6] {
            let arguments: Vec<u32> = (7..8 + len as u32).collect();
            let answer = self.transaction(Op::Echo, &arguments).await;
            let answer = answer.map_err(|error| error.to_string())?;
            expect("the error", answer.error(), 7)?;
            expect("the status", answer.status().to_vec(), bytes(&arguments[1..]))?;
        }
        let count = u32::from(QUOTA.transactions) - 1;
        let kept = join_all((0..count).map(|_| self.transaction(Op::Keep, &[])));
        let mut kept = pin!(kept);
        expect("the answers", poll_immediate(kept.as_mut()).await.is_none(), true)?;
        self.ask(Op::Release, &[count]).await?;
        for (number, answer) in (0..count).rev().zip(kept.await) {
            expect("the answer's number", answer.map(|answer| answer.error()), Ok(number))?;
        }
        let answer = self.transaction(Op::Abandon, &[]).await;
        expect("the error", answer.map(|answer| answer.error()), Ok(ABANDONED))
    }

    async fn what_is_too_long_is_refused(&mut self) -> Outcome {
        let before = self.seen().await?;
        let long = Err(TransportError::TooLong);
        let message = LocalBuffer::new(QUOTA.message as usize + 1);
        expect("a long message", self.endpoint.message(message).await, long)?;
        let parameters = LocalBuffer::new(QUOTA.parameters as usize + 1);
        let answer = self.endpoint.transaction(parameters).await;
        expect("long parameters", answer.map(drop), long)?;
        let answer = self.transaction(Op::TooLong, &[]).await;
        expect("the error", answer.map(|answer| answer.error()), Ok(ABANDONED))?;
        let after = self.seen().await?;
        expect(
            "what was seen",
            (after.items, after.refused),
            (before.items + 2, before.refused + 1),
        )
    }

    async fn the_service_keeps_to_this_ends_quota(&mut self) -> Outcome {
        let mut held = Vec::new();
        for (free, sent) in [(QUOTA.messages, QUOTA.messages), (0, 0), (2, 2)] {
            held.truncate(held.len() - usize::from(free).min(held.len()));
            let status = self.ask(Op::Flood, &[]).await?;
            expect("the messages", words(&status), vec![sent.into()])?;
            for number in 0..u32::from(sent) {
                let Event::Message(message) = self.event().await? else {
                    return Err("something else than a message".to_string());
                };
                expect("the message", words(&message.body().to_vec()), vec![number])?;
                held.push(message);
            }
        }
        Ok(())
    }

    async fn the_service_submits_transactions(&mut self) -> Outcome {
        let count = u32::from(QUOTA.transactions);
        let asked = self.transaction(Op::Ask, &[count]);
        let answer = async {
            let mut all = Vec::new();
            for number in 0..count {
                let Event::Transaction(asked) = self.event().await? else {
                    return Err("something else than a transaction".to_string());
                };
                expect("the number", words(&asked.parameters().to_vec()), vec![number])?;
                all.push((number, asked));
            }
            for (number, asked) in all.into_iter().rev() {
                let answered = asked.complete(number, vec![0; number as usize]);
                expect("the answer", answered, Ok(()))?;
            }
            Ok(())
        };
        let (asked, answered) = join(asked, answer).await;
        answered?;
        let status = asked.map(|answer| words(&answer.status().to_vec()));
        let expected: Vec<u32> = (0..count).flat_map(|number| [number, number]).collect();
        expect("errors and lengths", status, Ok(expected))
    }

    /// Runs transfers with a courier.
    async fn with_courier(&self, transfers: impl AsyncFnOnce(&mut Courier) -> Outcome) -> Outcome {
        let resource = self.node.resource(Quota::default()).map_err(|error| error.to_string())?;
        let (mut courier, drive) = Courier::create(resource);
        let work = async move { transfers(&mut courier).await };
        // The courier ends with the work, and its driver with that.
        let (outcome, _) = join(work, drive).await;
        outcome
    }

    async fn own(&self, len: u32, rights: Rights) -> Outcome<RemoteBuffer> {
        let reference = self.ask(Op::Own, &[len, rights.bits().into()]).await?;
        let reference = reference[..].try_into().map_err(|_| "there is no reference")?;
        RemoteBuffer::from_bytes(reference).map_err(|error| error.to_string())
    }

    async fn buffers_are_read_and_written_by_reference(&mut self) -> Outcome {
        let remote = self.own(LARGE, Rights::all()).await?;
        self.with_courier(async |courier| {
            let mut all: Vec<u8> = (0..LARGE as usize).map(pattern).collect();
            for (at, len) in [(0, 0), (0, 1), (5, 100_000), (0, all.len()), (all.len() - 1, 1)] {
                let local = LocalBuffer::new(len);
                expect("reading", courier.receive(&remote, at as u64, &local).await, Ok(()))?;
                expect("what was read", local.to_vec() == all[at..at + len], true)?;
            }
            for (at, len) in [(0, 1), (1000, 1_999_000), (all.len() - 1, 1)] {
                all[at..at + len].fill(0xee);
                let sent = courier.send(&remote, at as u64, &vec![0xee; len].into()).await;
                expect("writing", sent, Ok(()))?;
                let status = words(&self.ask(Op::Digest, &[]).await?);
                expect("the digest", &status[..], &digest(all.iter().copied()))?;
            }
            Ok(())
        })
        .await
    }

    async fn forged_references_and_other_rights_are_refused(&mut self) -> Outcome {
        let some = LocalBuffer::new(100);
        self.with_courier(async |courier| {
            let writable = self.own(1000, Rights::WRITE).await?;
            let read = courier.receive(&writable, 0, &some).await;
            expect("reading what can be written", read, Err(TransferError::Forbidden))?;
            let remote = self.own(1000, Rights::READ).await?;
            let sent = courier.send(&remote, 0, &some).await;
            expect("writing what can be read", sent, Err(TransferError::Forbidden))?;
            for at in [901, u64::MAX] {
                let read = courier.receive(&remote, at, &some).await;
                expect("reading too much", read, Err(TransferError::OutOfRange))?;
            }
            // In a reference, the key is in bytes 32 to 48, and the node in bytes 16 to 32.
            for (byte, error) in [
                (16, TransferError::Unreachable),
                (32, TransferError::Revoked),
                (47, TransferError::Revoked),
            ] {
                let mut forged = remote.to_bytes();
                forged[byte] ^= 1;
                let forged = RemoteBuffer::from_bytes(&forged).map_err(|it| it.to_string())?;
                let read = courier.receive(&forged, 0, &some).await;
                expect("reading by a forged reference", read, Err(error))?;
            }
            expect("reading", courier.receive(&remote, 900, &some).await, Ok(()))?;
            self.ask(Op::Revoke, &[]).await?;
            let read = courier.receive(&remote, 0, &some).await;
            expect("reading what is unregistered", read, Err(TransferError::Revoked))
        })
        .await
    }

    async fn a_buffer_is_unregistered_in_the_middle_of_a_transfer(&mut self) -> Outcome {
        self.with_courier(async |courier| {
            let poisoned = digest((0..LARGE).map(|_| POISON));
            for (right, pause) in [0, 1, 3, 10]
                .into_iter()
                .flat_map(|pause| [(Rights::READ, pause), (Rights::WRITE, pause)])
            {
                let remote = self.own(LARGE, right).await?;
                let local = LocalBuffer::new(LARGE as usize);
                let transfers = async {
                    loop {
                        let transfer = match right {
                            Rights::READ => courier.receive(&remote, 0, &local).await,
                            _ => courier.send(&remote, 0, &local).await,
                        };
                        if let Err(error) = transfer {
                            return error;
                        }
                    }
                };
                let revoke = async {
                    Timer::after_millis(pause).await;
                    self.ask(Op::Revoke, &[]).await
                };
                let (error, revoked) = join(transfers, revoke).await;
                revoked?;
                expect("the transfer", error, TransferError::Revoked)?;
                expect("whether poison was read", local.to_vec().contains(&POISON), false)?;
                let status = words(&self.ask(Op::Digest, &[]).await?);
                expect("the poison's digest", &status[..], &poisoned)?;
            }
            Ok(())
        })
        .await
    }

    async fn the_service_leaves_and_comes_back(&mut self) -> Outcome {
        for pause in [0, 0, 0, 200] {
            let before = self.seen().await?;
            self.ask(Op::Flood, &[]).await?;
            let Event::Message(held) = self.event().await? else {
                return Err("something else than a message".to_string());
            };
            let (messages, transactions) = self.keep().await?;
            let leave = self.transaction(Op::Leave, &[pause]);
            let disconnect = async {
                let disconnect = self.disconnected().await?;
                let late = self.endpoint.message(b"late").await;
                expect("a late message", late, Err(TransportError::Disconnected))?;
                Ok::<_, String>(disconnect)
            };
            let (leave, disconnect) = join(leave, disconnect).await;
            let disconnect = disconnect?;
            expect("leaving", leave.err(), Some(TransportError::Disconnected))?;
            all_disconnected(messages, transactions).await?;
            // What comes next waits for both of these, in either order.
            let (mut disconnect, mut held) = (Some(disconnect), Some(held));
            for end in [pause == 0, pause != 0] {
                let early = with_timeout(Duration::from_millis(30), self.event()).await;
                expect("an event before Disconnect is complete", early.is_err(), true)?;
                if end { drop(disconnect.take()) } else { drop(held.take()) }
            }
            let after = self.seen_in_another_connection().await?;
            // Nothing of the former connection is in this one.
            expect("the items of a new connection", after.items, 1)?;
            expect("whether both ends connected", after.connections > before.connections, true)?;
        }
        Ok(())
    }

    async fn the_service_has_seen_the_former_endpoint_end(&mut self) -> Outcome {
        let seen = self.seen_in_another_connection().await?;
        expect("the items of a new connection", seen.items, 1)?;
        expect("whether both ends connected", seen.connections >= self.items.connection, true)
    }

    /// Submits what the service keeps.
    async fn keep(
        &self,
    ) -> Outcome<(
        FuturesUnordered<impl Future<Output = Result<(), TransportError>> + use<T>>,
        FuturesUnordered<impl Future<Output = Result<Response, TransportError>> + use<T>>,
    )> {
        let mut messages = (0..3).map(|_| self.message(Op::Keep)).collect::<FuturesUnordered<_>>();
        let mut transactions =
            (0..3).map(|_| self.transaction(Op::Keep, &[])).collect::<FuturesUnordered<_>>();
        expect("a message", poll_immediate(messages.next()).await, None)?;
        let answer = poll_immediate(transactions.next()).await;
        expect("a transaction", answer.is_none(), true)?;
        Ok((messages, transactions))
    }

    /// Destroys the endpoint while something is outstanding. Returns its resource.
    async fn end(
        mut self,
        drive: impl Future<Output = Resource<T>>,
    ) -> Outcome<(Resource<T>, Items)> {
        let (messages, transactions) = self.keep().await?;
        let ends = async {
            self.endpoint.destroy();
            let disconnect = self.disconnected().await?;
            all_disconnected(messages, transactions).await?;
            drop(disconnect);
            while self.stage != Stage::Gone {
                drop(self.event().await?);
            }
            expect("an event after the end", self.events.next().await.is_none(), true)
        };
        let (ended, resource) = join(ends, drive).await;
        ended?;
        Ok((resource, self.items))
    }
}

/// Checks that all has ended with the connection.
async fn all_disconnected(
    mut messages: FuturesUnordered<impl Future<Output = Result<(), TransportError>>>,
    mut transactions: FuturesUnordered<impl Future<Output = Result<Response, TransportError>>>,
) -> Outcome {
    let over = Some(Some(Some(TransportError::Disconnected)));
    for _ in 0..3 {
        let ended = poll_immediate(messages.next()).await;
        expect("a kept message", ended.map(|ended| ended.map(Result::err)), over)?;
        let ended = poll_immediate(transactions.next()).await;
        expect("a kept transaction", ended.map(|ended| ended.map(Result::err)), over)?;
    }
    Ok(())
}
