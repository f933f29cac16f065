//! The handle on a connection.

use super::connection::{Connection, Undo, transaction_id};
use super::{Nodes, Transaction, Watch};
use crate::Errno;
use crate::abi::xs_wire::XS_TRANSACTION_START;
use alloc::rc::Rc;
use core::future::poll_fn;
use core::ops::Deref;

/// A handle on a connection to xenstored. Clones share the connection.
///
/// Reads and writes are those of [`Nodes`].
#[derive(Debug)]
pub struct Store(Nodes);

impl Store {
    pub(super) fn new(connection: Rc<Connection>) -> Self {
        Store(Nodes { connection, transaction: 0, generation: 0 })
    }

    pub(super) fn connection(&self) -> &Rc<Connection> {
        &self.0.connection
    }

    /// Watches a node and all below it, or a special path such as `@releaseDomain`. A watch fires
    /// once as soon as it is registered.
    pub async fn watch(&self, path: &str) -> Result<Watch, Errno> {
        Watch::register(self.0.connection.clone(), path).await
    }

    /// Quiesces the connection, so that the domain can be saved: sends only requests of open
    /// transactions, and waits until these have ended and all sent requests have replies. Other
    /// requests wait until [`release`](Store::release), also if the future is dropped.
    pub async fn quiesce(&self) {
        self.connection().quiesce();
        poll_fn(|cx| self.connection().poll_quiet(cx)).await;
    }

    /// Sends all requests again.
    pub fn release(&self) {
        self.connection().release();
    }

    /// Starts a transaction.
    pub async fn transaction(&self) -> Result<Transaction, Errno> {
        let connection = self.0.connection.clone();
        let start = connection.request(XS_TRANSACTION_START, 0, Undo::EndTransaction, &[&[0]])?;
        Ok(Transaction::new(connection, transaction_id(&start.await?)?))
    }

    /// Runs `work` in a transaction and commits it. Retries if another client changed the same
    /// nodes; [`Errno::EAGAIN`] if that happens many times in a row.
    pub async fn transact<T>(
        &self,
        work: impl AsyncFn(&Transaction) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        const TRIES: usize = 16;
        for _ in 0..TRIES {
            let once = async {
                let transaction = self.transaction().await?;
                let value = work(&transaction).await?;
                transaction.commit().await.map(|()| value)
            };
            match once.await {
                Err(Errno::EAGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::EAGAIN)
    }
}

impl Clone for Store {
    fn clone(&self) -> Self {
        Store::new(self.0.connection.clone())
    }
}

impl Deref for Store {
    type Target = Nodes;

    fn deref(&self) -> &Nodes {
        &self.0
    }
}
