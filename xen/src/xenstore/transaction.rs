//! Several reads and writes that take effect together or not at all.

use super::Nodes;
use super::connection::{Connection, Undo};
use crate::Errno;
use crate::abi::xs_wire::XS_TRANSACTION_END;
use alloc::rc::Rc;
use core::ops::Deref;

/// An open transaction. Its methods are those of [`Nodes`], and others see the changes only after
/// [`commit`](Transaction::commit). Dropping it aborts it.
#[derive(Debug)]
pub struct Transaction {
    nodes: Nodes,
    open: bool,
}

impl Transaction {
    pub(super) fn new(connection: Rc<Connection>, id: u32) -> Self {
        let generation = connection.begin_transaction();
        Transaction { nodes: Nodes { connection, transaction: id, generation }, open: true }
    }

    /// Commits all changes. [`Errno::EAGAIN`] and no change if another client changed the same
    /// nodes: then retry. If the future is dropped, the result is unknown.
    pub async fn commit(mut self) -> Result<(), Errno> {
        if self.nodes.is_lost() {
            return Err(Errno::EAGAIN);
        }
        let Nodes { connection, transaction, generation } = &self.nodes;
        let end = connection.request(XS_TRANSACTION_END, *transaction, Undo::Nothing, &[b"T\0"])?;
        self.open = false;
        connection.end_transaction(*generation);
        end.await.map(drop)
    }
}

impl Deref for Transaction {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.nodes
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.open && !self.nodes.is_lost() {
            let Nodes { connection, transaction, generation } = &self.nodes;
            connection.send_and_forget(XS_TRANSACTION_END, *transaction, &[b"F\0"]);
            connection.end_transaction(*generation);
        }
    }
}
