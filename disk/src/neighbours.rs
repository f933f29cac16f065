//! Who talks with this domain, and how much.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

/// The most neighbours that are remembered after they have left.
const KEPT: usize = 8;

/// The neighbours of this domain, present and some past ones. Clones are the same list.
#[derive(Clone, Default)]
pub struct Neighbours(Rc<RefCell<Vec<Rc<Neighbour>>>>);

/// Another end.
pub struct Neighbour {
    /// Its address, as text.
    pub address: String,
    /// What it is to this domain.
    pub role: Role,
    connected: Cell<bool>,
    counts: Cell<Counts>,
}

/// What a neighbour is to this domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves this domain.
    Server,
    /// This domain serves it.
    Client,
}

/// What was done for, or by, a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections, present and past.
    pub connections: u64,
    /// Transactions that have ended well.
    pub transactions: u64,
    /// Transactions that have failed or were given up.
    pub failures: u64,
    /// Bytes that clients have read from servers.
    pub read: u64,
    /// Bytes that clients have written to servers.
    pub written: u64,
    /// Blocks that came out of a cache of this domain.
    pub hits: u64,
    /// Blocks that did not.
    pub misses: u64,
}

impl Neighbours {
    /// The neighbour with this address, which has connected.
    pub(crate) fn connected(&self, address: String, role: Role) -> Rc<Neighbour> {
        let mut list = self.0.borrow_mut();
        let same = |one: &Rc<Neighbour>| {
            !one.is_connected() && (&one.address, one.role) == (&address, role)
        };
        let neighbour = match list.iter().find(|one| same(one)).cloned() {
            Some(known) => known,
            None => {
                let new = Rc::new(Neighbour::new(address, role));
                list.push(new.clone());
                new
            }
        };
        neighbour.connect();
        let gone = list.iter().filter(|one| !one.is_connected()).count();
        if gone > KEPT
            && let Some(oldest) = list.iter().position(|one| !one.is_connected())
        {
            list.remove(oldest);
        }
        neighbour
    }

    /// Adds a neighbour that is not connected yet.
    pub(crate) fn expected(&self, address: String, role: Role) -> Rc<Neighbour> {
        let neighbour = Rc::new(Neighbour::new(address, role));
        self.0.borrow_mut().push(neighbour.clone());
        neighbour
    }

    /// Servers first, then clients in the order of their arrival.
    pub fn list(&self) -> Vec<Rc<Neighbour>> {
        let mut list = self.0.borrow().clone();
        list.sort_by_key(|one| one.role == Role::Client);
        list
    }
}

impl Neighbour {
    fn new(address: String, role: Role) -> Self {
        Neighbour { address, role, connected: Cell::new(false), counts: Cell::default() }
    }

    pub(crate) fn connect(&self) {
        self.connected.set(true);
        self.count(|counts| counts.connections += 1);
    }

    pub(crate) fn disconnect(&self) {
        self.connected.set(false);
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.get();
        change(&mut counts);
        self.counts.set(counts);
    }

    /// Whether there is a connection with it.
    pub fn is_connected(&self) -> bool {
        self.connected.get()
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn a_neighbour_that_comes_back_is_the_same_one() {
        let neighbours = Neighbours::default();
        let first = neighbours.connected("xen:3".into(), Role::Client);
        let second = neighbours.connected("xen:3".into(), Role::Client);
        assert!(!Rc::ptr_eq(&first, &second), "both are connected");
        first.count(|counts| counts.hits += 5);
        first.disconnect();
        let again = neighbours.connected("xen:3".into(), Role::Client);
        assert!(Rc::ptr_eq(&first, &again));
        assert_eq!((again.counts().connections, again.counts().hits), (2, 5));
    }

    #[test]
    fn only_the_latest_of_those_that_have_left_are_remembered() {
        let neighbours = Neighbours::default();
        let _server = neighbours.expected("xen:0/disk".into(), Role::Server);
        let stays = neighbours.connected("tcp:10.0.0.1:1".into(), Role::Client);
        for port in 2..100 {
            neighbours.connected(format!("tcp:10.0.0.1:{port}"), Role::Client).disconnect();
        }
        let list = neighbours.list();
        assert!(list.len() <= KEPT + 2, "{} neighbours", list.len());
        assert!(list.iter().any(|one| Rc::ptr_eq(one, &stays)));
        assert_eq!(list.last().unwrap().address, "tcp:10.0.0.1:99");
    }
}
