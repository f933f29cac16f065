//! Whose turn it is, when several domains share a processor.

use core::cell::Cell;

/// The work that is done for one owner of tasks, such as a guest of a backend. Those for whom less
/// was done come first. For a single thread.
///
/// The work of an operation is what it costs beside the others, in bytes: a call that moves a byte
/// costs as much as copying some KiB.
///
/// ```
/// let (busy, idle) = (xen::Turn::default(), xen::Turn::default());
/// busy.charge(64 << 10);
/// assert!(idle.work() < busy.work(), "it comes first");
/// // What was not used is not saved up: a pause gives no advantage over those who worked.
/// idle.lift(busy.work());
/// assert_eq!(idle.work(), busy.work());
/// ```
#[derive(Debug, Default)]
pub struct Turn {
    work: Cell<u64>,
    crowded: Cell<bool>,
}

impl Turn {
    /// The work so far, and what was given up by pauses.
    pub fn work(&self) -> u64 {
        self.work.get()
    }

    /// Adds the work of an operation.
    pub fn charge(&self, work: usize) {
        self.work.set(self.work.get().saturating_add(work as u64));
    }

    /// Gives up what others did meanwhile.
    pub fn lift(&self, work: u64) {
        self.work.set(self.work.get().max(work));
    }

    /// Whether others work, too. Then an owner's turn should be short.
    pub fn is_crowded(&self) -> bool {
        self.crowded.get()
    }

    /// Notes whether others work, too.
    pub fn set_crowded(&self, crowded: bool) {
        self.crowded.set(crowded);
    }
}
