//! Where things are in the pages of a data ring.

use xen::{PAGE_SIZE, Shared};

/// One direction of a data ring: its bytes, its two indexes and its error word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Offset of the consumer's index (`u32`) in the indexes page.
    pub cons: usize,
    /// Offset of the producer's index (`u32`) in the indexes page.
    pub prod: usize,
    /// Offset of the error word (`i32`) in the indexes page.
    pub error: usize,
    /// Where each end says when it wants to be told, if the two have agreed on that.
    pub events: Option<EventIndexes>,
    /// Offset of the first byte in the data pages.
    pub start: usize,
    /// The number of bytes, a power of two.
    pub size: u32,
}

/// Offsets of one direction's event indexes (`u32`) in the indexes page
/// ([`Extensions::EVENT_INDEX`](super::Extensions::EVENT_INDEX)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventIndexes {
    /// The consumer's: it wants an event when the producer's index comes to this.
    pub prod: usize,
    /// The producer's: it wants an event when the consumer's index comes to this.
    pub cons: usize,
}

/// A data ring's pages, in the order in which a frontend allocates and grants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The number of pages.
    pub pages: usize,
    /// Which of them is the indexes page.
    pub indexes_page: usize,
    /// The first of the data pages.
    pub data_page: usize,
    /// The number of data pages.
    pub data_pages: usize,
    /// From the backend to the frontend: `in`.
    pub input: Way,
    /// From the frontend to the backend: `out`.
    pub output: Way,
}

/// The two parts of a data ring in memory, wherever each end has mapped them.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    /// The indexes page.
    pub indexes: Shared<'a>,
    /// The data pages, one after the other.
    pub data: Shared<'a>,
}

impl Layout {
    /// The parts of a ring whose pages lie one after the other.
    pub fn split<'a>(&self, pages: Shared<'a>) -> Region<'a> {
        Region {
            indexes: pages.slice(self.indexes_page * PAGE_SIZE, PAGE_SIZE),
            data: pages.slice(self.data_page * PAGE_SIZE, self.data_pages * PAGE_SIZE),
        }
    }
}
