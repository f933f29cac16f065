//! Access to memory that another domain can write. There is no other way to access it.
//!
//! A Rust reference promises that nothing else changes what it points to, and another domain breaks
//! that promise at any moment. So nothing here returns a reference: words are accessed atomically,
//! and bytes are copied through raw pointers. The caller checks the copy, and never reads the
//! original twice.

#[cfg(feature = "loom")]
pub use crate::testing::model::fence;
#[cfg(not(feature = "loom"))]
/// The fence that orders accesses to shared memory: `core`'s, or the model checker's with the
/// feature `loom`.
pub use core::sync::atomic::fence;

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A run of shared bytes, borrowed from the owner of the pages (an allocation, a mapping).
///
/// Offsets are in bytes from the start of the run. An access outside of the run panics, and so does
/// an unaligned access to a word: those are bugs of the caller, as offsets never come from a peer.
///
/// ```
/// use core::sync::atomic::Ordering::Relaxed;
///
/// let page = xen::testing::page();
/// page.store_u32(8, 0x0403_0201, Relaxed);
/// let mut bytes = [0; 3];
/// page.read(8, &mut bytes);
/// assert_eq!(bytes, [1, 2, 3]);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    start: *mut u8,
    len: usize,
    owner: PhantomData<&'a ()>,
    /// The model of the memory. Then `start` is an offset into it.
    #[cfg(feature = "loom")]
    model: Option<&'a crate::testing::model::ModelMemory>,
}

// SAFETY: a `Shared` is a pointer and a length. Each access through it is atomic, or a raw copy
// that expects other writers, so any thread may make it.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

macro_rules! words {
    ($($load:ident $store:ident $word:ty, $atomic:ty;)*) => { $(
        #[doc = concat!("Loads the aligned `", stringify!($word), "` at `offset`.")]
        #[inline]
        #[cfg_attr(feature = "loom", track_caller)]
        pub fn $load(self, offset: usize, order: Ordering) -> $word {
            let word = self.word(offset, size_of::<$word>()).cast::<$word>();
            #[cfg(feature = "loom")]
            if let Some(model) = self.model {
                return model.load(word.addr(), order) as $word;
            }
            // SAFETY: `word` checked range and alignment; the owner keeps the memory mapped for 'a.
            unsafe { <$atomic>::from_ptr(word) }.load(order)
        }

        #[doc = concat!("Stores the aligned `", stringify!($word), "` at `offset`.")]
        #[inline]
        #[cfg_attr(feature = "loom", track_caller)]
        pub fn $store(self, offset: usize, value: $word, order: Ordering) {
            let word = self.word(offset, size_of::<$word>()).cast::<$word>();
            #[cfg(feature = "loom")]
            if let Some(model) = self.model {
                return model.store(word.addr(), value as u64, order);
            }
            // SAFETY: `word` checked range and alignment; the owner keeps the memory mapped for 'a.
            unsafe { <$atomic>::from_ptr(word) }.store(value, order);
        }
    )* };
}

/// A method that updates a word atomically.
macro_rules! update {
    ($name:ident $model:ident $operation:ident $word:ty, $atomic:ty, $doc:literal) => {
        #[doc = concat!($doc, " the aligned `", stringify!($word), "` at `offset`.")]
        /// Returns the previous value.
        #[inline]
        #[cfg_attr(feature = "loom", track_caller)]
        pub fn $name(self, offset: usize, value: $word, order: Ordering) -> $word {
            let word = self.word(offset, size_of::<$word>()).cast::<$word>();
            #[cfg(feature = "loom")]
            if let Some(model) = self.model {
                return model.$model(word.addr(), value as u64, order) as $word;
            }
            // SAFETY: `word` checked range and alignment; the owner keeps the memory mapped for 'a.
            unsafe { <$atomic>::from_ptr(word) }.$operation(value, order)
        }
    };
}

macro_rules! updates {
    ($($swap:ident $or:ident $and:ident $exchange:ident $word:ty, $atomic:ty;)*) => { $(
        update!($swap swap swap $word, $atomic, "Replaces");
        update!($or fetch_or fetch_or $word, $atomic, "Sets bits of");
        update!($and fetch_and fetch_and $word, $atomic, "Applies the mask `value` to");

        #[doc = concat!("Compare-and-exchange of the aligned `", stringify!($word), "`")]
        /// at `offset`.
        /// Returns the previous value, as an error if it was not `current`.
        #[inline]
        #[cfg_attr(feature = "loom", track_caller)]
        pub fn $exchange(
            self,
            offset: usize,
            current: $word,
            new: $word,
            order: Ordering,
        ) -> Result<$word, $word> {
            let word = self.word(offset, size_of::<$word>()).cast::<$word>();
            let failure = match order {
                Ordering::SeqCst => Ordering::SeqCst,
                Ordering::AcqRel | Ordering::Acquire => Ordering::Acquire,
                _ => Ordering::Relaxed,
            };
            #[cfg(feature = "loom")]
            if let Some(model) = self.model {
                let (current, new) = (current as u64, new as u64);
                let was = model.compare_exchange(word.addr(), current, new, order, failure);
                return was.map(|was| was as $word).map_err(|was| was as $word);
            }
            // SAFETY: `word` checked range and alignment; the owner keeps the memory mapped for 'a.
            unsafe { <$atomic>::from_ptr(word) }.compare_exchange(current, new, order, failure)
        }
    )* };
}

impl<'a> Shared<'a> {
    /// Describes `len` bytes at `start`.
    ///
    /// # Safety
    /// For the whole of `'a` the bytes must be mapped, readable and writable, and no reference to
    /// any of them may exist.
    pub const unsafe fn new(start: *mut u8, len: usize) -> Self {
        Shared {
            start,
            len,
            owner: PhantomData,
            #[cfg(feature = "loom")]
            model: None,
        }
    }

    /// Describes private bytes, so that the same code copies from and to them.
    ///
    /// ```
    /// # use std::cell::UnsafeCell;
    /// let cells = [const { UnsafeCell::new(0) }; 3];
    /// let bytes = xen::Shared::from_cells(&cells);
    /// bytes.write(1, b"x");
    /// assert_eq!(cells.map(UnsafeCell::into_inner), [0, b'x', 0]);
    /// ```
    pub fn from_cells(bytes: &'a [UnsafeCell<u8>]) -> Self {
        let start = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the cells are borrowed for 'a and can be written. Whoever makes a reference to
        // the inside of one promises that nothing else accesses it at that time.
        unsafe { Shared::new(start, bytes.len()) }
    }

    /// The first `len` bytes of a model's memory, which has words and bytes but no address.
    #[cfg(feature = "loom")]
    pub(crate) fn modelled(model: &'a crate::testing::model::ModelMemory, len: usize) -> Self {
        Shared {
            start: ptr::without_provenance_mut(0),
            len,
            owner: PhantomData,
            model: Some(model),
        }
    }

    /// The number of bytes.
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The first byte's address, for a system call that copies.
    pub const fn as_ptr(self) -> *mut u8 {
        self.start
    }

    /// The `len` bytes from `offset` on.
    #[inline]
    pub fn slice(self, offset: usize, len: usize) -> Self {
        Shared { start: self.range(offset, len), len, ..self }
    }

    words! {
        load_u8 store_u8 u8, AtomicU8;
        load_u16 store_u16 u16, AtomicU16;
        load_u32 store_u32 u32, AtomicU32;
        load_u64 store_u64 u64, AtomicU64;
    }

    updates! {
        swap_u16 fetch_or_u16 fetch_and_u16 compare_exchange_u16 u16, AtomicU16;
        swap_u32 fetch_or_u32 fetch_and_u32 compare_exchange_u32 u32, AtomicU32;
        swap_u64 fetch_or_u64 fetch_and_u64 compare_exchange_u64 u64, AtomicU64;
    }

    /// Copies bytes from `offset` on into private memory. The peer may write at the same time:
    /// check the copy.
    #[inline]
    pub fn read(self, offset: usize, to: &mut [u8]) {
        let from = self.range(offset, to.len());
        #[cfg(feature = "loom")]
        if let Some(model) = self.model {
            return model.read(from.addr(), to);
        }
        // SAFETY: the range was checked. `to` is private, so the two cannot overlap. Another domain
        // may write at the same time, which changes only the copied bytes.
        unsafe { ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), to.len()) }
    }

    /// Copies private bytes to `offset` and on.
    #[inline]
    pub fn write(self, offset: usize, from: &[u8]) {
        let to = self.range(offset, from.len());
        #[cfg(feature = "loom")]
        if let Some(model) = self.model {
            return model.write(to.addr(), from);
        }
        // SAFETY: as for `read`, in the other direction.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    /// Copies as many bytes of `from` as fit, and returns their number. Both may be written at the
    /// same time: the copy can be any mixture of what was there.
    #[inline]
    pub fn copy_from(self, from: Shared<'_>) -> usize {
        let len = self.len.min(from.len);
        #[cfg(feature = "loom")]
        assert!(self.model.is_none(), "a model has no address to copy to");
        // SAFETY: both runs have this many bytes, mapped for as long as they are borrowed. They may
        // be parts of the same memory.
        unsafe { ptr::copy(from.start.cast_const(), self.start, len) };
        len
    }

    /// Sets every byte to zero.
    pub fn zero(self) {
        #[cfg(feature = "loom")]
        assert!(self.model.is_none(), "a model has only words and bytes");
        // SAFETY: the run is mapped and writable for 'a.
        unsafe { ptr::write_bytes(self.start, 0, self.len) }
    }

    #[inline]
    fn range(self, offset: usize, len: usize) -> *mut u8 {
        let end = offset.checked_add(len).expect("an offset into shared memory overflows");
        assert!(end <= self.len, "shared memory has {} bytes, asked for {offset}..{end}", self.len);
        // In bounds. `wrapping_add` does not require an allocation, which a model does not have.
        self.start.wrapping_add(offset)
    }

    #[inline]
    fn word(self, offset: usize, size: usize) -> *mut u8 {
        let word = self.range(offset, size);
        assert!(word.addr().is_multiple_of(size), "the word at {offset} is not aligned");
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_read_back_as_written() {
        let mut memory = [0u64; 8];
        // SAFETY: the array outlives the borrow and is not used in that time.
        let shared = unsafe { Shared::new(memory.as_mut_ptr().cast(), 64) };
        shared.store_u32(4, 0x0403_0201, Ordering::Relaxed);
        let mut bytes = [0; 6];
        shared.read(3, &mut bytes);
        assert_eq!(bytes, [0, 1, 2, 3, 4, 0]);
        shared.slice(8, 8).write(1, &[9, 8]);
        assert_eq!(shared.load_u64(8, Ordering::Relaxed), 0x08_0900);
        shared.zero();
        assert_eq!(shared.load_u64(8, Ordering::Relaxed), 0);
    }

    #[test]
    #[should_panic(expected = "shared memory has 8 bytes")]
    fn an_access_past_the_end_panics() {
        let mut memory = [0u64; 1];
        // SAFETY: as above.
        let shared = unsafe { Shared::new(memory.as_mut_ptr().cast(), 8) };
        shared.write(5, &[0; 4]);
    }

    #[test]
    #[should_panic(expected = "not aligned")]
    fn an_unaligned_word_panics() {
        let mut memory = [0u64; 1];
        // SAFETY: as above.
        let shared = unsafe { Shared::new(memory.as_mut_ptr().cast(), 8) };
        shared.load_u32(2, Ordering::Relaxed);
    }
}
