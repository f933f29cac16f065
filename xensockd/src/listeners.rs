//! Which guest listens where, in all threads.
//!
//! All sockets of the daemon have one owner for Linux, so with `SO_REUSEPORT` any guest could take
//! connections of another one. The daemon permits that only to guests of one section of the rules.

use crate::rules::{Section, covers};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xen::{DomId, Errno};

/// The bound sockets of all guests.
#[derive(Debug, Default)]
pub struct Listeners(Mutex<HashMap<u16, Vec<Holder>>>);

/// A guest that has bound a socket, or is about to.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The guest.
    pub guest: DomId,
    /// The guest in words.
    pub name: String,
    /// Where the socket is, or is to be.
    pub at: SocketAddr,
    /// The section whose guests share ports, if they do.
    pub sharing: Option<Section>,
    /// Whether the guest itself wants several sockets at the address.
    pub reuses: bool,
}

impl Holder {
    fn shares_with(&self, other: &Holder) -> bool {
        let sharing = self.sharing.is_some() && self.sharing == other.sharing;
        sharing && (self.guest != other.guest || (self.reuses && other.reuses))
    }
}

/// Why an address cannot be bound.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Another socket of a guest has it. The guest in words.
    By(String),
    /// Linux refuses.
    Refused(Errno),
}

/// An address that a guest has, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    listeners: Arc<Listeners>,
    holder: Holder,
}

impl Listeners {
    /// Calls `bind` if the guest may have the address, and notes the one that was bound.
    pub fn claim(
        self: &Arc<Self>,
        holder: Holder,
        bind: impl FnOnce() -> Result<SocketAddr, Errno>,
    ) -> Result<Claim, Taken> {
        // Locked during the call, as another thread may bind the same address.
        let mut all = self.lock();
        let others = all.get(&holder.at.port()).map_or(&[][..], Vec::as_slice);
        let excludes =
            |other: &&Holder| covers(other.at.ip(), holder.at.ip()) && !holder.shares_with(other);
        if let Some(other) = others.iter().find(excludes) {
            return Err(Taken::By(other.name.clone()));
        }
        let at = bind().map_err(Taken::Refused)?;
        let holder = Holder { at, ..holder };
        all.entry(at.port()).or_default().push(holder.clone());
        Ok(Claim { listeners: self.clone(), holder })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Vec<Holder>>> {
        // No code that holds the lock leaves the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The address.
    pub fn at(&self) -> SocketAddr {
        self.holder.at
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Holder { at, guest, .. } = self.holder;
        let mut all = self.listeners.lock();
        if let Some(others) = all.get_mut(&at.port()) {
            let mine = others.iter().position(|other| other.guest == guest && other.at == at);
            mine.map(|mine| others.swap_remove(mine));
            if others.is_empty() {
                all.remove(&at.port());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Key;

    fn holder(guest: u16, at: &str, sharing: Option<&str>) -> Holder {
        let name = format!("domain {guest}");
        let sharing = sharing.map(|key| Section::Guest(Key::Pattern(key.into())));
        Holder { guest: DomId(guest), name, at: at.parse().unwrap(), sharing, reuses: false }
    }

    fn reuses(holder: Holder) -> Holder {
        Holder { reuses: true, ..holder }
    }

    #[test]
    fn an_address_has_one_guest_unless_its_section_shares_ports() {
        for (first, second, may) in [
            (holder(1, "0.0.0.0:80", None), holder(2, "0.0.0.0:80", None), false),
            (holder(1, "0.0.0.0:80", None), holder(1, "0.0.0.0:80", None), false),
            (holder(1, "0.0.0.0:80", None), holder(2, "0.0.0.0:81", None), true),
            (holder(1, "10.0.0.5:80", None), holder(2, "10.0.0.6:80", None), true),
            (holder(1, "10.0.0.5:80", None), holder(2, "0.0.0.0:80", None), false),
            (holder(1, "[::]:80", None), holder(2, "10.0.0.5:80", None), false),
            (holder(1, "[::ffff:10.0.0.5]:80", None), holder(2, "10.0.0.5:80", None), false),
            (holder(1, "[::1]:80", None), holder(2, "0.0.0.0:80", None), true),
            (holder(1, "[::]:80", Some("a*")), holder(2, "[::]:80", Some("a*")), true),
            (holder(1, "[::]:80", Some("a*")), holder(1, "[::]:80", Some("a*")), false),
            (reuses(holder(1, "[::]:80", Some("a*"))), holder(1, "[::]:80", Some("a*")), false),
            (
                reuses(holder(1, "[::]:80", Some("a*"))),
                reuses(holder(1, "[::]:80", Some("a*"))),
                true,
            ),
            (reuses(holder(1, "[::]:80", None)), reuses(holder(1, "[::]:80", None)), false),
            (holder(1, "[::]:80", Some("a*")), holder(2, "[::]:80", Some("b*")), false),
            (holder(1, "[::]:80", Some("a*")), holder(2, "[::]:80", None), false),
            (holder(1, "[::]:80", None), holder(2, "[::]:80", Some("a*")), false),
        ] {
            let listeners = Arc::new(Listeners::default());
            let claim = |holder: &Holder| {
                let at = holder.at;
                listeners.claim(holder.clone(), || Ok(at))
            };
            let held = claim(&first).unwrap();
            assert_eq!(claim(&second).is_ok(), may, "{first:?} {second:?}");
            drop(held);
            drop(claim(&second).unwrap());
            assert!(listeners.lock().is_empty());
        }
    }

    #[test]
    fn what_linux_refuses_is_not_noted() {
        let listeners = Arc::new(Listeners::default());
        let bound = listeners.claim(holder(1, "[::]:80", None), || Err(Errno::EADDRINUSE));
        assert_eq!(bound.unwrap_err(), Taken::Refused(Errno::EADDRINUSE));
        assert!(listeners.lock().is_empty());
    }
}
