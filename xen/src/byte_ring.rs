//! The byte rings in xenstore's and the console's pages.
//!
//! They are [`frontend`](crate::frontend)'s byte rings, without event indexes and without an error
//! word. Their users send an event for each advance. Only one index is kept in private memory, in a
//! `Cell`: the console writes also while a crash interrupts another write.

use crate::frontend::bytes::{self, Direction, NotifyPolicy, Region, copy_in, copy_out};
use crate::{Errno, Shared};
use core::cell::Cell;
use core::sync::atomic::Ordering::Acquire;

/// A ring of `size` bytes at `start`, with its indexes at `cons` and `prod`, all in one page.
pub(crate) const fn layout(start: usize, size: usize, cons: usize, prod: usize) -> Direction {
    // The error word is never accessed.
    Direction { cons, prod, error: 0, events: None, start, size: size as u32 }
}

/// The end that writes.
pub(crate) struct Producer {
    region: Region<'static>,
    direction: Direction,
    prod: Cell<u32>,
}

impl Producer {
    /// Continues at the present index of the ring.
    pub(crate) fn new(page: Shared<'static>, direction: Direction) -> Self {
        let region = Region { indexes: page, data: page };
        let producer = Producer { region, direction, prod: Cell::new(0) };
        producer.reopen();
        producer
    }

    /// Reloads the index after a restore.
    pub(crate) fn reopen(&self) {
        self.prod.set(self.region.indexes.load_u32(self.direction.prod, Acquire));
    }

    fn ring(&self) -> bytes::Producer {
        bytes::Producer::at(self.direction, self.prod.get())
    }

    /// The free bytes.
    pub(crate) fn room(&self) -> Result<usize, Errno> {
        Ok((self.direction.size - self.ring().unread(self.region)?) as usize)
    }

    /// Whether the peer has taken everything.
    pub(crate) fn is_drained(&self) -> Result<bool, Errno> {
        Ok(self.ring().unread(self.region)? == 0)
    }

    /// Writes as much as fits, and returns how much.
    pub(crate) fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        let mut ring = self.ring();
        let count = copy_in(&ring.room(self.region)?, from);
        self.prod.set(self.prod.get().wrapping_add(count as u32));
        let _ = ring.advance(self.region, count);
        ring.arm(self.region, 0);
        Ok(count)
    }
}

/// The end that reads.
pub(crate) struct Consumer {
    region: Region<'static>,
    direction: Direction,
    cons: Cell<u32>,
}

impl Consumer {
    /// Continues at the present index of the ring.
    pub(crate) fn new(page: Shared<'static>, direction: Direction) -> Self {
        let region = Region { indexes: page, data: page };
        let consumer = Consumer { region, direction, cons: Cell::new(0) };
        consumer.reopen();
        consumer
    }

    /// Reloads the index after a restore.
    pub(crate) fn reopen(&self) {
        self.cons.set(self.region.indexes.load_u32(self.direction.cons, Acquire));
    }

    /// Reads as much as there is and fits, and returns how much.
    pub(crate) fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        let policy = NotifyPolicy::HalfFull;
        let mut ring = bytes::Consumer::at(self.direction, policy, self.cons.get());
        let count = copy_out(&ring.data(self.region)?, to);
        self.cons.set(self.cons.get().wrapping_add(count as u32));
        let _ = ring.advance(self.region, count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::page;
    use core::sync::atomic::Ordering::Relaxed;
    use proptest::prelude::*;

    const RING: Direction = layout(0, 16, 16, 20);

    #[test]
    fn bytes_pass_over_the_end_of_the_ring_and_the_indexes_wrap() {
        let page = page();
        for index in [RING.cons, RING.prod] {
            page.store_u32(index, u32::MAX - 4, Relaxed);
        }
        let (producer, consumer) = (Producer::new(page, RING), Consumer::new(page, RING));
        let mut back = [0; 10];
        for round in 0..20u8 {
            assert_eq!(producer.write(&[round; 10]), Ok(10));
            assert_eq!(consumer.read(&mut back), Ok(10));
            assert_eq!(back, [round; 10]);
        }
        assert_eq!(producer.write(&[1; 20]), Ok(16), "no more than fits");
        assert_eq!(producer.write(&[1]), Ok(0));
        assert_eq!(producer.is_drained(), Ok(false));
    }

    #[test]
    fn an_impossible_index_is_an_error() {
        let page = page();
        let (producer, consumer) = (Producer::new(page, RING), Consumer::new(page, RING));
        page.store_u32(RING.prod, 17, Relaxed);
        assert_eq!(consumer.read(&mut [0; 4]), Err(Errno::EPROTO));
        page.store_u32(RING.cons, 1, Relaxed);
        assert_eq!(producer.write(&[0; 4]), Err(Errno::EPROTO));
    }

    #[test]
    fn a_peer_that_moves_this_sides_index_changes_nothing() {
        let page = page();
        let (producer, consumer) = (Producer::new(page, RING), Consumer::new(page, RING));
        producer.write(b"abc").unwrap();
        page.store_u32(RING.cons, 0, Relaxed);
        let mut back = [0; 2];
        consumer.read(&mut back).unwrap();
        page.store_u32(RING.cons, 0, Relaxed);
        assert_eq!(consumer.read(&mut back), Ok(1));
        assert_eq!(back[0], b'c');
    }

    #[test]
    fn bytes_pass_in_order_between_two_cpus() {
        const BYTES: usize = 200_000;
        let page = page();
        let (producer, consumer) = (Producer::new(page, RING), Consumer::new(page, RING));
        let writer = std::thread::spawn(move || {
            let mut sent = 0;
            while sent < BYTES {
                let next: Vec<u8> = (sent..BYTES.min(sent + 11)).map(|n| n as u8).collect();
                sent += producer.write(&next).unwrap();
                std::thread::yield_now();
            }
        });
        let mut received = 0;
        let mut bytes = [0; 7];
        while received < BYTES {
            let count = consumer.read(&mut bytes).unwrap();
            for &byte in &bytes[..count] {
                assert_eq!(byte, received as u8, "byte {received}");
                received += 1;
            }
            std::thread::yield_now();
        }
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn no_index_makes_it_panic(prod: u32, cons: u32, at: u32) {
            let page = page();
            page.store_u32(RING.prod, at, Relaxed);
            page.store_u32(RING.cons, at, Relaxed);
            let (producer, consumer) = (Producer::new(page, RING), Consumer::new(page, RING));
            page.store_u32(RING.prod, prod, Relaxed);
            page.store_u32(RING.cons, cons, Relaxed);
            let read = consumer.read(&mut [0; 32]);
            prop_assert_eq!(read.is_ok(), prod.wrapping_sub(at) <= 16);
            page.store_u32(RING.cons, cons, Relaxed);
            let written = producer.write(&[0; 32]);
            prop_assert_eq!(written.is_ok(), at.wrapping_sub(cons) <= 16);
        }
    }
}
