//! The blocks that were used last, kept in memory.

use crate::blocks::Blocks;
use crate::protocol::{BLOCK, Failure};
use alloc::collections::BTreeMap;
use core::cell::RefCell;
use core::ops::Range;
use idc::LocalBuffer;

/// Other blocks, of which the latest ones are in memory. Every write goes through to them before it
/// is complete.
///
/// It relies on a [`server`](crate::server) above it that orders the accesses to the same blocks,
/// and on being the only way in which the blocks below it are written.
pub struct Cache<B> {
    below: B,
    kept: RefCell<Kept>,
}

impl<B: Blocks> Cache<B> {
    /// A cache of at most this many blocks, at least one.
    pub fn new(below: B, capacity: usize) -> Self {
        Cache { below, kept: RefCell::new(Kept { capacity: capacity.max(1), ..Kept::default() }) }
    }
}

impl<B: Blocks> Blocks for Cache<B> {
    async fn size(&self) -> Result<u64, Failure> {
        self.below.size().await
    }

    async fn read(&self, first: u64, into: &LocalBuffer) -> Result<u32, Failure> {
        let end = first + (into.len() / BLOCK) as u64;
        let place = |blocks: Range<u64>| {
            into.slice(
                (blocks.start - first) as usize * BLOCK..(blocks.end - first) as usize * BLOCK,
            )
        };
        let (mut hits, mut next) = (0, first);
        while next < end {
            if self.kept.borrow_mut().read(next, &place(next..next + 1)) {
                hits += 1;
                next += 1;
                continue;
            }
            // All that are missing up to the next one that is there, at once.
            let is_kept = |block: &u64| self.kept.borrow().blocks.contains_key(block);
            let missing = next..(next + 1..end).find(is_kept).unwrap_or(end);
            hits += self.below.read(missing.start, &place(missing.clone())).await?;
            let mut kept = self.kept.borrow_mut();
            missing.clone().for_each(|block| kept.keep(block, &place(block..block + 1)));
            next = missing.end;
        }
        Ok(hits)
    }

    async fn write(&self, first: u64, from: &LocalBuffer) -> Result<(), Failure> {
        let blocks = first..first + (from.len() / BLOCK) as u64;
        // It is not known what is below while the write is on its way, nor after it has failed.
        blocks.clone().for_each(|block| drop(self.kept.borrow_mut().forget(block)));
        self.below.write(first, from).await?;
        for (block, start) in blocks.zip((0..).step_by(BLOCK)) {
            self.kept.borrow_mut().keep(block, &from.slice(start..start + BLOCK));
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.below.flush().await
    }
}

/// Blocks in memory.
#[derive(Default)]
struct Kept {
    capacity: usize,
    /// The blocks, and when each was used.
    blocks: BTreeMap<u64, (u64, LocalBuffer)>,
    /// The blocks by the time of their use.
    used: BTreeMap<u64, u64>,
    now: u64,
}

impl Kept {
    /// Copies a block, if it is there.
    fn read(&mut self, block: u64, into: &LocalBuffer) -> bool {
        let Some((used, bytes)) = self.blocks.get_mut(&block) else { return false };
        into.shared().copy_from(bytes.shared());
        self.used.remove(used);
        self.now += 1;
        *used = self.now;
        self.used.insert(self.now, block);
        true
    }

    /// Keeps a copy of a block, in place of the one that was used longest ago if there is no room.
    fn keep(&mut self, block: u64, bytes: &LocalBuffer) {
        let mut memory = self.forget(block);
        if memory.is_none() && self.blocks.len() >= self.capacity {
            memory = self
                .used
                .first_key_value()
                .map(|(_, oldest)| *oldest)
                .and_then(|oldest| self.forget(oldest));
        }
        // A cache may have fewer blocks than it could.
        let Ok(memory) = memory.map_or_else(|| LocalBuffer::try_new(BLOCK), Ok) else { return };
        memory.shared().copy_from(bytes.shared());
        self.now += 1;
        self.used.insert(self.now, block);
        self.blocks.insert(block, (self.now, memory));
    }

    fn forget(&mut self, block: u64) -> Option<LocalBuffer> {
        let (used, memory) = self.blocks.remove(&block)?;
        self.used.remove(&used);
        Some(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use core::cell::Cell;
    use futures_util::FutureExt;

    /// Blocks that are all filled with one byte, and can fail.
    struct Below {
        byte: Cell<u8>,
        reads: Cell<usize>,
        fails: Cell<bool>,
    }

    impl Blocks for &Below {
        async fn size(&self) -> Result<u64, Failure> {
            Ok(u64::MAX / BLOCK as u64)
        }

        async fn read(&self, _: u64, into: &LocalBuffer) -> Result<u32, Failure> {
            self.reads.set(self.reads.get() + 1);
            into.write(0, &vec![self.byte.get(); into.len()]);
            Ok(0)
        }

        async fn write(&self, _: u64, from: &LocalBuffer) -> Result<(), Failure> {
            self.byte.set(from.to_vec()[0]);
            if self.fails.get() { Err(Failure::Failed) } else { Ok(()) }
        }

        async fn flush(&self) -> Result<(), Failure> {
            Ok(())
        }
    }

    #[test]
    fn what_failed_to_be_written_is_read_again() {
        let below = Below { byte: Cell::new(1), reads: Cell::new(0), fails: Cell::new(true) };
        let cache = Cache::new(&below, 8);
        let buffer = LocalBuffer::new(2 * BLOCK);
        let read = |first| {
            let hits = cache.read(first, &buffer).now_or_never().unwrap();
            (hits.unwrap(), buffer.to_vec()[0], buffer.to_vec()[BLOCK])
        };
        assert_eq!(read(3), (0, 1, 1));
        assert_eq!(read(3), (2, 1, 1));
        buffer.write(0, &[2]);
        let written = cache.write(4, &buffer.slice(0..BLOCK)).now_or_never().unwrap();
        assert_eq!(written, Err(Failure::Failed));
        assert_eq!(read(3), (1, 1, 2), "nobody knows what is there now");
        assert_eq!(read(3), (2, 1, 2));
    }

    #[test]
    fn blocks_that_are_missing_are_read_at_once() {
        let below = Below { byte: Cell::new(1), reads: Cell::new(0), fails: Cell::new(false) };
        let cache = Cache::new(&below, 100);
        let read = |first, count: usize| {
            let buffer = LocalBuffer::new(count * BLOCK);
            cache.read(first, &buffer).now_or_never().unwrap().unwrap()
        };
        assert_eq!((read(5, 1), below.reads.get()), (0, 1));
        assert_eq!((read(0, 20), below.reads.get()), (1, 3), "those before block 5, and after it");
        assert_eq!((read(0, 20), below.reads.get()), (20, 3));
    }
}
