//! Where things are: slots in the command ring, fields in a slot, words and buffers in a data ring.

use super::message::Command;
use xen::{PAGE_SIZE, Shared};

/// The largest slot of any dialect, in bytes: enough room for a private copy.
pub const MAX_SLOT: usize = 512;

/// Bytes before the first slot of a command ring (`ring.h`).
pub(crate) const RING_HEADER: usize = 64;

/// The slots of a command ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Bytes of a request.
    pub request: usize,
    /// Bytes of a response.
    pub response: usize,
    /// The number of slots, a power of two.
    pub count: u32,
}

impl Slots {
    /// As many slots as fit in a page (`__CONST_RING_SIZE` in `ring.h`).
    pub const fn in_a_page(request: usize, response: usize) -> Slots {
        let stride = if request > response { request } else { response };
        assert!(stride <= MAX_SLOT);
        let fit = (PAGE_SIZE - RING_HEADER) / stride;
        Slots { request, response, count: 1 << fit.ilog2() }
    }

    /// Bytes from one slot to the next.
    pub const fn stride(&self) -> usize {
        if self.request > self.response { self.request } else { self.response }
    }
}

/// How the requests and responses of the dialects differ. All else is the same in both.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) slots: Slots,
    /// The numbers of the commands.
    pub(super) commands: &'static [(Command, u32)],
    /// How many grant references of a data ring a request carries.
    pub(super) refs: usize,
    /// Offset of `ret` (`i32`) in a response.
    pub(super) ret: usize,
    /// Offset of `socket` (`u64`) in a response.
    pub(super) socket: usize,
}

/// One direction of a data ring: its buffer, its two indexes and its error word.
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

/// Offsets of one direction's event indexes (`u32`) in the indexes page
/// ([`Extensions::EVENT_INDEX`](super::Extensions::EVENT_INDEX)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventIndexes {
    /// Written by the consumer: it requests an event when the producer's index reaches this value.
    pub prod: usize,
    /// Written by the producer: it requests an event when the consumer's index reaches this value.
    pub cons: usize,
}

/// A data ring's pages, in the order in which a frontend allocates and grants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The number of pages.
    pub pages: usize,
    /// The index of the indexes page among them.
    pub indexes_page: usize,
    /// The index of the first data page.
    pub data_page: usize,
    /// The number of data pages.
    pub data_pages: usize,
    /// From the backend to the frontend: `in`.
    pub input: Direction,
    /// From the frontend to the backend: `out`.
    pub output: Direction,
}

/// The two parts of a data ring in memory, wherever an end has mapped them.
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
