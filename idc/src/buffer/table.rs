//! The registered buffers of a node.

use super::{Key, LocalBuffer, RemoteBuffer, Rights};
use crate::node::Node;
use crate::transport::Transport;
use crate::wire::{End, Transfer};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Range;
use core::pin::pin;
use futures_util::future::{Either, select};
use xen::{Errno, Shared, WaitList};

/// The buffers that other ends may transfer to or from.
#[derive(Default)]
pub(crate) struct Table {
    entries: RefCell<Vec<Option<Rc<Entry>>>>,
}

/// A registered buffer.
pub(crate) struct Entry {
    /// `None` when it is unregistered. A transfer that waits for its user keeps none of the memory.
    buffer: RefCell<Option<LocalBuffer>>,
    len: usize,
    rights: Rights,
    key: Key,
    /// Transfers, which end when the buffer is unregistered.
    transfers: WaitList,
}

impl Table {
    fn add(&self, entry: Entry) -> Result<u32, Errno> {
        let mut entries = self.entries.borrow_mut();
        let id = match entries.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                entries.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                entries.push(None);
                entries.len() - 1
            }
        };
        entries[id] = Some(Rc::new(entry));
        Ok(id as u32)
    }

    fn remove(&self, id: u32) {
        let entry = self.entries.borrow_mut()[id as usize].take();
        if let Some(entry) = entry {
            drop(entry.buffer.take());
            entry.transfers.wake_all();
        }
    }

    /// The buffer that a transfer is for, if it may be done.
    pub(crate) fn find(&self, transfer: &Transfer, right: Rights) -> Result<Rc<Entry>, End> {
        let entries = self.entries.borrow();
        // Who does not know the key learns nothing of the entry.
        let entry = entries.get(transfer.id as usize).and_then(Option::as_ref);
        let entry = entry.filter(|entry| entry.key == transfer.key);
        let entry = entry.ok_or(End::Revoked)?;
        if !entry.rights.contains(right) {
            return Err(End::Forbidden);
        }
        match transfer.offset.checked_add(transfer.length) {
            Some(end) if end <= entry.len as u64 => Ok(entry.clone()),
            _ => Err(End::OutOfRange),
        }
    }
}

impl Entry {
    /// The result of an access to some of the bytes, unless the buffer is unregistered first. That
    /// is looked at before each attempt, so no access follows.
    pub(crate) async fn access<T>(
        &self,
        range: Range<usize>,
        access: impl AsyncFnOnce(Shared<'_>) -> T,
    ) -> Option<T> {
        let piece = self.buffer.borrow().as_ref()?.slice(range);
        let revoked = self.transfers.until(|| self.buffer.borrow().is_none().then_some(()));
        match select(pin!(revoked), pin!(access(piece.shared()))).await {
            Either::Left(((), _)) => None,
            Either::Right((result, _)) => Some(result),
        }
    }
}

/// A registered buffer: others can transfer to or from it by its
/// [`reference`](Registration::reference).
///
/// Dropping it unregisters the buffer, whatever references exist, and without anybody's help:
/// transfers fail from then on, and the memory is this end's alone at once.
pub struct Registration<T: Transport> {
    node: Node<T>,
    id: u32,
    reference: RemoteBuffer,
}

impl<T: Transport> Registration<T> {
    /// What others need for transfers. It fits in a message, and can be passed on.
    pub fn reference(&self) -> RemoteBuffer {
        self.reference
    }
}

impl<T: Transport> Drop for Registration<T> {
    fn drop(&mut self) {
        self.node.table().remove(self.id);
    }
}

impl<T: Transport> Node<T> {
    /// Registers a buffer. [`Errno::ENOMEM`] if there is no memory for it.
    pub fn register(&self, buffer: &LocalBuffer, rights: Rights) -> Result<Registration<T>, Errno> {
        let key = Key(self.random());
        let entry = Entry {
            buffer: RefCell::new(Some(buffer.clone())),
            len: buffer.len(),
            rights,
            key,
            transfers: WaitList::default(),
        };
        let id = self.table().add(entry)?;
        let (domain, host) = self.transport().here();
        let len = buffer.len() as u64;
        let reference = RemoteBuffer { node: self.id(), domain, host, id, key, len, rights };
        Ok(Registration { node: self.clone(), id, reference })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::future::pending;
    use futures_util::FutureExt;

    #[test]
    fn a_transfer_that_waits_keeps_no_memory_of_a_buffer_that_is_unregistered() {
        let (table, buffer) = (Table::default(), LocalBuffer::new(8));
        let entry = Entry {
            buffer: RefCell::new(Some(buffer.clone())),
            len: 8,
            rights: Rights::READ,
            key: Key([1; 16]),
            transfers: WaitList::default(),
        };
        let id = table.add(entry).unwrap();
        let transfer = Transfer { id, key: Key([1; 16]), offset: 0, length: 8 };
        let entry = table.find(&transfer, Rights::READ).unwrap();
        let mut access = pin!(entry.access(0..8, async |_| pending::<()>().await));
        assert_eq!(access.as_mut().now_or_never(), None);
        table.remove(id);
        assert_eq!(access.now_or_never(), Some(None));
        assert_eq!(Rc::strong_count(&buffer.memory), 1);
        assert_eq!(entry.access(0..8, async |_| ()).now_or_never(), Some(None));
    }
}
