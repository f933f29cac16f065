//! A data ring: one direction of a connection, as seen by the end that fills it or empties it.
//!
//! Indexes are free-running `u32`s, masked by the size. `Acquire` loads of the peer's index and `Release`
//! stores of one's own are the barriers that the protocol asks for: bytes are copied in only after
//! the room was seen, and seen only after they were copied in; likewise on the way out.
//!
//! Who goes to sleep first calls `arm`, then looks once more. Where the two ends have agreed on event
//! indexes ([`EventIndexes`](crate::wire::EventIndexes)), `arm` says at which index this end wants to be
//! told, and the other end sends one event when it gets there and none before. In the plain protocol
//! neither end says whether it sleeps: every advance of a producer is followed by an event, and those
//! of a consumer by its best guess ([`Guess`]).

use super::Notify;
use crate::wire::{Direction, Region};
use core::sync::atomic::Ordering;
use xen::shared::fence;
use xen::{Errno, Shared};

/// The number of bytes in the pieces that [`Producer::room`] and [`Consumer::data`] give.
pub fn len(pieces: &[Shared<'_>; 2]) -> usize {
    pieces[0].len() + pieces[1].len()
}

/// Copies from the pieces into private memory, as much as fits, and returns how many bytes that was.
#[inline]
pub fn copy_out(data: &[Shared<'_>; 2], to: &mut [u8]) -> usize {
    let first = data[0].len().min(to.len());
    let (head, rest) = to.split_at_mut(first);
    data[0].read(0, head);
    let second = data[1].len().min(rest.len());
    data[1].read(0, &mut rest[..second]);
    first + second
}

/// Copies private bytes into the pieces, as much as fits, and returns how many bytes that was.
#[inline]
pub fn copy_in(room: &[Shared<'_>; 2], from: &[u8]) -> usize {
    let first = room[0].len().min(from.len());
    let (head, rest) = from.split_at(first);
    room[0].write(0, head);
    let second = room[1].len().min(rest.len());
    room[1].write(0, &rest[..second]);
    first + second
}

/// The `count` bytes from index `from` on: one piece, or two around the end of the ring.
fn pieces<'a>(way: &Direction, region: Region<'a>, from: u32, count: u32) -> [Shared<'a>; 2] {
    let at = from & (way.size - 1);
    let first = count.min(way.size - at);
    [
        region.data.slice(way.start + at as usize, first as usize),
        region.data.slice(way.start, (count - first) as usize),
    ]
}

/// The error that the backend left for this direction. It may come before the ring is empty.
fn error(way: &Direction, region: Region<'_>) -> Option<Errno> {
    let error = region.indexes.load_u32(way.error, Ordering::Acquire) as i32;
    // A positive number is against the rules, and an error all the same.
    (error != 0).then(|| Errno(error.checked_abs().unwrap_or(i32::MAX)))
}

/// Whether an index has come to where the other end wants to be told: as in `ring.h`.
fn passed(old: u32, new: u32, event: u32) -> Notify {
    if new.wrapping_sub(event) < new.wrapping_sub(old) { Notify::Due } else { Notify::NotDue }
}

/// When a consumer tells its producer of room, as long as the producer does not say when it wants to be
/// told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// When the ring was at least half full: a producer sleeps only when it has found little room.
    HalfFull,
    /// When the ring was full, or is empty now: a producer may wait for that, too.
    FullOrEmpty,
}

/// The end that fills.
#[derive(Debug)]
pub struct Producer {
    way: Direction,
    prod: u32,
    /// The room that was last seen and not yet used.
    room: u32,
}

impl Producer {
    /// The filling end of a new ring.
    pub fn new(way: Direction) -> Self {
        Producer::at(way, 0)
    }

    /// The filling end of a ring through which so many bytes have gone already.
    pub(super) fn at(way: Direction, prod: u32) -> Self {
        Producer { way, prod, room: 0 }
    }

    /// Where the next bytes may go: empty pieces when the ring is full. [`Errno::EPROTO`] when the
    /// peer's index is impossible.
    #[inline]
    pub fn room<'a>(&mut self, region: Region<'a>) -> Result<[Shared<'a>; 2], Errno> {
        self.room = self.way.size - self.unread(region)?;
        Ok(pieces(&self.way, region, self.prod, self.room))
    }

    /// How many bytes the peer has not taken yet.
    #[inline]
    pub fn unread(&self, region: Region<'_>) -> Result<u32, Errno> {
        let cons = region.indexes.load_u32(self.way.cons, Ordering::Acquire);
        let unread = self.prod.wrapping_sub(cons);
        if unread > self.way.size { Err(Errno::EPROTO) } else { Ok(unread) }
    }

    /// Hands over the first `count` bytes of the room that [`room`](Producer::room) last gave.
    ///
    /// # Panics
    /// When it gave less.
    #[inline]
    pub fn advance(&mut self, region: Region<'_>, count: usize) -> Notify {
        assert!(count <= self.room as usize, "{count} bytes put where {} had room", self.room);
        if count == 0 {
            return Notify::NotDue;
        }
        self.room -= count as u32;
        let old = self.prod;
        self.prod = old.wrapping_add(count as u32);
        region.indexes.store_u32(self.way.prod, self.prod, Ordering::Release);
        let Some(events) = self.way.events else { return Notify::Due };
        // Either the consumer's last look sees the new index, or this sees what it armed before that.
        fence(Ordering::SeqCst);
        passed(old, self.prod, region.indexes.load_u32(events.prod, Ordering::Relaxed))
    }

    /// Asks for an event when there is room for `wanted` bytes, at most the size of the ring. Look once
    /// more before going to sleep.
    #[inline]
    pub fn arm(&self, region: Region<'_>, wanted: u32) {
        if let Some(events) = self.way.events {
            let event = self.prod.wrapping_sub(self.way.size).wrapping_add(wanted);
            region.indexes.store_u32(events.cons, event, Ordering::Relaxed);
        }
        // The plain protocol's consumer guesses by what was written before the last look.
        fence(Ordering::SeqCst);
    }

    /// The error word of this direction.
    pub fn error(&self, region: Region<'_>) -> Option<Errno> {
        error(&self.way, region)
    }

    /// Leaves an error for the consumer: a backend's right. Follow it with an event.
    pub fn set_error(&self, region: Region<'_>, error: Errno) {
        region.indexes.store_u32(self.way.error, error.negated() as u32, Ordering::Release);
    }
}

/// The end that empties.
#[derive(Debug)]
pub struct Consumer {
    way: Direction,
    guess: Guess,
    cons: u32,
    /// The data that was last seen and not yet taken.
    ready: u32,
}

impl Consumer {
    /// The emptying end of a new ring.
    pub fn new(way: Direction, guess: Guess) -> Self {
        Consumer::at(way, guess, 0)
    }

    /// The emptying end of a ring through which so many bytes have gone already.
    pub(super) fn at(way: Direction, guess: Guess, cons: u32) -> Self {
        Consumer { way, guess, cons, ready: 0 }
    }

    /// What is there to be taken: empty pieces when there is nothing. [`Errno::EPROTO`] when the
    /// peer's index is impossible.
    #[inline]
    pub fn data<'a>(&mut self, region: Region<'a>) -> Result<[Shared<'a>; 2], Errno> {
        let prod = region.indexes.load_u32(self.way.prod, Ordering::Acquire);
        let ready = prod.wrapping_sub(self.cons);
        if ready > self.way.size {
            return Err(Errno::EPROTO);
        }
        self.ready = ready;
        Ok(pieces(&self.way, region, self.cons, ready))
    }

    /// Gives the room of the first `count` bytes of what [`data`](Consumer::data) last gave back to
    /// the producer.
    ///
    /// # Panics
    /// When it gave less.
    #[inline]
    pub fn advance(&mut self, region: Region<'_>, count: usize) -> Notify {
        assert!(count <= self.ready as usize, "{count} bytes taken where {} were", self.ready);
        if count == 0 {
            return Notify::NotDue;
        }
        self.ready -= count as u32;
        let old = self.cons;
        self.cons = old.wrapping_add(count as u32);
        region.indexes.store_u32(self.way.cons, self.cons, Ordering::Release);
        // Either the producer's last look before it sleeps sees the new index, or this sees all that it
        // has armed or written before that.
        fence(Ordering::SeqCst);
        if let Some(events) = self.way.events {
            return passed(old, self.cons, region.indexes.load_u32(events.cons, Ordering::Relaxed));
        }
        let prod = region.indexes.load_u32(self.way.prod, Ordering::Relaxed);
        let (before, left) = (prod.wrapping_sub(old), prod.wrapping_sub(self.cons));
        let may_wait = match self.guess {
            Guess::HalfFull => before >= self.way.size / 2,
            Guess::FullOrEmpty => before >= self.way.size || left == 0,
        };
        if may_wait { Notify::Due } else { Notify::NotDue }
    }

    /// Asks for an event at the next byte. Look once more before going to sleep.
    #[inline]
    pub fn arm(&self, region: Region<'_>) {
        if let Some(events) = self.way.events {
            let event = self.cons.wrapping_add(1);
            region.indexes.store_u32(events.prod, event, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// The error word of this direction. Take the data first: what came before the error is good.
    pub fn error(&self, region: Region<'_>) -> Option<Errno> {
        error(&self.way, region)
    }

    /// Leaves an error for the producer: a backend's right. Follow it with an event.
    pub fn set_error(&self, region: Region<'_>, error: Errno) {
        region.indexes.store_u32(self.way.error, error.negated() as u32, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Dialect, Extensions, Layout, Protocol};
    use xen::PAGE_SIZE;
    use xen::testing::memory;

    fn ring() -> (Layout, Region<'static>) {
        let layout = Protocol::from(Dialect::PvCalls).layout(1).unwrap();
        (layout, layout.split(memory(layout.pages * PAGE_SIZE)))
    }

    #[test]
    fn bytes_come_out_in_the_order_they_went_in_across_the_end_of_the_ring() {
        let (layout, region) = ring();
        // Both indexes start just before they wrap around.
        let start = u32::MAX - 5000;
        let mut producer = Producer::at(layout.output, start);
        let mut consumer = Consumer::at(layout.output, Guess::HalfFull, start);
        region.indexes.store_u32(layout.output.prod, start, Ordering::Relaxed);
        region.indexes.store_u32(layout.output.cons, start, Ordering::Relaxed);
        let (mut sent, mut received) = (0u8, 0u8);
        for step in (1..4000).step_by(37) {
            let room = producer.room(region).unwrap();
            let put = len(&room).min(step);
            for at in 0..put {
                let (piece, at) =
                    if at < room[0].len() { (room[0], at) } else { (room[1], at - room[0].len()) };
                piece.write(at, &[sent]);
                sent = sent.wrapping_add(1);
            }
            let _ = producer.advance(region, put);
            let data = consumer.data(region).unwrap();
            assert_eq!(len(&data), put);
            for piece in data {
                for at in 0..piece.len() {
                    let mut byte = [0];
                    piece.read(at, &mut byte);
                    assert_eq!(byte[0], received);
                    received = received.wrapping_add(1);
                }
            }
            let _ = consumer.advance(region, put);
        }
    }

    #[test]
    fn a_full_ring_has_no_room_and_an_empty_one_no_data() {
        let (layout, region) = ring();
        let mut producer = Producer::new(layout.input);
        let mut consumer = Consumer::new(layout.input, Guess::HalfFull);
        assert_eq!(len(&consumer.data(region).unwrap()), 0);
        assert_eq!(len(&producer.room(region).unwrap()), 4096);
        assert!(producer.advance(region, 4096).is_due());
        assert!(!producer.advance(region, 0).is_due());
        assert_eq!(len(&producer.room(region).unwrap()), 0);
        assert_eq!(producer.unread(region), Ok(4096));
        assert_eq!(len(&consumer.data(region).unwrap()), 4096);
    }

    #[test]
    fn a_producer_is_told_of_room_when_it_may_have_found_little() {
        let (layout, region) = ring();
        let mut producer = Producer::new(layout.input);
        let mut consumer = Consumer::new(layout.input, Guess::HalfFull);
        for (written, taken, told) in [(2047, 2047, false), (4096, 1, true), (0, 4095, true)] {
            producer.room(region).unwrap();
            let _ = producer.advance(region, written);
            consumer.data(region).unwrap();
            assert_eq!(consumer.advance(region, taken).is_due(), told);
        }
    }

    #[test]
    fn a_producer_is_told_when_the_ring_was_full_or_is_empty() {
        let (layout, region) = ring();
        let mut producer = Producer::new(layout.output);
        let mut consumer = Consumer::new(layout.output, Guess::FullOrEmpty);
        for (written, taken, told) in [(4095, 4094, false), (0, 1, true), (4096, 1, true)] {
            producer.room(region).unwrap();
            let _ = producer.advance(region, written);
            consumer.data(region).unwrap();
            assert_eq!(consumer.advance(region, taken).is_due(), told);
        }
    }

    #[test]
    fn with_event_indexes_each_end_is_told_when_it_wants_to_be_and_only_then() {
        let (_, region) = ring();
        let agreed = Protocol { extensions: Extensions::EVENT_INDEX, ..Dialect::PvCalls.into() };
        let way = agreed.layout(1).unwrap().output;
        for start in [0, u32::MAX - 3] {
            for index in [way.prod, way.cons] {
                region.indexes.store_u32(index, start, Ordering::Relaxed);
            }
            for index in [way.events.unwrap().prod, way.events.unwrap().cons] {
                region.indexes.store_u32(index, start, Ordering::Relaxed);
            }
            let mut producer = Producer::at(way, start);
            let mut consumer = Consumer::at(way, Guess::HalfFull, start);
            let mut put = |count| {
                producer.room(region).unwrap();
                let due = producer.advance(region, count).is_due();
                (due, producer.arm(region, 4096 - 10))
            };
            let mut take = |count| {
                consumer.data(region).unwrap();
                consumer.advance(region, count).is_due()
            };
            assert!(!put(5).0, "nobody waits");
            assert!(!take(5), "there is as much room as is wanted");
            Consumer::at(way, Guess::HalfFull, start.wrapping_add(5)).arm(region);
            assert!(put(3).0, "somebody waits");
            assert!(!put(20).0, "and was told");
            assert!(!take(12), "11 bytes are left");
            assert!(take(1), "room for all but 10");
            assert!(!take(10), "which was told");
        }
    }

    #[test]
    fn a_peer_with_impossible_indexes_is_found_out() {
        let (layout, region) = ring();
        for index in [4097, 1 << 31, u32::MAX] {
            region.indexes.store_u32(layout.input.prod, index, Ordering::Relaxed);
            assert!(Consumer::new(layout.input, Guess::HalfFull).data(region).is_err());
            region.indexes.store_u32(layout.output.cons, index, Ordering::Relaxed);
            assert_eq!(
                Producer::new(layout.output).room(region).is_err(),
                // The producer is at 0: u32::MAX means that 1 byte is unread, which it may be.
                index != u32::MAX
            );
        }
    }

    #[test]
    fn an_error_is_an_error_whatever_its_sign() {
        let (layout, region) = ring();
        let consumer = Consumer::new(layout.input, Guess::HalfFull);
        assert_eq!(consumer.error(region), None);
        Producer::new(layout.input).set_error(region, Errno::ENOTCONN);
        assert_eq!(consumer.error(region), Some(Errno::ENOTCONN));
        for (word, error) in [(5, 5), (i32::MIN, i32::MAX)] {
            region.indexes.store_u32(layout.input.error, word as u32, Ordering::Relaxed);
            assert_eq!(consumer.error(region), Some(Errno(error)));
        }
    }
}
