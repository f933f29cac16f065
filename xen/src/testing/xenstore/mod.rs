//! A xenstored: a tree in memory, with watches, transactions and permissions, that speaks the wire
//! format to any number of clients.
//!
//! It answers while a request is written to it, on the writer's own stack: nothing has to be
//! polled. Bytes go through its pipes in small pieces, so that a client which expects whole
//! messages fails.

mod server;
mod tree;

use crate::xenstore::{self, Access, Permission, Store};
use crate::{DomId, Errno, yield_now};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker};
use embedded_io_async::{ErrorType, Read, Write};
use server::{Events, Server, home};
use tree::Change;

/// A xenstored in memory. Clones are the same one.
#[derive(Clone)]
pub struct FakeStore(Rc<RefCell<Server>>);

impl Default for FakeStore {
    fn default() -> Self {
        FakeStore::new()
    }
}

impl FakeStore {
    /// An empty store.
    pub fn new() -> Self {
        FakeStore(Rc::new(RefCell::new(Server::new())))
    }

    /// A connection of a domain; relative paths are below its home. Give both ends to
    /// [`connect`](crate::xenstore::connect).
    pub fn connect(&self, domain: DomId) -> (PipeReader, PipeWriter) {
        self.introduce(domain);
        let client = self.0.borrow_mut().connect(domain);
        (PipeReader { store: self.clone(), client }, PipeWriter { store: self.clone(), client })
    }

    /// A client of a domain, and the future that runs its connection.
    pub fn client(&self, domain: DomId) -> (Store, impl Future<Output = ()> + use<>) {
        let (reader, writer) = self.connect(domain);
        let (store, driver) = xenstore::connect(reader, writer);
        (store, async move {
            driver.run().await;
        })
    }

    /// A node's value, as text.
    pub fn read(&self, path: &str) -> Option<String> {
        let server = self.0.borrow();
        let node = server.tree.get(DomId(0), path, Access::Read).ok()?;
        Some(String::from_utf8_lossy(&node.value).into_owned())
    }

    /// Writes a node, as dom0.
    pub fn write(&self, path: &str, value: impl AsRef<[u8]>) {
        self.change(Change::Write(path.to_string(), value.as_ref().to_vec()));
    }

    /// Removes a node and all below it, as dom0.
    pub fn rm(&self, path: &str) {
        self.change(Change::Rm(path.to_string()));
    }

    /// Sets a node's permissions, as dom0. Children made later inherit them.
    pub fn set_permissions(&self, path: &str, permissions: &[Permission]) {
        self.change(Change::SetPermissions(path.to_string(), permissions.to_vec()));
    }

    /// Makes a domain's home, which it owns, as the toolstack would.
    pub fn add_domain(&self, domain: DomId) {
        self.introduce(domain);
        let home = home(domain);
        self.write(&home, "");
        self.set_permissions(&home, &[Permission { access: Access::None, domain }]);
        let number = format!("{home}/domid");
        self.write(&number, domain.to_string());
        let readable = [(Access::None, DomId(0)), (Access::Read, domain)];
        let readable = readable.map(|(access, domain)| Permission { access, domain });
        self.set_permissions(&number, &readable);
    }

    /// From now on, a domain can be given permissions, which would not count before.
    fn introduce(&self, domain: DomId) {
        self.0.borrow_mut().tree.add_domain(domain);
    }

    /// Removes a domain's home and all other nodes that it owns, as when a domain is destroyed.
    pub fn remove_domain(&self, domain: DomId) {
        let owned = || self.0.borrow().tree.owned(domain);
        while let Some(path) = owned() {
            self.rm(&path);
        }
        self.rm(&home(domain));
        self.0.borrow_mut().tree.remove_domain(domain);
    }

    /// Makes a device as the toolstack would: a folder for each of its two ends, which the other
    /// end's domain may read.
    pub fn add_device(&self, front: (&str, DomId), back: (&str, DomId)) {
        self.introduce(front.1);
        self.introduce(back.1);
        for ((path, owner), name, (other_path, other)) in
            [(front, "backend", back), (back, "frontend", front)]
        {
            self.write(path, "");
            let permissions = [(Access::None, owner), (Access::Read, other)]
                .map(|(access, domain)| Permission { access, domain });
            self.set_permissions(path, &permissions);
            self.write(&format!("{path}/online"), "1");
            self.write(&format!("{path}/state"), "1");
            self.write(&format!("{path}/{name}-id"), other.to_string());
            self.write(&format!("{path}/{name}"), other_path);
        }
    }

    /// Fires the watches of a path, such as `@releaseDomain`.
    pub fn fire(&self, path: &str) {
        self.update(|server| server.send(server.events(&[path.to_string()], path)));
    }

    /// Leaves requests unanswered from now on.
    pub fn pause(&self) {
        self.0.borrow_mut().paused = true;
    }

    /// Answers requests again, first those that arrived during the pause.
    pub fn resume(&self) {
        self.update(|server| {
            server.paused = false;
            let clients: Vec<u32> = server.clients.keys().copied().collect();
            clients.into_iter().for_each(|client| server.serve(client));
        });
    }

    /// Sends raw bytes to every client, which need not be a message.
    pub fn inject(&self, bytes: &[u8]) {
        self.update(|server| {
            server.clients.values_mut().for_each(|client| client.output.extend(bytes));
        });
    }

    /// The number of requests that were answered, of all clients.
    pub fn requests(&self) -> u64 {
        self.0.borrow().requests
    }

    /// The number of registered watches, over all clients.
    pub fn watches(&self) -> usize {
        self.0.borrow().clients.values().map(|client| client.watches.len()).sum()
    }

    /// The number of open transactions, over all clients.
    pub fn transactions(&self) -> usize {
        self.0.borrow().clients.values().map(|client| client.transactions.len()).sum()
    }

    fn change(&self, change: Change) {
        self.update(|server| {
            let mut fired = Events::new();
            let changed = server.apply(&change, DomId(0), &mut fired);
            assert!(changed.is_ok(), "the test cannot change {}", change.path());
            server.send(fired);
        });
    }

    /// Changes the state, then, after the borrow, wakes the clients that got bytes.
    fn update(&self, change: impl FnOnce(&mut Server)) {
        let mut server = self.0.borrow_mut();
        change(&mut server);
        let ready = server.clients.values_mut().filter(|it| !it.output.is_empty() || !it.open);
        let wakers: Vec<Waker> = ready.filter_map(|client| client.reader.take()).collect();
        drop(server);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn input(&self, client: u32, bytes: &[u8]) {
        self.update(|server| {
            if let Some(client) = server.clients.get_mut(&client) {
                client.input.extend_from_slice(bytes);
            }
            server.serve(client);
        });
    }

    fn disconnect(&self, client: u32) {
        self.update(|server| drop(server.clients.remove(&client)));
    }

    fn poll_output(
        &self,
        client: u32,
        to: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Errno>> {
        let mut server = self.0.borrow_mut();
        let Some(client) = server.clients.get_mut(&client) else { return Poll::Ready(Ok(0)) };
        if client.output.is_empty() && client.open {
            client.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = to.len().min(client.output.len());
        to.iter_mut().zip(client.output.drain(..count)).for_each(|(to, byte)| *to = byte);
        Poll::Ready(Ok(count))
    }
}

/// The most bytes of one read or write.
const PIECE: usize = 23;

/// Bytes to a client. The stream ends when the client breaks the protocol.
pub struct PipeReader {
    store: FakeStore,
    client: u32,
}

impl ErrorType for PipeReader {
    type Error = Errno;
}

impl Read for PipeReader {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        let len = to.len().min(PIECE);
        poll_fn(|cx| self.store.poll_output(self.client, &mut to[..len], cx)).await
    }
}

/// Bytes from a client. Dropping it ends the connection.
pub struct PipeWriter {
    store: FakeStore,
    client: u32,
}

impl ErrorType for PipeWriter {
    type Error = Errno;
}

impl Write for PipeWriter {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        let piece = &from[..from.len().min(PIECE)];
        // Lets other tasks run, as a real write may.
        yield_now().await;
        self.store.input(self.client, piece);
        Ok(piece.len())
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.store.disconnect(self.client);
    }
}
