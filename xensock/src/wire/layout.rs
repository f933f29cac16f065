//! Layouts: slots of the command ring, fields of a slot, words and buffers of a data ring.

use super::message::Command;
use xen::{PAGE_SIZE, Shared};

pub use xen::frontend::{Direction, EventIndexes, Region};

/// No slot of any dialect is larger, in bytes. The size of a private copy.
pub const MAX_SLOT: usize = 512;

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
        let fit = (PAGE_SIZE - xen::abi::ring::RING_HEADER) / stride;
        Slots { request, response, count: 1 << fit.ilog2() }
    }

    /// Bytes from one slot to the next.
    pub const fn stride(&self) -> usize {
        if self.request > self.response { self.request } else { self.response }
    }
}

/// The differences between the dialects' requests and responses.
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
    /// Offset in the indexes page of `in_dropped` (`u32`), of a datagram socket.
    pub dropped: usize,
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
