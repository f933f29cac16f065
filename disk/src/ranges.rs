//! Orders accesses to the same blocks: many readers or one writer.

use crate::protocol::Span;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use xen::WaitList;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The blocks that are in use.
#[derive(Default)]
pub(crate) struct Ranges {
    /// In the order of their numbers, those that wait as well as those that have their blocks.
    uses: RefCell<Vec<(u64, Span, Access)>>,
    next: Cell<u64>,
    waiting: WaitList,
}

/// The use of blocks, until it is dropped.
pub(crate) struct Use<'r> {
    ranges: &'r Ranges,
    number: u64,
}

impl Ranges {
    /// Waits until nobody who came earlier uses these blocks in a way that conflicts.
    pub(crate) async fn access(&self, span: Span, access: Access) -> Use<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.uses.borrow_mut().push((number, span, access));
        let used = Use { ranges: self, number };
        let is_free = || {
            let uses = self.uses.borrow();
            let mut earlier = uses.iter().take_while(|(other, _, _)| *other < number);
            let conflicts = |(_, other, its): &(u64, Span, Access)| {
                let overlap = other.first < span.end() && span.first < other.end();
                overlap && (*its == Access::Write || access == Access::Write)
            };
            (!earlier.any(conflicts)).then_some(())
        };
        self.waiting.until(is_free).await;
        used
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.ranges.uses.borrow_mut().retain(|(number, _, _)| *number != self.number);
        self.ranges.waiting.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use futures_util::FutureExt;

    fn span(first: u64, count: u32) -> Span {
        Span { first, count }
    }

    #[test]
    fn only_accesses_to_the_same_blocks_wait_for_each_other() {
        let ranges = Ranges::default();
        let now = |span, access| ranges.access(span, access).now_or_never();
        let reader = now(span(2, 3), Access::Read).unwrap();
        assert!(now(span(4, 9), Access::Read).is_some(), "readers share");
        assert!(now(span(1, 1), Access::Write).is_some(), "other blocks");
        assert!(now(span(5, 1), Access::Write).is_some(), "other blocks");
        for blocks in [span(0, 3), span(4, 1), span(3, 1), span(0, 9)] {
            assert!(now(blocks, Access::Write).is_none(), "{blocks:?}");
        }
        drop(reader);
        let _writer = now(span(2, 3), Access::Write).unwrap();
        assert!(now(span(4, 1), Access::Read).is_none());
    }

    #[test]
    fn those_that_wait_get_the_blocks_in_their_order() {
        let ranges = Ranges::default();
        let first = ranges.access(span(0, 1), Access::Read).now_or_never().unwrap();
        let mut writer = pin!(ranges.access(span(0, 1), Access::Write));
        assert!(writer.as_mut().now_or_never().is_none());
        let mut reader = pin!(ranges.access(span(0, 1), Access::Read));
        assert!(reader.as_mut().now_or_never().is_none(), "a writer waits");
        drop(first);
        let write = writer.now_or_never().expect("the writer is next");
        assert!(reader.as_mut().now_or_never().is_none());
        drop(write);
        assert!(reader.now_or_never().is_some());
    }

    #[test]
    fn whoever_gives_up_leaves_nothing() {
        let ranges = Ranges::default();
        let first = ranges.access(span(0, 1), Access::Read).now_or_never().unwrap();
        assert!(ranges.access(span(0, 1), Access::Write).now_or_never().is_none());
        assert!(ranges.access(span(0, 1), Access::Read).now_or_never().is_some());
        drop(first);
        assert!(ranges.uses.borrow().is_empty());
    }
}
