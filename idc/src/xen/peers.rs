//! The watches of other domains' folders, one for each domain that somebody wants to meet.

use super::door::DOOR;
use super::{PAUSE, folder};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::future::pending;
use core::pin::pin;
use embassy_time::Timer;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use xen::xenstore::Store;
use xen::{DomId, Flag, WaitList};

/// The domains that somebody wants to meet.
pub(super) struct Peers {
    store: Store,
    all: RefCell<BTreeMap<DomId, Rc<Peer>>>,
    /// Those without a watch.
    new: RefCell<Vec<Rc<Peer>>>,
    added: WaitList,
}

struct Peer {
    domain: DomId,
    interests: RefCell<Vec<Rc<Interest>>>,
    /// Set when there are no interests left.
    is_left: Flag,
}

/// What a meeting wants to know of a domain's folder.
struct Interest {
    service: String,
    /// The name of this end's node in the other domain's door.
    knock: String,
    /// Set when the service may have changed, or the node in the door, or the door or the folder.
    changed: Flag,
}

/// A meeting's interest in another domain.
pub(super) struct Watched {
    peers: Rc<Peers>,
    peer: Rc<Peer>,
    interest: Rc<Interest>,
}

impl Peers {
    pub(super) fn new(store: Store) -> Self {
        let (all, new, added) = Default::default();
        Peers { store, all, new, added }
    }

    /// Begins to watch a service of `domain`, and the node `knock` in its door.
    pub(super) fn watch(self: &Rc<Self>, domain: DomId, service: String, knock: String) -> Watched {
        let add = || {
            let peer = Peer { domain, interests: RefCell::default(), is_left: Flag::default() };
            let peer = Rc::new(peer);
            self.new.borrow_mut().push(peer.clone());
            self.added.wake_all();
            peer
        };
        let peer = self.all.borrow_mut().entry(domain).or_insert_with(add).clone();
        let interest = Rc::new(Interest { service, knock, changed: Flag::default() });
        // Its first look may come before the watch or long after it.
        interest.changed.raise();
        peer.interests.borrow_mut().push(interest.clone());
        Watched { peers: self.clone(), peer, interest }
    }

    /// Runs all watches.
    pub(super) async fn run(&self) -> Infallible {
        let mut watches = FuturesUnordered::new();
        // So that there is always one.
        watches.push(self.serve(None));
        loop {
            let added = pin!(self.added.until(|| self.new.borrow_mut().pop()));
            match select(added, watches.next()).await {
                Either::Left((peer, _)) => watches.push(self.serve(Some(peer))),
                Either::Right(_) => {}
            }
        }
    }

    /// Watches a domain as long as somebody wants to meet it.
    async fn serve(&self, peer: Option<Rc<Peer>>) {
        let Some(peer) = peer else { return pending().await };
        let path = folder(peer.domain);
        let watch = async {
            loop {
                match self.store.watch(&path).await {
                    Ok(mut watch) => loop {
                        peer.announce(watch.next().await.strip_prefix(&path).unwrap_or_default());
                    },
                    Err(error) => log::warn!("cannot watch {path}: {error}; retrying"),
                }
                Timer::after(PAUSE).await;
            }
        };
        select(pin!(watch), pin!(peer.is_left.raised())).await;
    }
}

impl Peer {
    /// Tells those who are interested in this part of the folder.
    fn announce(&self, path: &str) {
        let mut names = path.split('/').skip(1);
        let (service, below) = (names.next(), names.next());
        for interest in self.interests.borrow().iter() {
            let is_meant = match service {
                None => true,
                Some(DOOR) => below.is_none_or(|name| name == interest.knock),
                Some(name) => name == interest.service,
            };
            if is_meant {
                interest.changed.raise();
            }
        }
    }
}

impl Watched {
    /// Waits until something may have changed.
    pub(super) async fn changed(&self) {
        self.interest.changed.take().await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Watched { peers, peer, interest } = self;
        let mut interests = peer.interests.borrow_mut();
        interests.retain(|other| !Rc::ptr_eq(other, interest));
        if interests.is_empty() {
            peers.all.borrow_mut().remove(&peer.domain);
            peer.is_left.raise();
        }
    }
}
