//! The balloon: memory of the domain that is given back to Xen, and may be taken again.
//!
//! [`Balloon`] records that memory. The record has a fixed size and allocates nothing, because it
//! is used when memory is short, and before there is a heap. It records only what Xen has done, so
//! it is right after every failure. [`Target`] reads the toolstack's target.

mod target;

#[cfg(test)]
mod tests;

pub use target::{ERROR_NODE, Target, Wanted};

use crate::abi::memory::DOMU_MAX_ORDER;
use crate::hypercall::Operations;
use crate::{Errno, Gfn};
use arrayvec::ArrayVec;

/// The most runs in the record. Adjacent runs are merged.
pub const MAX_RUNS: usize = 512;

/// The most extents of one hypercall: their frames fill a page.
const MAX_EXTENTS: usize = 512;

/// Consecutive frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first frame.
    pub start: Gfn,
    /// The number of frames.
    pub count: u64,
}

impl Run {
    /// `count` frames from `start` on.
    pub fn new(start: Gfn, count: u64) -> Run {
        Run { start, count }
    }

    fn end(&self) -> u64 {
        self.start.0 + self.count
    }

    /// Removes the first frames.
    fn skip(&mut self, count: u64) {
        self.start.0 += count;
        self.count -= count;
    }
}

/// The frames that are given back to Xen.
///
/// ```
/// use xen::balloon::{Balloon, Run};
/// use xen::{Errno, Gfn, testing::FakeXen};
///
/// let xen = FakeXen::new();
/// xen.populated.replace((0..1024).collect());
/// let mut balloon = Balloon::new();
/// // SAFETY: in this example the frames are not pages.
/// unsafe { balloon.give(&xen, Run::new(Gfn(100), 10)) }.map_err(|(error, _)| error)?;
/// assert_eq!(balloon.pages(), 10);
/// assert_eq!(balloon.take(&xen, 4)?, Run::new(Gfn(100), 4));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug)]
pub struct Balloon {
    /// In order, not adjacent.
    runs: ArrayVec<Run, MAX_RUNS>,
    pages: u64,
}

impl Default for Balloon {
    fn default() -> Self {
        Balloon::new()
    }
}

impl Balloon {
    /// An empty balloon.
    pub const fn new() -> Balloon {
        Balloon { runs: ArrayVec::new_const(), pages: 0 }
    }

    /// The number of pages that are given back.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The runs of the record, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Gives a run of frames back to Xen. An error comes with the rest of the run that Xen did not
    /// take, which the caller still has. [`Errno::ENOSPC`] if the record is full; [`Errno::EBUSY`]
    /// if Xen does not take a page, for example because another domain has it mapped.
    ///
    /// # Safety
    /// The frames are the domain's memory, and nothing uses them.
    pub unsafe fn give(&mut self, xen: &impl Operations, mut run: Run) -> Result<(), (Errno, Run)> {
        while run.count > 0 {
            if !self.has_place_for(run) {
                return Err((Errno::ENOSPC, run));
            }
            // SAFETY: the caller's promise.
            let give = |frames: &[Gfn], order| unsafe { xen.decrease_reservation(frames, order) };
            match in_extents(run, give) {
                Ok(0) => return Err((Errno::EBUSY, run)),
                Ok(done) => {
                    self.insert(Run { start: run.start, count: done });
                    run.skip(done);
                }
                Err(error) => return Err((error, run)),
            }
        }
        Ok(())
    }

    /// Takes back at most `count` pages, the lowest first, with one or two hypercalls. Returns
    /// them. [`Errno::ENOMEM`] if Xen has none for the domain,
    /// [`Errno::ENOENT`] if none is given back.
    pub fn take(&mut self, xen: &impl Operations, count: u64) -> Result<Run, Errno> {
        let lowest = self.runs.first().copied().filter(|_| count > 0).ok_or(Errno::ENOENT)?;
        let run = Run { count: lowest.count.min(count), ..lowest };
        // SAFETY: a frame in the record has no memory.
        let take = |frames: &[Gfn], order| unsafe { xen.populate_physmap(frames, order) };
        let done = in_extents(run, take)?;
        if done == 0 {
            return Err(Errno::ENOMEM);
        }
        self.pages -= done;
        match self.runs.first_mut() {
            Some(first) if first.count > done => first.skip(done),
            _ => drop(self.runs.remove(0)),
        }
        Ok(Run { count: done, ..run })
    }

    /// Whether the record has room for a run.
    fn has_place_for(&self, run: Run) -> bool {
        let touches = |other: &Run| other.end() == run.start.0 || run.end() == other.start.0;
        !self.runs.is_full() || self.runs.iter().any(touches)
    }

    /// Records a run, for which there is room.
    fn insert(&mut self, run: Run) {
        self.pages += run.count;
        let at = self.runs.partition_point(|other| other.start < run.start);
        let joins_next = self.runs.get(at).is_some_and(|next| next.start.0 == run.end());
        let joins_last = at > 0 && self.runs[at - 1].end() == run.start.0;
        match (joins_last, joins_next) {
            (true, true) => {
                self.runs[at - 1].count += run.count + self.runs[at].count;
                self.runs.remove(at);
            }
            (true, false) => self.runs[at - 1].count += run.count,
            (false, true) => {
                self.runs[at] = Run { start: run.start, count: run.count + self.runs[at].count };
            }
            (false, false) => self.runs.insert(at, run),
        }
    }
}

/// Makes one or two hypercalls for the beginning of a run, in extents as large as possible. Returns
/// how many pages were done, from the first on.
fn in_extents(
    run: Run,
    operate: impl Fn(&[Gfn], u32) -> Result<usize, Errno>,
) -> Result<u64, Errno> {
    const LARGE: u64 = 1 << DOMU_MAX_ORDER;
    let before_large = (run.start.0.next_multiple_of(LARGE) - run.start.0).min(run.count);
    if before_large == 0 && run.count >= LARGE {
        let extents = (run.count / LARGE).min(MAX_EXTENTS as u64);
        // Xen may refuse large extents: its command line can forbid them, or its memory is
        // fragmented.
        if let Ok(done @ 1..) = operate(&frames(run.start, extents, LARGE), DOMU_MAX_ORDER) {
            return Ok(done as u64 * LARGE);
        }
    }
    let small = if before_large == 0 { run.count } else { before_large };
    let done = operate(&frames(run.start, small.min(MAX_EXTENTS as u64), 1), 0)?;
    Ok(done as u64)
}

/// `count` frames, `step` apart.
fn frames(start: Gfn, count: u64, step: u64) -> ArrayVec<Gfn, MAX_EXTENTS> {
    (0..count).map(|n| Gfn(start.0 + n * step)).collect()
}
