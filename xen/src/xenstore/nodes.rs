//! Reads and writes of nodes, inside and outside of transactions.

use super::connection::{Connection, Undo};
use super::wire::{self, Permission, check_path};
use crate::abi::xs_wire::*;
use crate::{DomId, Errno};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Reads and writes the tree's nodes.
///
/// [`Store`](super::Store) and [`Transaction`](super::Transaction) dereference to it, so a function
/// over `&Nodes` works inside and outside of transactions. A path that does not begin with a slash
/// is below the domain's home, `/local/domain/N`. All methods fail with [`Errno::EINVAL`] for a
/// malformed path, with [`Errno::E2BIG`] for one that is too long, with xenstored's error, or with
/// the error that ended the connection.
#[derive(Debug)]
pub struct Nodes {
    pub(super) connection: Rc<Connection>,
    pub(super) transaction: u32,
    /// The connection's generation when the transaction began.
    pub(super) generation: u32,
}

impl Nodes {
    /// A node's value.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        self.ask(XS_READ, path, &[&[0]]).await
    }

    /// A node's value, as text. [`Errno::EPROTO`] if it is not UTF-8.
    pub async fn read_string(&self, path: &str) -> Result<String, Errno> {
        wire::text(&self.read(path).await?)
    }

    /// Writes a node's value. Creates the node and missing parents.
    pub async fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Errno> {
        self.ask(XS_WRITE, path, &[&[0], value.as_ref()]).await.map(drop)
    }

    /// Removes a node and all below it.
    pub async fn rm(&self, path: &str) -> Result<(), Errno> {
        self.ask(XS_RM, path, &[&[0]]).await.map(drop)
    }

    /// Creates an empty node, unless it exists.
    pub async fn mkdir(&self, path: &str) -> Result<(), Errno> {
        self.ask(XS_MKDIR, path, &[&[0]]).await.map(drop)
    }

    /// The names of a node's children.
    pub async fn directory(&self, path: &str) -> Result<Vec<String>, Errno> {
        match self.ask(XS_DIRECTORY, path, &[&[0]]).await {
            Ok(payload) => wire::strings(&payload).map(wire::text).collect(),
            Err(Errno::E2BIG) => self.directory_in_parts(path).await,
            Err(error) => Err(error),
        }
    }

    /// A node's permissions, its owner's first.
    pub async fn get_permissions(&self, path: &str) -> Result<Vec<Permission>, Errno> {
        let payload = self.ask(XS_GET_PERMS, path, &[&[0]]).await?;
        wire::strings(&payload).map(Permission::decode).collect()
    }

    /// Replaces a node's permissions. The first one names the owner.
    pub async fn set_permissions(
        &self,
        path: &str,
        permissions: &[Permission],
    ) -> Result<(), Errno> {
        let permissions = Permission::encode_all(permissions);
        self.ask(XS_SET_PERMS, path, &[&[0], &permissions]).await.map(drop)
    }

    /// The absolute path of a domain's home.
    pub async fn domain_path(&self, domain: DomId) -> Result<String, Errno> {
        let domain = domain.to_string();
        let parts: [&[u8]; 2] = [domain.as_bytes(), &[0]];
        wire::text(&self.connection.request(XS_GET_DOMAIN_PATH, 0, Undo::Nothing, &parts)?.await?)
    }

    /// Reads a list of children that is too long for one message, in parts. Restarts a few times if
    /// the node changes in between.
    async fn directory_in_parts(&self, path: &str) -> Result<Vec<String>, Errno> {
        const RESTARTS: usize = 8;
        /// More than any node can have. Bounds an endless list.
        const LONGEST: usize = 1 << 20;
        'restart: for _ in 0..RESTARTS {
            let (mut offset, mut generation, mut names) = (0, None, Vec::new());
            while offset < LONGEST {
                let from = offset.to_string();
                let parts: [&[u8]; 3] = [&[0], from.as_bytes(), &[0]];
                let payload = self.ask(XS_DIRECTORY_PART, path, &parts).await?;
                let zero = payload.iter().position(|&byte| byte == 0).ok_or(Errno::EPROTO)?;
                let (count, children) = (payload[..zero].to_vec(), &payload[zero + 1..]);
                if *generation.get_or_insert_with(|| count.clone()) != count {
                    continue 'restart;
                }
                // An empty name ends the list.
                let last = children == [0] || children.ends_with(&[0, 0]);
                for name in wire::strings(children).filter(|name| !name.is_empty()) {
                    names.push(wire::text(name)?);
                }
                if last {
                    return Ok(names);
                }
                if children.is_empty() {
                    return Err(Errno::EPROTO);
                }
                offset += children.len();
            }
            return Err(Errno::E2BIG);
        }
        Err(Errno::EAGAIN)
    }

    /// Whether this belongs to a transaction that ended because the connection was reset.
    pub(super) fn is_lost(&self) -> bool {
        self.transaction != 0 && !self.connection.is_current(self.generation)
    }

    async fn ask(&self, kind: u32, path: &str, rest: &[&[u8]]) -> Result<Vec<u8>, Errno> {
        check_path(path)?;
        if self.is_lost() {
            return Err(Errno::EAGAIN);
        }
        let mut parts: [&[u8]; 4] = [path.as_bytes(), &[], &[], &[]];
        parts[1..=rest.len()].copy_from_slice(rest);
        self.connection.request(kind, self.transaction, Undo::Nothing, &parts)?.await
    }
}
