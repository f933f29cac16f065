//! Changes of the tree, at once or when a transaction is committed.

use super::tree::Tree;
use crate::xenstore::Permission;
use crate::{DomId, Errno};
use alloc::string::String;
use alloc::vec::Vec;

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
