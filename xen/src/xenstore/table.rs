//! A map from ids to a few values: a search through all of them takes less code than a tree.

use alloc::vec::Vec;

/// The values, in no order.
#[derive(Debug)]
pub(super) struct Table<V>(Vec<(u32, V)>);

impl<V> Default for Table<V> {
    fn default() -> Self {
        Table(Vec::new())
    }
}

impl<V> Table<V> {
    fn find(&self, id: u32) -> Option<usize> {
        self.0.iter().position(|(one, _)| *one == id)
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        self.find(id).is_some()
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut V> {
        self.find(id).map(|at| &mut self.0[at].1)
    }

    /// Adds a value with an id that is not in use.
    pub(super) fn insert(&mut self, id: u32, value: V) {
        self.0.push((id, value));
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<V> {
        self.find(id).map(|at| self.0.swap_remove(at).1)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &V)> {
        self.0.iter().map(|(id, value)| (*id, value))
    }

    pub(super) fn retain(&mut self, mut keeps: impl FnMut(u32, &mut V) -> bool) {
        self.0.retain_mut(|(id, value)| keeps(*id, value));
    }
}
