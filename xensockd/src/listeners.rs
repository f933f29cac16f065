//! Which guest listens where, in all threads.
//!
//! All sockets of the daemon have one owner for Linux, so with `SO_REUSEPORT` any guest could take
//! connections of another one. The daemon permits that only to guests of one section of the rules.
//!
//! The sockets of an earlier daemon wait here for the guests that had them. Nobody else gets them,
//! nor their addresses meanwhile.

use crate::handover::Legacy;
use crate::rules::{Rules, Section, covers, is_same};
use rustix::net::sockopt;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xen::{DomId, Errno};
use xen_linux::tcp;

/// The bound sockets of all guests.
#[derive(Debug, Default)]
pub struct Listeners(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    /// By their ports.
    bound: HashMap<u16, Vec<Holder>>,
    kept: Vec<Kept>,
    /// Where the daemon itself listens.
    own: Option<SocketAddr>,
}

/// A socket of an earlier daemon, which has a guest for its holder.
#[derive(Debug)]
struct Kept {
    holder: Holder,
    asked: SocketAddr,
    socket: OwnedFd,
}

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

impl All {
    /// Fails if another socket excludes this one.
    fn check(&self, holder: &Holder) -> Result<(), Taken> {
        if self.own.is_some_and(|own| holder.covers(own)) {
            return Err(Taken::By("xensockd itself".into()));
        }
        let bound = self.bound.get(&holder.at.port()).into_iter().flatten();
        let kept = self.kept.iter().map(|kept| &kept.holder);
        let kept = kept.filter(|kept| kept.guest != holder.guest);
        let excludes = |other: &&Holder| other.covers(holder.at) && !holder.shares_with(other);
        let other = bound.chain(kept).find(excludes);
        other.map_or(Ok(()), |other| Err(Taken::By(other.name.clone())))
    }

    /// The kept socket that a guest would bind anew. Others of the guest that are in the way are
    /// closed.
    fn take_kept(&mut self, holder: &Holder) -> Option<OwnedFd> {
        let is_it = |kept: &Kept| {
            let shares = sockopt::socket_reuseport(&kept.socket) == Ok(holder.sharing.is_some());
            kept.holder.guest == holder.guest && kept.holder.at == holder.at && shares
        };
        if let Some(place) = self.kept.iter().position(is_it) {
            return Some(self.kept.swap_remove(place).socket);
        }
        let is_in_the_way = |other: &Holder| other.guest == holder.guest && other.covers(holder.at);
        self.kept.retain(|kept| !is_in_the_way(&kept.holder));
        None
    }
}

impl Holder {
    /// Whether it excludes another socket at this address.
    fn covers(&self, at: SocketAddr) -> bool {
        self.at.port() == at.port() && covers(self.at.ip(), at.ip())
    }

    fn shares_with(&self, other: &Holder) -> bool {
        // Each socket that is bound to a group gets all that is sent to the group.
        let is_group = self.at.ip().is_multicast() && other.at.ip().is_multicast();
        let sharing = self.sharing.is_some() && self.sharing == other.sharing;
        is_group || sharing && (self.guest != other.guest || (self.reuses && other.reuses))
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
    /// Calls `bind` if the guest may have the address, and notes the one that was bound. If the
    /// guest had the address in an earlier daemon, `bind` gets that socket, which is bound already.
    pub fn claim(
        self: &Arc<Self>,
        holder: Holder,
        bind: impl FnOnce(Option<OwnedFd>) -> Result<SocketAddr, Errno>,
    ) -> Result<Claim, Taken> {
        // Locked during the call, as another thread may bind the same address.
        let mut all = self.lock();
        all.check(&holder)?;
        let kept = all.take_kept(&holder);
        let any = holder.at.port() == 0;
        let holder = Holder { at: bind(kept).map_err(Taken::Refused)?, ..holder };
        if any {
            // Linux may choose a port that another socket has bound, if that does not listen yet.
            all.check(&holder)?;
        }
        all.bound.entry(holder.at.port()).or_default().push(holder.clone());
        Ok(Claim { listeners: self.clone(), holder })
    }

    /// Keeps an address from all guests, for the daemon itself.
    pub fn reserve(&self, own: Option<SocketAddr>) {
        self.lock().own = own;
    }

    /// Keeps the sockets of an earlier daemon for their guests.
    pub fn keep(&self, legacies: Vec<Legacy>) {
        let kept = |Legacy { guest, asked, socket }| {
            let at = tcp::local_addr(&socket).ok()?;
            let name = format!("domain {guest}");
            let holder = Holder { guest, name, at, sharing: None, reuses: false };
            Some(Kept { holder, asked, socket })
        };
        self.lock().kept.extend(legacies.into_iter().filter_map(kept));
    }

    /// The guests for which sockets are kept.
    pub fn absent(&self) -> Vec<DomId> {
        let mut guests: Vec<_> = self.lock().kept.iter().map(|kept| kept.holder.guest).collect();
        guests.sort();
        guests.dedup();
        guests
    }

    /// Closes kept sockets that a guest may no longer have: all of them if it has no rules, because
    /// it is gone.
    pub fn check_kept(&self, guest: DomId, name: &str, rules: Option<&Rules>) {
        let All { kept, own, .. } = &mut *self.lock();
        kept.retain_mut(|Kept { holder, asked, .. }| {
            if holder.guest != guest {
                return true;
            }
            if own.is_some_and(|own| holder.covers(own)) {
                return false;
            }
            let allowed = rules
                .filter(|rules| rules.listens(*asked).is_some_and(|at| is_same(at, holder.at)));
            let sharing = |rules: &Rules| rules.shares_ports.then(|| rules.section.clone());
            holder.sharing = allowed.and_then(sharing);
            holder.name = name.into();
            allowed.is_some()
        });
    }

    /// Closes all kept sockets. Returns their guests and addresses.
    pub fn close_kept(&self) -> Vec<(String, SocketAddr)> {
        let kept = std::mem::take(&mut self.lock().kept);
        kept.into_iter().map(|Kept { holder, .. }| (holder.name, holder.at)).collect()
    }

    /// Returns all kept sockets, for the next daemon.
    pub fn take_kept(&self) -> Vec<Legacy> {
        let legacy = |Kept { holder, asked, socket }| Legacy { guest: holder.guest, asked, socket };
        std::mem::take(&mut self.lock().kept).into_iter().map(legacy).collect()
    }

    /// The number of bound sockets.
    pub fn count(&self) -> usize {
        self.lock().bound.values().map(Vec::len).sum()
    }

    /// The number of kept sockets.
    pub fn kept(&self) -> usize {
        self.lock().kept.len()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
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
        let bound = &mut self.listeners.lock().bound;
        if let Some(others) = bound.get_mut(&at.port()) {
            let mine = others.iter().position(|other| other.guest == guest && other.at == at);
            mine.map(|mine| others.swap_remove(mine));
            if others.is_empty() {
                bound.remove(&at.port());
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
                listeners.claim(holder.clone(), |_| Ok(at))
            };
            let held = claim(&first).unwrap();
            assert_eq!(claim(&second).is_ok(), may, "{first:?} {second:?}");
            drop(held);
            drop(claim(&second).unwrap());
            assert!(listeners.lock().bound.is_empty());
        }
    }

    #[test]
    fn a_port_that_linux_chooses_is_not_one_that_a_guest_has_bound() {
        let listeners = Arc::new(Listeners::default());
        let chosen: SocketAddr = "0.0.0.0:40000".parse().unwrap();
        let held = listeners.claim(holder(1, "10.0.0.5:40000", None), |_| Ok(chosen)).unwrap();
        let any = holder(2, "0.0.0.0:0", None);
        let taken = listeners.claim(any.clone(), |_| Ok(chosen)).unwrap_err();
        assert_eq!(taken, Taken::By("domain 1".into()));
        drop(held);
        assert_eq!(listeners.claim(any, |_| Ok(chosen)).unwrap().at(), chosen);
        assert!(listeners.lock().bound.is_empty());
    }

    #[test]
    fn no_guest_gets_the_address_of_the_daemon_itself() {
        let listeners = Arc::new(Listeners::default());
        let claim = |at: &str| {
            let holder = holder(1, at, None);
            let at = holder.at;
            listeners.claim(holder, |_| Ok(at)).map(drop)
        };
        listeners.reserve("127.0.0.1:9476".parse().ok());
        for taken in ["127.0.0.1:9476", "0.0.0.0:9476", "[::]:9476"] {
            assert_eq!(claim(taken), Err(Taken::By("xensockd itself".into())));
        }
        assert_eq!((claim("127.0.0.1:9477"), claim("10.0.0.5:9476")), (Ok(()), Ok(())));
        listeners.reserve(None);
        assert_eq!(claim("127.0.0.1:9476"), Ok(()));
    }

    #[test]
    fn what_linux_refuses_is_not_noted() {
        let listeners = Arc::new(Listeners::default());
        let bound = listeners.claim(holder(1, "[::]:80", None), |_| Err(Errno::EADDRINUSE));
        assert_eq!(bound.unwrap_err(), Taken::Refused(Errno::EADDRINUSE));
        assert!(listeners.lock().bound.is_empty());
    }
}
