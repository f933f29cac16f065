//! Requests on their way: queued, sent, answered.
//!
//! The command ring has few slots. An ACCEPT keeps one until a connection comes, and a CONNECT until
//! the remote has answered. So both queue apart and never take the last slots, which serve everything
//! else in order; and ACCEPTs leave some to CONNECTs.

use crate::ring::{CommandFront, Notify};
use crate::wire::{Call, Command, Protocol, Request, Response};
use alloc::collections::{BTreeMap, VecDeque};
use core::net::SocketAddr;
use futures_channel::oneshot::{self, Receiver, Sender};
use xen::{Errno, Shared};

/// Slots that CONNECTs leave free.
const KEPT_FROM_CONNECTS: u32 = 2;
/// Slots that ACCEPTs leave free.
const KEPT_FROM_ACCEPTS: u32 = 4;

/// What came of a request.
pub(super) type Answer = Result<Reply, Errno>;

/// What an answer says beside that all is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    /// The value that was asked for.
    pub(super) value: u32,
    /// The name that was asked for, or that came along.
    pub(super) name: Option<SocketAddr>,
}

/// The requests of one command ring.
pub(super) struct Calls {
    ring: CommandFront,
    next_id: u32,
    /// By id: what was sent and not yet answered.
    outstanding: BTreeMap<u32, Outstanding>,
    accepts: VecDeque<(u64, Call, Sender<Answer>)>,
    connects: VecDeque<(u64, Call, Sender<Answer>)>,
    others: VecDeque<(u64, Call, Sender<Answer>)>,
}

struct Outstanding {
    command: Command,
    socket: u64,
    answer: Sender<Answer>,
}

impl Calls {
    pub(super) fn new(protocol: impl Into<Protocol>, page: Shared<'_>) -> Calls {
        Calls {
            ring: CommandFront::new(protocol, page),
            next_id: 0,
            outstanding: BTreeMap::new(),
            accepts: VecDeque::new(),
            connects: VecDeque::new(),
            others: VecDeque::new(),
        }
    }

    /// Queues a call. Follow with [`send`](Calls::send). The answer never comes when the receiver says
    /// so: then the ring is gone.
    pub(super) fn queue(&mut self, socket: u64, call: Call) -> Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let queue = match call.command() {
            Command::Accept => &mut self.accepts,
            Command::Connect => &mut self.connects,
            _ => &mut self.others,
        };
        queue.push_back((socket, call, sender));
        receiver
    }

    /// Sends what there are slots for.
    pub(super) fn send(&mut self, page: Shared<'_>) -> Notify {
        loop {
            let free = self.ring.free();
            let mut next = None;
            if free > 0 {
                next = self.others.pop_front();
            }
            if next.is_none() && free > KEPT_FROM_CONNECTS {
                next = self.connects.pop_front();
            }
            if next.is_none() && free > KEPT_FROM_ACCEPTS {
                next = self.accepts.pop_front();
            }
            let Some((socket, call, answer)) = next else { return self.ring.publish(page) };
            // Whoever gave up has closed the ring that the call offers: its grants may be another's now.
            let offers_ring = matches!(call, Call::Connect { .. } | Call::Accept { .. });
            if offers_ring && answer.is_canceled() {
                continue;
            }
            self.forget_given_up();
            let (id, command) = (self.unused_id(), call.command());
            match self.ring.push(page, &Request { id, socket, call }) {
                Ok(()) => {
                    self.outstanding.insert(id, Outstanding { command, socket, answer });
                }
                // Nobody may be waiting any more, which is no harm.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
    }

    /// Takes the responses that are there. Every response but the first of an outstanding request is
    /// ignored. [`Errno::EPROTO`]: the ring is of no use any more.
    pub(super) fn receive(&mut self, page: Shared<'_>) -> Result<(), Errno> {
        loop {
            while let Some(response) = self.ring.pop(page)? {
                self.dispatch(response);
            }
            if !self.ring.final_check(page) {
                return Ok(());
            }
        }
    }

    fn dispatch(&mut self, response: Response) {
        let Response { id, command, socket, result, addr } = response;
        match self.outstanding.get(&id) {
            Some(asked) if asked.command == command && asked.socket == socket => {}
            Some(asked) => {
                log::warn!(
                    "the backend answered request {id} ({:?} of socket {}) as {command:?} of \
                     socket {socket}; the answer is ignored",
                    asked.command,
                    asked.socket
                );
                return;
            }
            None => {
                log::warn!("the backend answered request {id}, which waits for no answer");
                return;
            }
        }
        if let Some(asked) = self.outstanding.remove(&id) {
            // Nobody may be waiting any more, which is no harm.
            let _ = asked.answer.send(result.map(|value| Reply { value, name: addr }));
        }
    }

    /// A backend that answers under wrong ids frees slots and leaves the requests outstanding. Those
    /// that nobody waits for any more make room, so that they cannot become many.
    fn forget_given_up(&mut self) {
        if self.outstanding.len() >= self.ring.slots() as usize {
            self.outstanding.retain(|_, asked| !asked.answer.is_canceled());
        }
    }

    fn unused_id(&mut self) -> u32 {
        // Few ids are outstanding: the search is short.
        while self.outstanding.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::CommandBack;
    use crate::wire::{Dialect, RingGrants, RingOffer};
    use xen::testing::page;
    use xen::{GrantRef, Port};

    fn accept() -> Call {
        let grants = RingGrants::Indexes(GrantRef(0));
        Call::Accept { new: 0, ring: RingOffer { grants, port: Port(1) } }
    }

    fn taken(back: &mut CommandBack, page: Shared<'_>) -> Vec<Request> {
        core::iter::from_fn(|| back.pop(page).unwrap()).map(Result::unwrap).collect()
    }

    #[test]
    fn accepts_never_take_the_last_slots() {
        let page = page();
        let (mut calls, mut back) =
            (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
        let _accepts: Vec<_> = (0..100).map(|socket| calls.queue(socket, accept())).collect();
        let _ = calls.send(page);
        assert_eq!(taken(&mut back, page).len(), 28);
        let _others: Vec<_> = (0..5).map(|socket| calls.queue(socket, Call::Poll)).collect();
        let _ = calls.send(page);
        let others = taken(&mut back, page);
        assert_eq!(others.len(), 4);
        back.push(page, &others[0].answer(Ok(0)));
        let _ = back.publish(page);
        calls.receive(page).unwrap();
        let _ = calls.send(page);
        assert_eq!(taken(&mut back, page)[0].call, Call::Poll, "not one of the 70 ACCEPTs");
    }

    #[test]
    fn connects_that_wait_for_their_remotes_leave_slots_to_the_rest() {
        let page = page();
        let (mut calls, mut back) =
            (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
        let Call::Accept { ring, .. } = accept() else { unreachable!() };
        let addr = ([127, 0, 0, 1], 80).into();
        let connect = || Call::Connect { addr, flags: 0, ring: ring.clone() };
        let _connects: Vec<_> = (0..50).map(|socket| calls.queue(socket, connect())).collect();
        let _ = calls.send(page);
        assert_eq!(taken(&mut back, page).len(), 30);
        let _release = calls.queue(99, Call::Release { reuse: false });
        let _ = calls.send(page);
        assert_eq!(taken(&mut back, page)[0].socket, 99);
    }

    #[test]
    fn a_ring_that_was_given_up_is_offered_to_nobody() {
        let page = page();
        let (mut calls, mut back) =
            (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
        drop(calls.queue(1, accept()));
        let _poll = calls.queue(2, Call::Poll);
        let _ = calls.send(page);
        let requests = taken(&mut back, page);
        assert_eq!(requests.iter().map(|request| request.socket).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn only_the_first_fitting_answer_counts() {
        let page = page();
        let (mut calls, mut back) =
            (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
        let mut answers: Vec<_> = (0..4).map(|socket| calls.queue(socket, Call::Poll)).collect();
        let _ = calls.send(page);
        let requests = taken(&mut back, page);
        let good = requests[0].answer(Err(Errno::EINVAL));
        back.push(page, &Response { id: 77, ..good });
        back.push(page, &Response { socket: 3, ..good });
        back.push(page, &good);
        back.push(page, &Response { result: Ok(0), ..good });
        let _ = back.publish(page);
        calls.receive(page).unwrap();
        assert_eq!(answers[0].try_recv(), Ok(Some(Err(Errno::EINVAL))));
        assert_eq!(answers[1].try_recv(), Ok(None));
        drop(calls);
        assert!(answers[1].try_recv().is_err(), "the ring is gone");
    }
}
