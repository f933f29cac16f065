//! The fake's answers to requests.

use super::tree::{Tree, is_within};
use super::{PipeReader, PipeWriter};
use crate::abi::xs_wire::*;
use crate::xenstore::wire::{self, Access, HEADER_LEN, Header, Permission, check_path};
use crate::{DomId, Errno};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::{Context, Poll, Waker};

/// A xenstored in memory; clones are the same one.
#[derive(Clone)]
pub struct FakeStore(Rc<RefCell<Server>>);

struct Server {
    tree: Tree,
    clients: BTreeMap<u32, Client>,
    last_client: u32,
    last_transaction: u32,
    paused: bool,
}

struct Client {
    domain: DomId,
    input: Vec<u8>,
    output: VecDeque<u8>,
    reader: Option<Waker>,
    open: bool,
    watches: Vec<Watched>,
    transactions: BTreeMap<u32, Work>,
}

struct Watched {
    /// As the client named it.
    path: String,
    token: String,
}

/// A transaction: a tree of its own, what it looked at, and what it did.
struct Work {
    base: Tree,
    tree: Tree,
    touched: BTreeSet<String>,
    changes: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(String, Vec<u8>),
    Mkdir(String),
    Rm(String),
    SetPermissions(String, Vec<Permission>),
}

impl Change {
    fn path(&self) -> &str {
        let (Change::Write(path, _)
        | Change::Mkdir(path)
        | Change::Rm(path)
        | Change::SetPermissions(path, _)) = self;
        path
    }

    /// Returns whether something changed.
    fn apply(&self, tree: &mut Tree, who: DomId) -> Result<bool, Errno> {
        match self {
            Change::Write(path, value) => tree.write(who, path, value).map(|()| true),
            Change::Mkdir(path) => tree.mkdir(who, path),
            Change::Rm(path) => tree.rm(who, path),
            Change::SetPermissions(path, permissions) => {
                tree.set_permissions(who, path, permissions.clone()).map(|()| true)
            }
        }
    }
}

impl Default for FakeStore {
    fn default() -> Self {
        FakeStore::new()
    }
}

impl FakeStore {
    /// An empty store.
    pub fn new() -> Self {
        FakeStore(Rc::new(RefCell::new(Server {
            tree: Tree::new(),
            clients: BTreeMap::new(),
            last_client: 0,
            last_transaction: 0,
            paused: false,
        })))
    }

    /// A connection of a domain; relative paths are below its home. Give both ends to
    /// [`connect`](crate::xenstore::connect).
    pub fn connect(&self, domain: DomId) -> (PipeReader, PipeWriter) {
        let mut server = self.0.borrow_mut();
        server.last_client += 1;
        let client = server.last_client;
        let state = Client {
            domain,
            input: Vec::new(),
            output: VecDeque::new(),
            reader: None,
            open: true,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
        };
        server.clients.insert(client, state);
        (PipeReader { store: self.clone(), client }, PipeWriter { store: self.clone(), client })
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
        let home = home(domain);
        self.write(&home, "");
        self.set_permissions(&home, &[Permission { access: Access::None, domain }]);
    }

    /// Fires the watches of a path, such as `@releaseDomain`.
    pub fn fire(&self, path: &str) {
        self.update(|server| server.fire(path, false));
    }

    /// Leaves requests unanswered from now on.
    pub fn pause(&self) {
        self.0.borrow_mut().paused = true;
    }

    /// Answers requests again, those that came meanwhile first.
    pub fn resume(&self) {
        self.update(|server| {
            server.paused = false;
            let clients: Vec<u32> = server.clients.keys().copied().collect();
            clients.into_iter().for_each(|client| server.serve(client));
        });
    }

    /// Sends raw bytes to every client, to see what they make of them.
    pub fn inject(&self, bytes: &[u8]) {
        self.update(|server| {
            server.clients.values_mut().for_each(|client| client.output.extend(bytes));
        });
    }

    /// The watches that are registered, over all clients.
    pub fn watches(&self) -> usize {
        self.0.borrow().clients.values().map(|client| client.watches.len()).sum()
    }

    /// The transactions that are open, over all clients.
    pub fn transactions(&self) -> usize {
        self.0.borrow().clients.values().map(|client| client.transactions.len()).sum()
    }

    fn change(&self, change: Change) {
        self.update(|server| {
            let changed = change.apply(&mut server.tree, DomId(0));
            assert!(changed.is_ok(), "the test changes {}, which cannot be", change.path());
            server.fire(change.path(), matches!(change, Change::Rm(_)));
        });
    }

    /// Changes the state, then wakes the clients that got something; not while it is borrowed.
    fn update(&self, change: impl FnOnce(&mut Server)) {
        let mut server = self.0.borrow_mut();
        change(&mut server);
        let ready = server.clients.values_mut().filter(|it| !it.output.is_empty() || !it.open);
        let wakers: Vec<Waker> = ready.filter_map(|client| client.reader.take()).collect();
        drop(server);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) fn input(&self, client: u32, bytes: &[u8]) {
        self.update(|server| {
            if let Some(client) = server.clients.get_mut(&client) {
                client.input.extend_from_slice(bytes);
            }
            server.serve(client);
        });
    }

    pub(super) fn disconnect(&self, client: u32) {
        self.update(|server| drop(server.clients.remove(&client)));
    }

    pub(super) fn poll_output(
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

fn home(domain: DomId) -> String {
    format!("/local/domain/{domain}")
}

fn absolute(domain: DomId, path: &str) -> String {
    if path.starts_with(['/', '@']) { path.into() } else { format!("{}/{path}", home(domain)) }
}

impl Server {
    /// Answers the complete requests of a client.
    fn serve(&mut self, id: u32) {
        while !self.paused
            && let Some(client) = self.clients.get_mut(&id)
            && client.open
            && let Some(head) = client.input.first_chunk::<HEADER_LEN>()
        {
            let Ok(header) = Header::decode(head) else {
                client.open = false;
                return;
            };
            if client.input.len() < HEADER_LEN + header.len {
                return;
            }
            let message: Vec<u8> = client.input.drain(..HEADER_LEN + header.len).collect();
            let mut fired = Vec::new();
            let answer = self.handle(id, header, &message[HEADER_LEN..], &mut fired);
            let (kind, payload) = match answer {
                Ok(payload) => (header.kind, payload),
                Err(error) => (XS_ERROR, format!("{}\0", error.name().unwrap_or("EIO")).into()),
            };
            let answer = wire::encode(kind, header.request, header.transaction, &[&payload])
                .or_else(|_| wire::encode(XS_ERROR, header.request, 0, &[b"E2BIG\0"]));
            if let (Some(client), Ok(answer)) = (self.clients.get_mut(&id), answer) {
                client.output.extend(answer);
            }
            if let (XS_WATCH, Some(client)) = (kind, self.clients.get_mut(&id))
                && let Some(watch) = client.watches.last()
            {
                let event = event(&watch.path, &watch.token);
                client.output.extend(event);
            }
            fired.into_iter().for_each(|(path, all)| self.fire(&path, all));
        }
    }

    fn handle(
        &mut self,
        id: u32,
        header: Header,
        payload: &[u8],
        fired: &mut Vec<(String, bool)>,
    ) -> Result<Vec<u8>, Errno> {
        const OK: &[u8] = b"OK\0";
        let mut strings = wire::strings(payload);
        let first = wire::text(strings.next().unwrap_or_default()).map_err(|_| Errno::EINVAL)?;
        let second = strings.next();
        let client = self.clients.get_mut(&id).ok_or(Errno::EIO)?;
        let domain = client.domain;
        match header.kind {
            XS_TRANSACTION_START => {
                self.last_transaction += 1;
                let (base, tree) = (self.tree.clone(), self.tree.clone());
                let work = Work { base, tree, touched: BTreeSet::new(), changes: Vec::new() };
                client.transactions.insert(self.last_transaction, work);
                return Ok(format!("{}\0", self.last_transaction).into());
            }
            XS_TRANSACTION_END => {
                let work = client.transactions.remove(&header.transaction).ok_or(Errno::ENOENT)?;
                if first == "T" {
                    fired.extend(self.commit(domain, work)?);
                }
                return Ok(OK.into());
            }
            XS_GET_DOMAIN_PATH => {
                let domain = DomId(first.parse().map_err(|_| Errno::EINVAL)?);
                return Ok(format!("{}\0", home(domain)).into());
            }
            _ => check_path(&first)?,
        }
        let path = absolute(domain, &first);
        match header.kind {
            XS_WATCH => {
                let token = wire::text(second.ok_or(Errno::EINVAL)?)?;
                if client.watches.iter().any(|it| it.path == first && it.token == token) {
                    return Err(Errno::EEXIST);
                }
                client.watches.push(Watched { path: first, token });
                return Ok(OK.into());
            }
            XS_UNWATCH => {
                let token = wire::text(second.ok_or(Errno::EINVAL)?)?;
                let found =
                    client.watches.iter().position(|it| it.path == first && it.token == token);
                client.watches.remove(found.ok_or(Errno::ENOENT)?);
                return Ok(OK.into());
            }
            _ => {}
        }
        let work = match header.transaction {
            0 => None,
            id => Some(client.transactions.get_mut(&id).ok_or(Errno::ENOENT)?),
        };
        let value = || payload.get(first.len() + 1..).unwrap_or_default();
        let change = match header.kind {
            XS_WRITE => Change::Write(path.clone(), value().to_vec()),
            XS_MKDIR => Change::Mkdir(path.clone()),
            XS_RM => Change::Rm(path.clone()),
            XS_SET_PERMS => {
                let all = wire::strings(value()).map(Permission::decode);
                let all = all.collect::<Result<_, _>>().map_err(|_| Errno::EINVAL)?;
                Change::SetPermissions(path.clone(), all)
            }
            kind => {
                let tree = match work {
                    Some(work) => {
                        work.touched.insert(path.clone());
                        &work.tree
                    }
                    None => &self.tree,
                };
                return look(tree, domain, kind, &path, second);
            }
        };
        match work {
            Some(work) => {
                work.touched.insert(path);
                change.apply(&mut work.tree, domain)?;
                work.changes.push(change);
            }
            None => {
                if change.apply(&mut self.tree, domain)? {
                    fired.push((path, matches!(change, Change::Rm(_))));
                }
            }
        }
        Ok(OK.into())
    }

    /// Does what a transaction did, if nothing that it touched has changed since it began.
    fn commit(&mut self, domain: DomId, work: Work) -> Result<Vec<(String, bool)>, Errno> {
        let same = |path: &String| self.tree.generation_of(path) == work.base.generation_of(path);
        if !work.touched.iter().all(same) {
            return Err(Errno::EAGAIN);
        }
        let mut fired = Vec::new();
        for change in work.changes {
            if change.apply(&mut self.tree, domain)? {
                fired.push((change.path().to_string(), matches!(change, Change::Rm(_))));
            }
        }
        Ok(fired)
    }

    /// Sends events to the watches of a path and of those above it, and if `below`, of those below.
    fn fire(&mut self, path: &str, below: bool) {
        let tree = &self.tree;
        for client in self.clients.values_mut() {
            let domain = client.domain;
            for watch in &client.watches {
                let watched = absolute(domain, &watch.path);
                let named = if is_within(path, &watched) {
                    path
                } else if below && is_within(&watched, path) {
                    &watched
                } else {
                    continue;
                };
                // Of a node that is gone everybody hears who watched it.
                if tree.exists(named) && tree.get(domain, named, Access::Read).is_err() {
                    continue;
                }
                let relative = named.strip_prefix(&watched).unwrap_or_default();
                client.output.extend(event(&(watch.path.clone() + relative), &watch.token));
            }
        }
    }
}

fn look(
    tree: &Tree,
    domain: DomId,
    kind: u32,
    path: &str,
    offset: Option<&[u8]>,
) -> Result<Vec<u8>, Errno> {
    let node = tree.get(domain, path, Access::Read)?;
    let mut names = Vec::new();
    for name in tree.children(path) {
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    match kind {
        XS_READ => Ok(node.value.clone()),
        XS_GET_PERMS => Ok(Permission::encode_all(&node.permissions)),
        XS_DIRECTORY if names.len() > XENSTORE_PAYLOAD_MAX => Err(Errno::E2BIG),
        XS_DIRECTORY => Ok(names),
        XS_DIRECTORY_PART => {
            let offset = wire::text(offset.ok_or(Errno::EINVAL)?)?;
            let offset: usize = offset.parse().map_err(|_| Errno::EINVAL)?;
            let rest = names.get(offset..).ok_or(Errno::EINVAL)?;
            let mut part = format!("{}\0", tree.generation_of(path).unwrap_or(0)).into_bytes();
            let room = XENSTORE_PAYLOAD_MAX - part.len() - 1;
            if rest.len() <= room {
                part.extend_from_slice(rest);
                part.push(0);
            } else {
                let end = rest[..room].iter().rposition(|&byte| byte == 0).ok_or(Errno::EIO)?;
                part.extend_from_slice(&rest[..=end]);
            }
            Ok(part)
        }
        _ => Err(Errno::ENOSYS),
    }
}

fn event(path: &str, token: &str) -> Vec<u8> {
    let parts: [&[u8]; 4] = [path.as_bytes(), &[0], token.as_bytes(), &[0]];
    wire::encode(XS_WATCH_EVENT, 0, 0, &parts).unwrap_or_default()
}
