//! A ring of bytes: one direction of a connection, as seen by the end that fills it or empties it.
//!
//! Indexes are free-running `u32`s, masked by the size. Each end keeps its own index in private
//! memory and only publishes it. It reads the peer's index once for each look, and checks it.
//! `Acquire` loads of the peer's index and `Release` stores of the own one order the copies: bytes
//! are copied in only after the room was seen, and are seen only after they were copied in. The
//! same holds on the way out.
//!
//! An end that goes to sleep first calls `arm`, then looks once more. If the two ends have agreed
//! on [`EventIndexes`], `arm` states at which index this end needs an event, and the other end
//! sends one event when it gets there and none before. Otherwise neither end states whether it
//! sleeps: every advance of a producer is followed by an event, and an advance of a consumer
//! according to its [`NotifyPolicy`].

use super::ring::Notify;
use crate::shared::fence;
use crate::{Errno, Shared};
use core::sync::atomic::Ordering;

/// One direction of a pair of byte rings: its buffer, its two indexes and its error word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Offset of the consumer's index (`u32`) in the indexes page.
    pub cons: usize,
    /// Offset of the producer's index (`u32`) in the indexes page.
    pub prod: usize,
    /// Offset of the error word (`i32`) in the indexes page.
    pub error: usize,
    /// The event indexes, if the ends agreed on them.
    pub events: Option<EventIndexes>,
    /// Offset of the first byte in the data pages.
    pub start: usize,
    /// The number of bytes, a power of two.
    pub size: u32,
}

/// Offsets of one direction's event indexes (`u32`) in the indexes page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventIndexes {
    /// Written by the consumer: it requests an event when the producer's index reaches this value.
    pub prod: usize,
    /// Written by the producer: it requests an event when the consumer's index reaches this value.
    pub cons: usize,
}

/// The memory of a pair of byte rings, wherever an end has mapped it.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    /// The indexes page.
    pub indexes: Shared<'a>,
    /// The data pages, one after the other.
    pub data: Shared<'a>,
}

/// The number of bytes in the pieces that [`Producer::room`] and [`Consumer::data`] give.
pub fn len(pieces: &[Shared<'_>; 2]) -> usize {
    pieces[0].len() + pieces[1].len()
}

/// Copies from the pieces into private memory, as much as fits, and returns how many bytes that
/// was.
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

/// The first `at` bytes of the pieces, or all if there are fewer, and the rest.
#[inline]
pub fn split_at<'a>([one, two]: [Shared<'a>; 2], at: usize) -> ([Shared<'a>; 2], [Shared<'a>; 2]) {
    let first = at.min(one.len());
    let second = (at - first).min(two.len());
    let rest = |piece: Shared<'a>, from| piece.slice(from, piece.len() - from);
    ([one.slice(0, first), two.slice(0, second)], [rest(one, first), rest(two, second)])
}

/// The `count` bytes from index `from` on: one piece, or two around the end of the ring.
fn pieces<'a>(direction: &Direction, region: Region<'a>, from: u32, count: u32) -> [Shared<'a>; 2] {
    let at = from & (direction.size - 1);
    let first = count.min(direction.size - at);
    [
        region.data.slice(direction.start + at as usize, first as usize),
        region.data.slice(direction.start, (count - first) as usize),
    ]
}

/// The error word of a direction. It may be set before the ring is empty.
fn error(direction: &Direction, region: Region<'_>) -> Option<Errno> {
    let error = region.indexes.load_u32(direction.error, Ordering::Acquire) as i32;
    // A positive number breaks the protocol, but is an error too.
    (error != 0).then(|| Errno(error.checked_abs().unwrap_or(i32::MAX)))
}

/// When a consumer sends an event about room, if the ends have not agreed on [`EventIndexes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotifyPolicy {
    /// If the ring was at least half full: a producer sleeps only if it has found little room.
    HalfFull,
    /// If the ring was full, or is empty now: a producer may wait for that too.
    FullOrEmpty,
}

/// The end that fills a ring.
///
/// # Example
/// ```
/// use xen::frontend::{Consumer, Direction, NotifyPolicy, Producer, Region, copy_in, copy_out};
/// # let mut memory = [0u64; 512];
/// # // SAFETY: the array outlives the page, and nothing else accesses it.
/// # let page = unsafe { xen::Shared::new(memory.as_mut_ptr().cast(), 4096) };
/// let region = Region { indexes: page.slice(0, 64), data: page.slice(64, 1024) };
/// let direction = Direction { cons: 0, prod: 4, error: 8, events: None, start: 0, size: 1024 };
/// let mut producer = Producer::new(direction);
/// let mut consumer = Consumer::new(direction, NotifyPolicy::HalfFull);
///
/// let count = copy_in(&producer.room(region)?, b"hello");
/// assert!(producer.advance(region, count).is_due());
///
/// let mut bytes = [0; 16];
/// let count = copy_out(&consumer.data(region)?, &mut bytes);
/// assert!(!consumer.advance(region, count).is_due(), "the ring was nearly empty");
/// assert_eq!(&bytes[..count], b"hello");
/// # Ok::<(), xen::Errno>(())
/// ```
#[derive(Debug)]
pub struct Producer {
    direction: Direction,
    prod: u32,
    /// The room that was last seen and not used yet.
    room: u32,
}

impl Producer {
    /// The filling end of a new ring.
    pub fn new(direction: Direction) -> Self {
        Producer::at(direction, 0)
    }

    /// The filling end of a ring through which `prod` bytes have already passed.
    #[doc(hidden)]
    pub fn at(direction: Direction, prod: u32) -> Self {
        Producer { direction, prod, room: 0 }
    }

    /// Where the next bytes may go: empty pieces if the ring is full. [`Errno::EPROTO`] if the
    /// peer's index is impossible.
    #[inline]
    pub fn room<'a>(&mut self, region: Region<'a>) -> Result<[Shared<'a>; 2], Errno> {
        self.room = self.direction.size - self.unread(region)?;
        Ok(pieces(&self.direction, region, self.prod, self.room))
    }

    /// How many bytes the peer has not taken yet. [`Errno::EPROTO`] as for
    /// [`room`](Producer::room).
    #[inline]
    pub fn unread(&self, region: Region<'_>) -> Result<u32, Errno> {
        let cons = region.indexes.load_u32(self.direction.cons, Ordering::Acquire);
        let unread = self.prod.wrapping_sub(cons);
        if unread > self.direction.size { Err(Errno::EPROTO) } else { Ok(unread) }
    }

    /// Hands over the first `count` bytes of the room that [`room`](Producer::room) last gave.
    ///
    /// # Panics
    /// If that had less room.
    #[inline]
    pub fn advance(&mut self, region: Region<'_>, count: usize) -> Notify {
        assert!(count <= self.room as usize, "{count} bytes written, but {} had room", self.room);
        if count == 0 {
            return Notify::NotDue;
        }
        self.room -= count as u32;
        let old = self.prod;
        self.prod = old.wrapping_add(count as u32);
        region.indexes.store_u32(self.direction.prod, self.prod, Ordering::Release);
        let Some(events) = self.direction.events else { return Notify::Due };
        // Either the consumer's last look sees the new index, or this load sees what it armed
        // before.
        fence(Ordering::SeqCst);
        Notify::if_passed(old, self.prod, region.indexes.load_u32(events.prod, Ordering::Relaxed))
    }

    /// Asks for an event when there is room for `wanted` bytes, at most the size of the ring. The
    /// caller must look once more before it sleeps.
    #[inline]
    pub fn arm(&self, region: Region<'_>, wanted: u32) {
        if let Some(events) = self.direction.events {
            let event = self.prod.wrapping_sub(self.direction.size).wrapping_add(wanted);
            region.indexes.store_u32(events.cons, event, Ordering::Relaxed);
        }
        // Without event indexes, the consumer decides by what was written before the last look.
        fence(Ordering::SeqCst);
    }

    /// The error word of this direction.
    pub fn error(&self, region: Region<'_>) -> Option<Errno> {
        error(&self.direction, region)
    }

    /// Sets the error word for the consumer, which only a backend may do. An event must follow.
    pub fn set_error(&self, region: Region<'_>, error: Errno) {
        region.indexes.store_u32(self.direction.error, error.negated() as u32, Ordering::Release);
    }
}

/// The end that empties a ring.
#[derive(Debug)]
pub struct Consumer {
    direction: Direction,
    policy: NotifyPolicy,
    cons: u32,
    /// The data that was last seen and not taken yet.
    ready: u32,
}

impl Consumer {
    /// The emptying end of a new ring.
    pub fn new(direction: Direction, policy: NotifyPolicy) -> Self {
        Consumer::at(direction, policy, 0)
    }

    /// The emptying end of a ring through which `cons` bytes have already passed.
    #[doc(hidden)]
    pub fn at(direction: Direction, policy: NotifyPolicy, cons: u32) -> Self {
        Consumer { direction, policy, cons, ready: 0 }
    }

    /// The bytes to take next: empty pieces if the ring is empty. [`Errno::EPROTO`] if the peer's
    /// index is impossible.
    #[inline]
    pub fn data<'a>(&mut self, region: Region<'a>) -> Result<[Shared<'a>; 2], Errno> {
        let prod = region.indexes.load_u32(self.direction.prod, Ordering::Acquire);
        let ready = prod.wrapping_sub(self.cons);
        if ready > self.direction.size {
            return Err(Errno::EPROTO);
        }
        self.ready = ready;
        Ok(pieces(&self.direction, region, self.cons, ready))
    }

    /// Frees the first `count` bytes that [`data`](Consumer::data) last gave, as room for the
    /// producer.
    ///
    /// # Panics
    /// If that were fewer.
    #[inline]
    pub fn advance(&mut self, region: Region<'_>, count: usize) -> Notify {
        assert!(count <= self.ready as usize, "{count} bytes taken, but {} were ready", self.ready);
        if count == 0 {
            return Notify::NotDue;
        }
        self.ready -= count as u32;
        let old = self.cons;
        self.cons = old.wrapping_add(count as u32);
        region.indexes.store_u32(self.direction.cons, self.cons, Ordering::Release);
        // Either the producer's last look before it sleeps sees the new index, or the loads below
        // see all that it armed or wrote before.
        fence(Ordering::SeqCst);
        if let Some(events) = self.direction.events {
            return Notify::if_passed(
                old,
                self.cons,
                region.indexes.load_u32(events.cons, Ordering::Relaxed),
            );
        }
        let prod = region.indexes.load_u32(self.direction.prod, Ordering::Relaxed);
        let (before, left) = (prod.wrapping_sub(old), prod.wrapping_sub(self.cons));
        let may_wait = match self.policy {
            NotifyPolicy::HalfFull => before >= self.direction.size / 2,
            NotifyPolicy::FullOrEmpty => before >= self.direction.size || left == 0,
        };
        if may_wait { Notify::Due } else { Notify::NotDue }
    }

    /// Asks for an event at the next byte. The caller must look once more before it sleeps.
    #[inline]
    pub fn arm(&self, region: Region<'_>) {
        if let Some(events) = self.direction.events {
            let event = self.cons.wrapping_add(1);
            region.indexes.store_u32(events.prod, event, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// The error word of this direction. Bytes that came before the error are valid and must be
    /// taken first.
    pub fn error(&self, region: Region<'_>) -> Option<Errno> {
        error(&self.direction, region)
    }

    /// Sets the error word for the producer, which only a backend may do. An event must follow.
    pub fn set_error(&self, region: Region<'_>, error: Errno) {
        region.indexes.store_u32(self.direction.error, error.negated() as u32, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
