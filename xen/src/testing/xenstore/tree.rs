//! The nodes: values, permissions, and the changes to them, which are applied at once or when a
//! transaction is committed.

use crate::xenstore::{Access, Permission};
use crate::{DomId, Errno};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

#[derive(Clone)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) permissions: Vec<Permission>,
    /// Domains whose permissions do not count, as they did not exist when these were given.
    strangers: Vec<DomId>,
    /// The number of the last change to the node or the list of its children.
    generation: u64,
}

/// All nodes by absolute path. Every node's parents exist.
#[derive(Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    domains: BTreeSet<DomId>,
    generation: u64,
}

pub(super) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

/// Whether `path` is `above` or lies below it.
pub(super) fn is_within(path: &str, above: &str) -> bool {
    above == "/"
        || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Node {
    fn permits(&self, who: DomId, wanted: Access) -> bool {
        let owner = self.permissions[0];
        if who == DomId(0) || owner.domain == who {
            return true;
        }
        let is_own = |entry: &&Permission| entry.domain == who && !self.strangers.contains(&who);
        let access = self.permissions[1..].iter().find(is_own).unwrap_or(&owner).access;
        access == Access::Both || access == wanted
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        let permissions = vec![Permission { access: Access::None, domain: DomId(0) }];
        let (value, strangers) = Default::default();
        let root = Node { value, permissions, strangers, generation: 0 };
        let (nodes, domains) = ([("/".to_string(), root)].into(), [DomId(0)].into());
        Tree { nodes, domains, generation: 0 }
    }

    pub(super) fn generation_of(&self, path: &str) -> Option<u64> {
        self.nodes.get(path).map(|node| node.generation)
    }

    fn may(&self, who: DomId, path: &str, wanted: Access) -> bool {
        self.nodes.get(path).is_some_and(|node| node.permits(who, wanted))
    }

    /// Whether `who` gets the events of a node, which exists: it can be read, or its parent can.
    pub(super) fn shows(&self, who: DomId, path: &str) -> bool {
        self.may(who, path, Access::Read) || self.may(who, parent(path), Access::Read)
    }

    /// A node and all below it.
    pub(super) fn within(&self, path: &str) -> Vec<String> {
        self.nodes.keys().filter(|at| is_within(at, path)).cloned().collect()
    }

    /// A node that `who` may access.
    pub(super) fn get(&self, who: DomId, path: &str, wanted: Access) -> Result<&Node, Errno> {
        match self.nodes.get(path) {
            Some(node) if self.may(who, path, wanted) => Ok(node),
            Some(_) => Err(Errno::EACCES),
            // A domain without access to the parent must not learn that the node is missing.
            None if path == "/" => Err(Errno::ENOENT),
            None => match self.get(who, parent(path), Access::Read) {
                Err(Errno::EACCES) => Err(Errno::EACCES),
                _ => Err(Errno::ENOENT),
            },
        }
    }

    pub(super) fn children(&self, path: &str) -> Vec<String> {
        let prefix = if path == "/" { "/".to_string() } else { path.to_string() + "/" };
        let below =
            self.nodes.range(prefix.clone()..).map_while(|(at, _)| at.strip_prefix(&prefix));
        below.filter(|name| !name.is_empty() && !name.contains('/')).map(String::from).collect()
    }

    /// Adds a domain, from now on.
    pub(super) fn add_domain(&mut self, domain: DomId) {
        self.domains.insert(domain);
    }

    /// Removes a domain. Another one with its number does not get its permissions.
    pub(super) fn remove_domain(&mut self, domain: DomId) {
        self.domains.remove(&domain);
        self.nodes.values_mut().for_each(|node| node.strangers.push(domain));
    }

    /// A node that belongs to a domain, the highest first.
    pub(super) fn owned(&self, domain: DomId) -> Option<String> {
        let mut nodes = self.nodes.iter();
        nodes.find(|(_, node)| node.permissions[0].domain == domain).map(|(path, _)| path.clone())
    }

    fn touch(&mut self, path: &str) {
        self.generation += 1;
        if let Some(node) = self.nodes.get_mut(path) {
            node.generation = self.generation;
        }
    }

    fn create(&mut self, who: DomId, path: &str) -> Result<(), Errno> {
        let above = parent(path).to_string();
        if !self.nodes.contains_key(&above) {
            self.create(who, &above)?;
        } else if !self.may(who, &above, Access::Write) {
            return Err(Errno::EACCES);
        }
        let Node { mut permissions, strangers, .. } = self.nodes[&above].clone();
        if who != DomId(0) {
            permissions[0].domain = who;
        }
        self.touch(&above);
        let node = Node { value: Vec::new(), permissions, strangers, generation: self.generation };
        self.nodes.insert(path.to_string(), node);
        Ok(())
    }

    pub(super) fn write(&mut self, who: DomId, path: &str, value: &[u8]) -> Result<(), Errno> {
        if !self.nodes.contains_key(path) {
            self.create(who, path)?;
        } else if !self.may(who, path, Access::Write) {
            return Err(Errno::EACCES);
        }
        self.touch(path);
        self.nodes.get_mut(path).ok_or(Errno::EIO)?.value = value.to_vec();
        Ok(())
    }

    /// Returns whether the node is new.
    pub(super) fn mkdir(&mut self, who: DomId, path: &str) -> Result<bool, Errno> {
        if self.nodes.contains_key(path) {
            return Ok(false);
        }
        self.create(who, path).map(|()| true)
    }

    /// Returns whether a node was removed. A missing one is not an error if its parent exists.
    pub(super) fn rm(&mut self, who: DomId, path: &str) -> Result<bool, Errno> {
        if path == "/" {
            return Err(Errno::EINVAL);
        }
        match self.get(who, path, Access::Write) {
            Ok(_) => {}
            Err(Errno::ENOENT) if self.nodes.contains_key(parent(path)) => return Ok(false),
            Err(error) => return Err(error),
        }
        self.nodes.retain(|at, _| !is_within(at, path));
        let above = parent(path).to_string();
        self.touch(&above);
        Ok(true)
    }

    pub(super) fn set_permissions(
        &mut self,
        who: DomId,
        path: &str,
        permissions: Vec<Permission>,
    ) -> Result<(), Errno> {
        let owner = self.get(who, path, Access::Write)?.permissions[0].domain;
        let first = permissions.first().ok_or(Errno::EINVAL)?;
        if who != DomId(0) && (owner != who || first.domain != who) {
            return Err(Errno::EPERM);
        }
        self.touch(path);
        let node = self.nodes.get_mut(path).ok_or(Errno::EIO)?;
        let named = permissions[1..].iter().map(|entry| entry.domain);
        node.strangers = named.filter(|named| !self.domains.contains(named)).collect();
        node.permissions = permissions;
        Ok(())
    }
}

#[derive(Clone)]
pub(super) enum Change {
    Write(String, Vec<u8>),
    Mkdir(String),
    Rm(String),
    SetPermissions(String, Vec<Permission>),
}

impl Change {
    pub(super) fn path(&self) -> &str {
        let (Change::Write(path, _)
        | Change::Mkdir(path)
        | Change::Rm(path)
        | Change::SetPermissions(path, _)) = self;
        path
    }

    /// Returns whether something changed.
    pub(super) fn apply(&self, tree: &mut Tree, who: DomId) -> Result<bool, Errno> {
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
