//! A node: this domain or process, at one transport.

use crate::buffer::table::Table;
use crate::connection::Memory;
use crate::life::{Epoch, NodeId};
use crate::quota::Quota;
use crate::transport::Transport;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use xen::Errno;

/// This domain or process, at one transport. Clones are the same node.
pub struct Node<T: Transport>(Rc<Inner<T>>);

struct Inner<T> {
    transport: T,
    id: NodeId,
    last_epoch: Cell<u64>,
    last_courier: Cell<u32>,
    random: RefCell<Box<dyn FnMut() -> [u8; 16]>>,
    table: Table,
}

impl<T: Transport> Clone for Node<T> {
    fn clone(&self) -> Self {
        Node(self.0.clone())
    }
}

impl<T: Transport> Node<T> {
    /// A node. `random` gives numbers that nobody can guess: the node's identity, which tells this
    /// run of a domain or process from all others, and the keys of registered buffers.
    pub fn new(transport: T, mut random: impl FnMut() -> [u8; 16] + 'static) -> Self {
        let id = NodeId(random());
        Node(Rc::new(Inner {
            transport,
            id,
            last_epoch: Cell::new(id.first_epoch().0 - 1),
            last_courier: Cell::new(0),
            random: RefCell::new(Box::new(random)),
            table: Table::default(),
        }))
    }

    /// The transport.
    pub fn transport(&self) -> &T {
        &self.0.transport
    }

    /// The node's identity.
    pub fn id(&self) -> NodeId {
        self.0.id
    }

    /// Takes all that an endpoint needs, which is ready to receive this much. The only place where
    /// memory runs out. [`Errno::E2BIG`] if the quota needs more than [`Quota::MAX_MEMORY`]: no
    /// other end would believe it.
    pub fn resource(&self, quota: Quota) -> Result<Resource<T>, Errno> {
        if !quota.is_believed() {
            return Err(Errno::E2BIG);
        }
        let memory = Memory::new(&quota)?;
        Ok(Resource { node: self.clone(), quota, memory, reserve: self.0.transport.reserve()? })
    }

    /// The registered buffers.
    pub(crate) fn table(&self) -> &Table {
        &self.0.table
    }

    /// A number that nobody can guess.
    pub(crate) fn random(&self) -> [u8; 16] {
        (self.0.random.borrow_mut())()
    }

    /// A number for a courier.
    pub(crate) fn next_courier(&self) -> u32 {
        self.0.last_courier.set(self.0.last_courier.get() + 1);
        self.0.last_courier.get()
    }

    /// A number that no node has used before.
    pub(crate) fn next_epoch(&self) -> Epoch {
        self.0.last_epoch.set(self.0.last_epoch.get() + 1);
        Epoch(self.0.last_epoch.get())
    }
}

/// What an endpoint needs: memory, and what the transport's meetings need.
pub struct Resource<T: Transport> {
    pub(crate) node: Node<T>,
    pub(crate) quota: Quota,
    pub(crate) memory: Memory,
    pub(crate) reserve: T::Reserve,
}
