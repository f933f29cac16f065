//! Pages that live as long as a model does.

use std::cell::RefCell;
use std::ops::Range;
use xen::Shared;
use xen::testing::model::ModelMemory;

/// Makes pages, and owns them until it is dropped.
#[derive(Default)]
pub struct Pages(RefCell<Vec<*mut ModelMemory>>);

impl Pages {
    /// A page of these words and cells of bytes. It must not be used after this value is dropped.
    pub fn page(
        &self,
        len: usize,
        words: &[usize],
        bytes: Option<Range<usize>>,
    ) -> Shared<'static> {
        let memory = Box::into_raw(Box::new(ModelMemory::new(len, words, bytes)));
        self.0.borrow_mut().push(memory);
        // SAFETY: it is freed when this value is dropped, and nothing uses the page then.
        unsafe { &*memory }.shared()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for memory in self.0.take() {
            // SAFETY: made by `page`, once; the model is over.
            drop(unsafe { Box::from_raw(memory) });
        }
    }
}
