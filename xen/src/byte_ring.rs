//! The rings of bytes in xenstore's and the console's pages: power-of-two sizes, free-running
//! indexes.
//!
//! This side's own index is kept here and only shown to the peer; the peer's is read once for each
//! operation and checked.

use crate::{Errno, Shared};
use core::cell::Cell;
use core::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use core::sync::atomic::fence;

/// Where a ring lies in its page, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) data: usize,
    pub(crate) size: u32,
    pub(crate) cons: usize,
    pub(crate) prod: usize,
}

impl Layout {
    /// Copies between a private slice and the ring, from index `from` on, in one piece or two.
    fn pieces(&self, from: u32, count: usize, mut copy: impl FnMut(usize, usize, usize)) {
        let start = (from & (self.size - 1)) as usize;
        let first = count.min(self.size as usize - start);
        copy(self.data + start, 0, first);
        if first < count {
            copy(self.data, first, count);
        }
    }

    /// How many bytes lie in the ring. [`Errno::EPROTO`] when the indexes cannot be.
    fn used(&self, prod: u32, cons: u32) -> Result<u32, Errno> {
        let used = prod.wrapping_sub(cons);
        if used > self.size { Err(Errno::EPROTO) } else { Ok(used) }
    }
}

/// The end that writes.
pub(crate) struct Producer {
    page: Shared<'static>,
    layout: Layout,
    prod: Cell<u32>,
}

impl Producer {
    /// Goes on where the ring is.
    pub(crate) fn new(page: Shared<'static>, layout: Layout) -> Self {
        Producer { page, layout, prod: Cell::new(page.load_u32(layout.prod, Acquire)) }
    }

    /// Goes on where the ring is now: it is another one.
    pub(crate) fn reopen(&self) {
        self.prod.set(self.page.load_u32(self.layout.prod, Acquire));
    }

    /// Bytes for which there is room.
    pub(crate) fn room(&self) -> Result<usize, Errno> {
        let cons = self.page.load_u32(self.layout.cons, Acquire);
        Ok((self.layout.size - self.layout.used(self.prod.get(), cons)?) as usize)
    }

    /// Whether the peer has taken everything.
    pub(crate) fn is_drained(&self) -> Result<bool, Errno> {
        Ok(self.room()? == self.layout.size as usize)
    }

    /// Writes what fits, and returns how much that was.
    pub(crate) fn write(&self, from: &[u8]) -> Result<usize, Errno> {
        let count = from.len().min(self.room()?);
        if count > 0 {
            // The room was read before it is written to.
            fence(SeqCst);
            let prod = self.prod.get();
            self.layout
                .pieces(prod, count, |at, start, end| self.page.write(at, &from[start..end]));
            let prod = prod.wrapping_add(count as u32);
            self.prod.set(prod);
            self.page.store_u32(self.layout.prod, prod, Release);
            fence(SeqCst);
        }
        Ok(count)
    }
}

/// The end that reads.
pub(crate) struct Consumer {
    page: Shared<'static>,
    layout: Layout,
    cons: Cell<u32>,
}

impl Consumer {
    /// Goes on where the ring is.
    pub(crate) fn new(page: Shared<'static>, layout: Layout) -> Self {
        Consumer { page, layout, cons: Cell::new(page.load_u32(layout.cons, Acquire)) }
    }

    /// Goes on where the ring is now: it is another one.
    pub(crate) fn reopen(&self) {
        self.cons.set(self.page.load_u32(self.layout.cons, Acquire));
    }

    /// Reads what is there and fits, and returns how much that was.
    pub(crate) fn read(&self, to: &mut [u8]) -> Result<usize, Errno> {
        let cons = self.cons.get();
        let prod = self.page.load_u32(self.layout.prod, Acquire);
        let count = to.len().min(self.layout.used(prod, cons)? as usize);
        if count > 0 {
            self.layout
                .pieces(cons, count, |at, start, end| self.page.read(at, &mut to[start..end]));
            // The bytes were read before their room is given away.
            fence(SeqCst);
            let cons = cons.wrapping_add(count as u32);
            self.cons.set(cons);
            self.page.store_u32(self.layout.cons, cons, Release);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::page;
    use core::sync::atomic::Ordering::Relaxed;
    use proptest::prelude::*;

    const RING: Layout = Layout { data: 0, size: 16, cons: 16, prod: 20 };

    #[test]
    fn bytes_pass_over_the_rings_end_and_the_indexes_wrap() {
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
    fn an_index_that_cannot_be_is_an_error() {
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
