//! What the daemon's threads share: which thread serves which guest, their mailboxes, and the
//! request to stop.
//!
//! Each thread has its own event loop, device files and connection to xenstored, and looks for
//! guests by itself. The first thread that finds a new guest places it: the thread with the fewest
//! guests serves it, and the others ignore it. So the threads share nothing while they serve.

use crate::control::GuestStatus;
use crate::metrics::GuestNumbers;
use crate::rules::Policy;
use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_channel::oneshot;
use futures_util::future::join_all;
use futures_util::task::AtomicWaker;
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use xen::DomId;

/// Which thread serves which guest.
pub struct Placement {
    threads: usize,
    guests: Mutex<HashMap<DomId, Place>>,
}

#[derive(Clone, Copy)]
struct Place {
    thread: usize,
    /// The guest's devices that the thread serves.
    devices: usize,
}

impl Placement {
    /// A placement of guests on this many threads.
    pub fn new(threads: usize) -> Arc<Self> {
        Arc::new(Placement { threads, guests: Mutex::default() })
    }

    /// The view of a thread. The numbers of threads begin with 0.
    pub fn seat(self: &Arc<Self>, thread: usize) -> Seat {
        Seat { placement: self.clone(), thread }
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<DomId, Place>> {
        // No code that holds the lock leaves the map half changed.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread's view of the placement.
#[derive(Clone)]
pub struct Seat {
    placement: Arc<Placement>,
    thread: usize,
}

impl Seat {
    /// The thread's number.
    pub fn thread(&self) -> usize {
        self.thread
    }

    /// Takes a device of a guest, unless another thread serves the guest.
    pub fn claim(&self, guest: DomId) -> Option<Lease> {
        let mut guests = self.placement.guests();
        let load = |thread| guests.values().filter(|place| place.thread == thread).count();
        let place = match guests.get(&guest) {
            Some(place) => *place,
            None => {
                let thread = (0..self.placement.threads).min_by_key(|thread| load(*thread))?;
                Place { thread, devices: 0 }
            }
        };
        let mine = place.thread == self.thread;
        let devices = place.devices + usize::from(mine);
        guests.insert(guest, Place { devices, ..place });
        mine.then(|| Lease { placement: self.placement.clone(), guest })
    }

    /// Forgets where a destroyed guest was placed.
    pub fn forget(&self, guest: DomId) {
        let mut guests = self.placement.guests();
        if guests.get(&guest).is_some_and(|place| place.devices == 0) {
            guests.remove(&guest);
        }
    }
}

/// A device that a thread serves, until it is dropped.
pub struct Lease {
    placement: Arc<Placement>,
    guest: DomId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut guests = self.placement.guests();
        if let Some(place) = guests.get_mut(&self.guest) {
            place.devices -= 1;
            if place.devices == 0 {
                guests.remove(&self.guest);
            }
        }
    }
}

/// The request to all threads to stop.
pub struct StopAll {
    requested: AtomicBool,
    /// Each thread's task that waits for the request.
    waiting: Vec<AtomicWaker>,
}

impl StopAll {
    /// For this many threads.
    pub fn new(threads: usize) -> Self {
        let waiting = (0..threads).map(|_| AtomicWaker::new()).collect();
        StopAll { requested: AtomicBool::new(false), waiting }
    }

    /// Requests all threads to stop.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        self.waiting.iter().for_each(AtomicWaker::wake);
    }

    /// Waits, in the thread of this number, for the request.
    pub async fn requested(&self, thread: usize) {
        poll_fn(|cx| {
            self.waiting[thread].register(cx.waker());
            if self.requested.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// A message to a thread.
pub enum Message {
    /// Other rules hold.
    Rules(Arc<Policy>),
    /// Asks for the status of the thread's guests.
    Status(oneshot::Sender<Vec<GuestStatus>>),
    /// Asks for the numbers of the thread's guests.
    Numbers(oneshot::Sender<Vec<GuestNumbers>>),
    /// Asks to end a socket of a domain. Answered by the thread that serves it.
    Close(DomId, u64, oneshot::Sender<bool>),
}

/// The way to all threads.
pub struct Mailboxes(Vec<UnboundedSender<Message>>);

impl Mailboxes {
    /// For this many threads, with what each of them receives.
    pub fn new(threads: usize) -> (Self, Vec<UnboundedReceiver<Message>>) {
        let (senders, receivers) = (0..threads).map(|_| unbounded()).unzip();
        (Mailboxes(senders), receivers)
    }

    /// Sends a message to each thread.
    pub fn send(&self, message: impl Fn() -> Message) {
        for mailbox in &self.0 {
            // A thread that has ended needs no message.
            let _ = mailbox.unbounded_send(message());
        }
    }

    /// Asks all threads, and returns the answers of those that answer.
    pub async fn ask<T>(&self, message: impl Fn(oneshot::Sender<T>) -> Message) -> Vec<T> {
        let asked = self.0.iter().map(|mailbox| {
            let (sender, receiver) = oneshot::channel();
            let _ = mailbox.unbounded_send(message(sender));
            receiver
        });
        let answers = join_all(asked.collect::<Vec<_>>()).await;
        answers.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt, StreamExt};
    use std::pin::pin;

    #[test]
    fn new_guests_go_to_the_thread_with_the_fewest() {
        let placement = Placement::new(2);
        let seats = [placement.seat(0), placement.seat(1)];
        // Both threads find each guest, in any order; exactly one serves it.
        let place = |guest, first: usize| {
            let claims = [first, 1 - first].map(|seat| (seat, seats[seat].claim(DomId(guest))));
            let mut served = claims.into_iter().filter_map(|(seat, lease)| Some((seat, lease?)));
            let one = served.next().expect("a thread serves it");
            assert!(served.next().is_none());
            one
        };
        let leases = [place(1, 1), place(3, 1), place(5, 0), place(7, 0)];
        assert_eq!(leases.each_ref().map(|lease| lease.0), [0, 1, 0, 1]);
        drop(leases);
        assert!(placement.guests().is_empty());
    }

    #[test]
    fn all_threads_are_asked_and_those_that_answer_count() {
        let (mailboxes, mut inboxes) = Mailboxes::new(3);
        drop(inboxes.pop());
        let close = |to| Message::Close(DomId(7), 1, to);
        let mut asked = pin!(mailboxes.ask(close));
        assert!(asked.as_mut().now_or_never().is_none(), "nobody has answered");
        for (thread, inbox) in inboxes.iter_mut().enumerate() {
            let message = inbox.next().now_or_never().flatten();
            let Some(Message::Close(DomId(7), 1, to)) = message else { panic!("no message") };
            // The first thread does not serve the guest.
            if thread == 1 {
                to.send(true).unwrap();
            }
        }
        assert_eq!(asked.now_or_never(), Some(vec![true]));
    }

    #[test]
    fn a_guest_stays_with_its_thread_while_it_has_a_device() {
        let placement = Placement::new(2);
        let [first, second] = [placement.seat(0), placement.seat(1)];
        let one = first.claim(DomId(1)).unwrap();
        let two = first.claim(DomId(1)).unwrap();
        drop(one);
        assert!(second.claim(DomId(1)).is_none());
        drop(two);
        let _busy = first.claim(DomId(2)).unwrap();
        assert!(second.claim(DomId(1)).is_some());
    }

    #[test]
    fn a_guest_that_was_destroyed_before_its_thread_found_it_takes_no_place() {
        let placement = Placement::new(2);
        let [first, second] = [placement.seat(0), placement.seat(1)];
        let _busy = first.claim(DomId(1)).unwrap();
        assert!(first.claim(DomId(2)).is_none(), "the second thread is to serve it");
        first.forget(DomId(2));
        assert!(second.claim(DomId(3)).is_some());
    }
}
