//! Shared memory as the model checker [loom] sees it.
//!
//! With the feature `loom`, [`Shared`] and [`fence`] are loom's. A test makes a [`ModelMemory`],
//! and loom runs the code with every order in which the two ends' accesses can happen, and every
//! value that each end can see. Outside of a model the fence panics.
//!
//! A place is either a word, which both ends access atomically, or part of a cell of bytes, which
//! one end at a time may access: loom reports two unordered accesses of a cell of which one is a
//! write. This finds a ring that shows bytes before they are written, or overwrites bytes that its
//! peer still reads.
//!
//! [loom]: https://docs.rs/loom
//!
//! To show that a check can fail, each place in the code that orders memory (a fence, an `Acquire`
//! load, a `Release` store) can be weakened to order nothing.

use crate::Shared;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use core::panic::Location;
use core::sync::atomic::Ordering;
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;

pub use loom;

/// A place in the code that orders memory.
pub type Site = &'static Location<'static>;

std::thread_local! {
    // Loom runs all threads of a model on the one that called it.
    static SITES: RefCell<BTreeSet<Site>> = const { RefCell::new(BTreeSet::new()) };
    static WEAKENED: Cell<Option<Site>> = const { Cell::new(None) };
}

/// The places that have ordered memory in this thread's models so far.
pub fn sites() -> Vec<Site> {
    SITES.with_borrow(|sites| sites.iter().copied().collect())
}

/// Makes one place order nothing in this thread's models.
pub fn weaken(site: Site) {
    WEAKENED.set(Some(site));
}

/// Whether a place is not weakened.
fn orders(site: Site) -> bool {
    SITES.with_borrow_mut(|sites| sites.insert(site));
    WEAKENED.get() != Some(site)
}

/// Loom's fence, unless it is [weakened](weaken).
#[track_caller]
pub fn fence(order: Ordering) {
    if orders(Location::caller()) {
        loom::sync::atomic::fence(order);
    }
}

/// Memory that two threads of a model share.
#[derive(Debug)]
pub struct ModelMemory {
    len: usize,
    words: BTreeMap<usize, AtomicU64>,
    cells: Vec<(Range<usize>, Bytes)>,
}

/// Bytes that one thread at a time may access.
type Bytes = UnsafeCell<Box<[u8]>>;

impl ModelMemory {
    /// Zeroed memory of `len` bytes, with words at these offsets and these cells of bytes. An
    /// access elsewhere panics.
    pub fn new(len: usize, words: &[usize], cells: impl IntoIterator<Item = Range<usize>>) -> Self {
        let word = |&offset| (offset, AtomicU64::new(0));
        let cell = |range: Range<usize>| {
            let bytes = vec![0; range.len()].into_boxed_slice();
            (range, UnsafeCell::new(bytes))
        };
        ModelMemory {
            len,
            words: words.iter().map(word).collect(),
            cells: cells.into_iter().map(cell).collect(),
        }
    }

    /// The whole memory.
    pub fn shared(&self) -> Shared<'_> {
        Shared::modelled(self, self.len)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        self.words.get(&offset).unwrap_or_else(|| panic!("the model has no word at {offset}"))
    }

    #[track_caller]
    pub(crate) fn load(&self, offset: usize, order: Ordering) -> u64 {
        self.word(offset).load(effective(order))
    }

    #[track_caller]
    pub(crate) fn store(&self, offset: usize, value: u64, order: Ordering) {
        self.word(offset).store(value, effective(order));
    }

    #[track_caller]
    pub(crate) fn swap(&self, offset: usize, value: u64, order: Ordering) -> u64 {
        self.word(offset).swap(value, effective(order))
    }

    #[track_caller]
    pub(crate) fn fetch_or(&self, offset: usize, bits: u64, order: Ordering) -> u64 {
        self.word(offset).fetch_or(bits, effective(order))
    }

    #[track_caller]
    pub(crate) fn fetch_and(&self, offset: usize, bits: u64, order: Ordering) -> u64 {
        self.word(offset).fetch_and(bits, effective(order))
    }

    #[track_caller]
    pub(crate) fn compare_exchange(
        &self,
        offset: usize,
        current: u64,
        new: u64,
        order: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        let (order, failure) = (effective(order), effective(failure));
        self.word(offset).compare_exchange(current, new, order, failure)
    }

    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        self.overlaps(offset, to.len(), |cell, within, part| {
            cell.with(|bytes| {
                // SAFETY: loom panics if another thread may write this cell at the same time.
                let bytes = unsafe { &*bytes };
                to[part].copy_from_slice(&bytes[within]);
            });
        });
    }

    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        self.overlaps(offset, from.len(), |cell, within, part| {
            cell.with_mut(|bytes| {
                // SAFETY: loom panics if another thread may access this cell at the same time.
                let bytes = unsafe { &mut *bytes };
                bytes[within].copy_from_slice(&from[part]);
            });
        });
    }

    /// Visits the cells of a run, which must cover it, each with its range in the cell and in the
    /// run.
    fn overlaps(
        &self,
        offset: usize,
        len: usize,
        mut visit: impl FnMut(&Bytes, Range<usize>, Range<usize>),
    ) {
        let mut found = 0;
        for (range, cell) in &self.cells {
            let (start, end) = (range.start.max(offset), range.end.min(offset + len));
            if start < end {
                visit(cell, start - range.start..end - range.start, start - offset..end - offset);
                found += end - start;
            }
        }
        assert_eq!(found, len, "the model does not have all of the bytes {offset}..+{len}");
    }
}

/// The order of an access, whose place may be weakened.
#[track_caller]
fn effective(order: Ordering) -> Ordering {
    if order == Ordering::Relaxed || orders(Location::caller()) { order } else { Ordering::Relaxed }
}
