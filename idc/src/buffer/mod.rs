//! Local memory, and memory of others by reference.

mod courier;
mod remote;
mod serve;
pub(crate) mod table;

pub use courier::{Courier, TransferError};
pub use remote::{Key, RemoteBuffer, Rights};
pub use table::Registration;

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ops::Range;
use xen::{Errno, Shared};

/// A reference to bytes of this end's memory. Clones and slices refer to the same bytes, and keep
/// them allocated.
///
/// ```
/// let buffer = idc::LocalBuffer::new(8);
/// buffer.slice(2..5).write(0, b"abc");
/// assert_eq!(buffer.to_vec(), b"\0\0abc\0\0\0");
/// ```
#[derive(Clone)]
pub struct LocalBuffer {
    memory: Rc<Box<[UnsafeCell<u8>]>>,
    start: usize,
    len: usize,
}

impl LocalBuffer {
    /// New bytes, all zero.
    pub fn new(len: usize) -> Self {
        alloc::vec![0; len].into()
    }

    /// New bytes, all zero. [`Errno::ENOMEM`] if there is not enough memory.
    pub fn try_new(len: usize) -> Result<Self, Errno> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        bytes.resize(len, 0);
        Ok(bytes.into())
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of the bytes.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        LocalBuffer {
            memory: self.memory.clone(),
            start: self.start + range.start,
            len: range.end - range.start,
        }
    }

    /// Copies the bytes from `at` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        self.shared().read(at, to);
    }

    /// Replaces the bytes from `at` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn write(&self, at: usize, from: &[u8]) {
        self.shared().write(at, from);
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = alloc::vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }

    /// Replaces the memory by other memory if somebody else refers to it.
    pub(crate) fn make_unique(&mut self) {
        if Rc::strong_count(&self.memory) > 1 {
            *self = LocalBuffer::new(self.len);
        }
    }

    /// The bytes, for copying.
    pub fn shared(&self) -> Shared<'_> {
        Shared::from_cells(&self.memory[self.start..self.start + self.len])
    }
}

impl From<Vec<u8>> for LocalBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        let memory = Rc::new(bytes.into_iter().map(UnsafeCell::new).collect());
        LocalBuffer { memory, start: 0, len }
    }
}

impl From<&[u8]> for LocalBuffer {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl<const N: usize> From<&[u8; N]> for LocalBuffer {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.to_vec().into()
    }
}

impl core::fmt::Debug for LocalBuffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "LocalBuffer({} bytes)", self.len)
    }
}
