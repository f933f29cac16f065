//! The answers to requests.

use super::tree::{Change, Tree, is_within};
use crate::abi::xs_wire::*;
use crate::xenstore::wire::{self, Access, HEADER_LEN, Header, Permission, check_path};
use crate::{DomId, Errno};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::slice;
use core::task::Waker;

pub(super) struct Server {
    pub(super) tree: Tree,
    pub(super) clients: BTreeMap<u32, Client>,
    pub(super) last_client: u32,
    pub(super) last_transaction: u32,
    pub(super) paused: bool,
    pub(super) requests: u64,
}

pub(super) struct Client {
    pub(super) domain: DomId,
    pub(super) input: Vec<u8>,
    pub(super) output: VecDeque<u8>,
    pub(super) reader: Option<Waker>,
    pub(super) open: bool,
    pub(super) watches: Vec<Watched>,
    pub(super) transactions: BTreeMap<u32, Work>,
}

pub(super) struct Watched {
    /// As in the client's request.
    path: String,
    token: String,
}

/// A transaction: its own tree, the nodes that it accessed, and its changes.
pub(super) struct Work {
    base: Tree,
    tree: Tree,
    touched: BTreeSet<String>,
    changes: Vec<Change>,
}

/// Events to send: clients and messages.
pub(super) type Events = Vec<(u32, Vec<u8>)>;

pub(super) fn home(domain: DomId) -> String {
    format!("/local/domain/{domain}")
}

fn absolute(domain: DomId, path: &str) -> String {
    if path.starts_with(['/', '@']) { path.into() } else { format!("{}/{path}", home(domain)) }
}

impl Server {
    pub(super) fn new() -> Self {
        let (tree, clients) = (Tree::new(), BTreeMap::new());
        Server { tree, clients, last_client: 0, last_transaction: 0, paused: false, requests: 0 }
    }

    pub(super) fn connect(&mut self, domain: DomId) -> u32 {
        let client = Client {
            domain,
            input: Vec::new(),
            output: VecDeque::new(),
            reader: None,
            open: true,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
        };
        self.last_client += 1;
        self.clients.insert(self.last_client, client);
        self.last_client
    }

    /// Answers the complete requests of a client.
    pub(super) fn serve(&mut self, id: u32) {
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
            self.requests += 1;
            let mut fired = Events::new();
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
            self.send(fired);
        }
    }

    fn handle(
        &mut self,
        id: u32,
        header: Header,
        payload: &[u8],
        fired: &mut Events,
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
                    self.commit(domain, work, fired)?;
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
            None => self.apply(&change, domain, fired)?,
        }
        Ok(OK.into())
    }

    /// Applies a transaction's changes, if no node that it accessed has changed since it began.
    fn commit(&mut self, domain: DomId, work: Work, fired: &mut Events) -> Result<(), Errno> {
        let same = |path: &String| self.tree.generation_of(path) == work.base.generation_of(path);
        if !work.touched.iter().all(same) {
            return Err(Errno::EAGAIN);
        }
        work.changes.iter().try_for_each(|change| self.apply(change, domain, fired))
    }

    /// Applies a change, and adds the events that follow.
    pub(super) fn apply(
        &mut self,
        change: &Change,
        domain: DomId,
        fired: &mut Events,
    ) -> Result<(), Errno> {
        // What is removed or hidden is announced to all who could see it.
        let before = match change {
            Change::Rm(root) => self.events(&self.tree.within(root), root),
            Change::SetPermissions(path, _) => self.events(slice::from_ref(path), path),
            _ => Events::new(),
        };
        if change.apply(&mut self.tree, domain)? {
            let path = change.path().to_string();
            let after = self.events(slice::from_ref(&path), &path);
            fired.extend(after.into_iter().filter(|event| !before.contains(event)));
            fired.extend(before);
        }
        Ok(())
    }

    /// The events of these nodes: those of the first one, `root`, go to its watches and to those of
    /// the nodes above it, those of others only to their own. A domain gets the events of the nodes
    /// that are shown to it.
    pub(super) fn events(&self, paths: &[String], root: &str) -> Events {
        let mut events = Events::new();
        for (path, (id, client)) in
            paths.iter().flat_map(|path| self.clients.iter().map(move |it| (path, it)))
        {
            let is_shown = path.starts_with('@') || self.tree.shows(client.domain, path);
            for watch in client.watches.iter().filter(|_| is_shown) {
                let watched = absolute(client.domain, &watch.path);
                if if path == root { is_within(path, &watched) } else { *path == watched } {
                    let relative = path.strip_prefix(&watched).unwrap_or_default();
                    events.push((*id, event(&(watch.path.clone() + relative), &watch.token)));
                }
            }
        }
        events
    }

    pub(super) fn send(&mut self, events: Events) {
        for (client, event) in events {
            if let Some(client) = self.clients.get_mut(&client) {
                client.output.extend(event);
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
