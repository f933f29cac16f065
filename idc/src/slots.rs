//! The slots of a connection: each is a place in the memory of the end that receives.
//!
//! An end sends only into a free slot of the other end, so whoever reads a link always has a place
//! for what comes. A slot is free again when the receiver says that it is done with it.

use crate::LocalBuffer;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::task::{Context, Poll, Waker};
use xen::{Errno, WaitList};

/// The slots of the other end, as this end knows them.
pub(crate) struct Outgoing {
    slots: RefCell<Vec<Slot>>,
    /// The free ones. The last one is used next.
    free: RefCell<Vec<u16>>,
    /// Those who wait for a free one.
    waiting: WaitList,
}

/// A slot of the other end.
enum Slot {
    Free,
    /// A submission has it, which is not answered.
    Taken(Taken),
    /// Answered, and the answer was not fetched yet.
    Answered(Answer),
}

#[derive(Default)]
struct Taken {
    /// Whether it was sent. The other end cannot have answered it before.
    is_sent: bool,
    /// Whether nobody waits for the answer any more.
    is_forgotten: bool,
    waker: Option<Waker>,
}

/// How a submission was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u32,
    /// The status, if it was a transaction.
    pub(crate) status: Option<LocalBuffer>,
}

impl Outgoing {
    pub(crate) fn new(count: u16) -> Self {
        Outgoing {
            slots: RefCell::new((0..count).map(|_| Slot::Free).collect()),
            free: RefCell::new((0..count).rev().collect()),
            waiting: WaitList::default(),
        }
    }

    /// Takes a free slot. `None` if there is none now.
    pub(crate) fn take(&self) -> Option<u16> {
        let slot = self.free.borrow_mut().pop()?;
        self.slots.borrow_mut()[usize::from(slot)] = Slot::Taken(Taken::default());
        Some(slot)
    }

    /// Waits for a free slot, or until `over`.
    pub(crate) async fn wait(&self, over: &Cell<bool>) -> Option<u16> {
        self.waiting.until(|| if over.get() { Some(None) } else { self.take().map(Some) }).await
    }

    /// Notes that what has this slot is sent now.
    pub(crate) fn sent(&self, slot: u16) {
        if let Slot::Taken(taken) = &mut self.slots.borrow_mut()[usize::from(slot)] {
            taken.is_sent = true;
        }
    }

    /// Notes an answer. [`Errno::EPROTO`] if nothing was sent in this slot.
    pub(crate) fn answer(&self, slot: u16, answer: Answer) -> Result<(), Errno> {
        let mut slots = self.slots.borrow_mut();
        let state = slots.get_mut(usize::from(slot)).ok_or(Errno::EPROTO)?;
        match core::mem::replace(state, Slot::Answered(answer)) {
            Slot::Taken(Taken { is_sent: true, is_forgotten: false, waker }) => {
                drop(slots);
                waker.into_iter().for_each(Waker::wake);
            }
            Slot::Taken(Taken { is_sent: true, .. }) => {
                drop(slots);
                self.release(slot);
            }
            former => {
                *state = former;
                return Err(Errno::EPROTO);
            }
        }
        Ok(())
    }

    /// Whether the slot expects an answer.
    pub(crate) fn is_sent(&self, slot: u16) -> bool {
        let slots = self.slots.borrow();
        matches!(slots.get(usize::from(slot)), Some(Slot::Taken(Taken { is_sent: true, .. })))
    }

    /// Waits for the answer to what this end sent in a slot.
    pub(crate) fn poll(&self, slot: u16, cx: &mut Context<'_>) -> Poll<Answer> {
        match &mut self.slots.borrow_mut()[usize::from(slot)] {
            Slot::Answered(answer) => Poll::Ready(answer.clone()),
            Slot::Taken(taken) => {
                taken.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Slot::Free => unreachable!("its submission still has the slot"),
        }
    }

    /// Gives a slot up: at once if it was answered, and otherwise when it will be.
    pub(crate) fn forget(&self, slot: u16) {
        let mut slots = self.slots.borrow_mut();
        match &mut slots[usize::from(slot)] {
            Slot::Answered(_) => {
                drop(slots);
                self.release(slot);
            }
            Slot::Taken(taken) => taken.is_forgotten = true,
            Slot::Free => unreachable!("its submission still has the slot"),
        }
    }

    fn release(&self, slot: u16) {
        self.slots.borrow_mut()[usize::from(slot)] = Slot::Free;
        self.free.borrow_mut().push(slot);
        self.waiting.wake_one();
    }

    /// Wakes everybody: the connection is over.
    pub(crate) fn wake_all(&self) {
        for slot in &mut *self.slots.borrow_mut() {
            if let Slot::Taken(taken) = slot {
                taken.waker.take().into_iter().for_each(Waker::wake);
            }
        }
        self.waiting.wake_all();
    }
}

/// The slots of this end: its memory for what it receives.
pub(crate) struct Incoming {
    slots: RefCell<Vec<Place>>,
}

/// A slot of this end.
struct Place {
    memory: LocalBuffer,
    busy: bool,
}

impl Incoming {
    pub(crate) fn new(memory: Vec<LocalBuffer>) -> Self {
        let place = |memory| Place { memory, busy: false };
        Incoming { slots: RefCell::new(memory.into_iter().map(place).collect()) }
    }

    /// The memory for `len` bytes that come for a slot. [`Errno::EPROTO`] if the slot is busy, does
    /// not exist or is too small.
    pub(crate) fn receive(&self, slot: u16, len: u32) -> Result<LocalBuffer, Errno> {
        let mut slots = self.slots.borrow_mut();
        let place = slots.get_mut(usize::from(slot)).ok_or(Errno::EPROTO)?;
        if place.busy || len as usize > place.memory.len() {
            return Err(Errno::EPROTO);
        }
        place.busy = true;
        place.memory.make_unique();
        Ok(place.memory.slice(0..len as usize))
    }

    /// Frees a slot for the other end, which is about to be told.
    pub(crate) fn finish(&self, slot: u16) {
        self.slots.borrow_mut()[usize::from(slot)].busy = false;
    }

    /// The memory, for the next connection.
    pub(crate) fn take_memory(&self) -> Vec<LocalBuffer> {
        self.slots.take().into_iter().map(|place| place.memory).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use futures_util::FutureExt;

    const DONE: Answer = Answer { code: 0, status: None };

    impl Outgoing {
        fn send(&self) -> u16 {
            let slot = self.take().unwrap();
            self.sent(slot);
            slot
        }
    }

    #[test]
    fn a_slot_is_free_again_after_its_answer_was_fetched() {
        let slots = Outgoing::new(1);
        let over = Cell::new(false);
        let slot = slots.send();
        assert_eq!(slots.take(), None);
        slots.answer(slot, DONE).unwrap();
        assert_eq!(slots.wait(&over).now_or_never(), None, "the answer was not fetched");
        slots.forget(slot);
        assert_eq!(slots.wait(&over).now_or_never(), Some(Some(slot)));
    }

    #[test]
    fn a_forgotten_slot_is_free_when_the_answer_comes_and_not_before() {
        let slots = Outgoing::new(1);
        let slot = slots.send();
        slots.forget(slot);
        assert_eq!(slots.take(), None);
        slots.answer(slot, DONE).unwrap();
        assert_eq!(slots.take(), Some(slot));
    }

    #[test]
    fn an_answer_that_nobody_expects_breaks_the_protocol() {
        let slots = Outgoing::new(2);
        assert_eq!(slots.answer(2, DONE), Err(Errno::EPROTO), "there is no such slot");
        assert_eq!(slots.answer(1, DONE), Err(Errno::EPROTO), "the slot is free");
        let slot = slots.take().unwrap();
        assert_eq!(slots.answer(slot, DONE), Err(Errno::EPROTO), "it was not sent yet");
        slots.sent(slot);
        slots.answer(slot, DONE).unwrap();
        assert_eq!(slots.answer(slot, DONE), Err(Errno::EPROTO), "it was answered");
    }

    #[test]
    fn the_end_of_a_connection_ends_the_wait_for_a_slot() {
        let slots = Outgoing::new(0);
        assert_eq!(slots.wait(&Cell::new(true)).now_or_never(), Some(None));
    }

    #[test]
    fn what_exceeds_the_slots_breaks_the_protocol() {
        let slots = Incoming::new(vec![LocalBuffer::new(4)]);
        assert!(slots.receive(1, 0).is_err(), "there is no such slot");
        assert!(slots.receive(0, 5).is_err(), "the slot is too small");
        slots.receive(0, 4).unwrap();
        assert!(slots.receive(0, 0).is_err(), "the slot is busy");
        slots.finish(0);
        slots.receive(0, 0).unwrap();
    }

    #[test]
    fn a_kept_body_is_not_overwritten_by_the_next_one() {
        let slots = Incoming::new(vec![LocalBuffer::new(1)]);
        let kept = slots.receive(0, 1).unwrap();
        kept.write(0, b"a");
        slots.finish(0);
        slots.receive(0, 1).unwrap().write(0, b"b");
        assert_eq!(kept.to_vec(), b"a");
    }
}
