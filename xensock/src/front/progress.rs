//! Counts operations in progress, and waits until all have finished.

use alloc::rc::Rc;
use core::cell::Cell;
use xen::WaitList;

/// The operations of one kind that are in progress.
#[derive(Default)]
pub(super) struct Operations(Rc<Shared>);

#[derive(Default)]
struct Shared {
    count: Cell<usize>,
    finished: WaitList,
}

/// One operation, in progress until it is dropped.
pub(super) struct Operation(Rc<Shared>);

impl Operations {
    pub(super) fn begin(&self) -> Operation {
        self.0.count.set(self.0.count.get() + 1);
        Operation(self.0.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.0.count.get()
    }

    /// Waits until no operation is in progress.
    pub(super) async fn finished(&self) {
        self.0.finished.until(|| (self.count() == 0).then_some(())).await;
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.finished.wake_all();
    }
}
