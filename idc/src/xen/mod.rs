//! Endpoints of domains of one Xen host: they meet in xenstore, and their links are shared rings.
//!
//! | module | content |
//! |---|---|
//! | `nodes` | a meeting: both publications, in both domains' folders |
//! | `door` | how a domain finds out who wants to meet it |
//! | `peers` | the watches of other domains' folders |
//! | [`link`] | the rings |
//!
//! One end of a link grants pages and the other one maps them. A guest can grant, and map if its
//! kernel can; a process of Linux only maps. If both ends can do both, the domain with the higher
//! number grants.
//!
//! Everything in xenstore is below `/local/domain/DOMAIN/data/idc`, where only that domain and dom0
//! can write. All domains can see what is in this folder, so that they notice when it appears and
//! when it goes.

mod door;
pub mod link;
mod nodes;
mod peers;

pub use link::{Link, Reserve};
pub use nodes::Meeting;

use crate::address::{Address, Place};
use crate::buffer::RemoteBuffer;
use crate::time::Quiet;
use crate::transport::Transport;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::Cell;
use core::convert::Infallible;
use core::future::Future;
use core::net::SocketAddr;
use door::Door;
use embassy_time::{Duration, Instant, Timer};
use futures_util::future::join;
use nodes::Other;
use peers::Peers;
use xen::frontend::{PagePool, PageUsage};
use xen::xenbus::read_number;
use xen::xenstore::{Access, Permission, Store};
use xen::{DomId, Errno, Machine, Neighbour, WaitList};

/// The order of the links of a domain that has no wish: 64 KiB in each direction.
pub const DEFAULT_ORDER: u32 = 5;

/// The pause before something that failed is tried again, and before a domain is let in that was
/// refused.
const PAUSE: Duration = Duration::from_secs(1);

/// Links with other domains of the same host.
///
/// `M` is what the domain grants with, and `N` what it maps with; [`Infallible`] is the type of
/// neither.
pub struct XenTransport<M: Machine, N: Neighbour>(Rc<Core<M, N>>);

struct Core<M: Machine, N: Neighbour> {
    store: Store,
    pool: Option<Rc<PagePool<M>>>,
    neighbour: Option<N>,
    order: u32,
    peers: Rc<Peers>,
    door: Rc<Door>,
    quiet: Quiet,
    /// How often the domain was suspended and has gone on: odd while it is suspended.
    turn: Cell<u32>,
    turned: WaitList,
    /// Each link has a clone.
    links: Rc<()>,
}

impl<M: Machine, N: Neighbour> XenTransport<M, N> {
    /// The transport of this `domain`, and the future that runs beside it: nobody is met before it
    /// is polled. Its links have 2 to the power of `order` pages, if it grants them.
    ///
    /// # Panics
    /// If `order` is 0 or larger than [`link::MAX_ORDER`].
    pub fn new(
        domain: DomId,
        store: Store,
        machine: Option<M>,
        neighbour: Option<N>,
        order: u32,
    ) -> (Self, impl Future<Output = Infallible>) {
        assert!((1..=link::MAX_ORDER).contains(&order), "links of order {order}");
        let pool = machine.map(|machine| Rc::new(PagePool::new(machine)));
        let (peers, door) = (Rc::new(Peers::new(store.clone())), Door::new(domain, store.clone()));
        let (door, (quiet, turn, turned, links)) = (Rc::new(door), Default::default());
        let core = Rc::new(Core {
            store,
            pool,
            neighbour,
            order,
            peers,
            door,
            quiet,
            turn,
            turned,
            links,
        });
        let transport = XenTransport(core.clone());
        let run = async move {
            let work = join(core.door.run(), core.peers.run());
            match &core.pool {
                Some(pool) => pool.retry_during(work).await.0,
                None => work.await.0,
            }
        };
        (transport, run)
    }

    /// Leaves all connections, so that the domain can be saved. When this returns, it maps no page
    /// of another domain. No end meets another one until [`resume`](XenTransport::resume).
    pub async fn suspend(&self) {
        let core = &self.0;
        core.next_turn();
        while Rc::strong_count(&core.links) > 1 {
            Timer::after_millis(1).await;
        }
    }

    /// Goes on, in the same domain or in a restored one. That has another number, by which others
    /// have to find it.
    pub async fn resume(&self) {
        let core = &self.0;
        let domain = loop {
            match read_number(&core.store, "domid").await {
                Ok(domain) => break DomId(domain),
                Err(_) => Timer::after(PAUSE).await,
            }
        };
        core.door.resume(domain);
        core.next_turn();
    }

    /// The pages that this domain grants, and those that others still map.
    pub fn pages(&self) -> PageUsage {
        self.0.pool.as_ref().map(|pool| pool.usage()).unwrap_or_default()
    }
}

impl<M: Machine, N: Neighbour> Clone for XenTransport<M, N> {
    fn clone(&self) -> Self {
        XenTransport(self.0.clone())
    }
}

impl<M: Machine, N: Neighbour> Transport for XenTransport<M, N> {
    type Meeting = Meeting<M, N>;
    type Reserve = Reserve<M>;

    fn here(&self) -> (Option<DomId>, Option<SocketAddr>) {
        (Some(self.0.domain()), None)
    }

    fn routes(&self, to: &RemoteBuffer) -> [Option<Place>; 2] {
        [to.domain.filter(|domain| *domain != self.0.domain()).map(Place::Domain), None]
    }

    fn reserve(&self) -> Result<Reserve<M>, Errno> {
        Reserve::new(self.0.pool.as_ref(), self.0.order)
    }

    fn meet(&self, address: &Address, reserve: Reserve<M>) -> Meeting<M, N> {
        let core = self.0.clone();
        let Address { place, service } = address;
        match *place {
            Place::Domain(domain) if domain != core.domain() => {
                let other = Other::host(&core, domain, service);
                Meeting::new(core, reserve, Some(other), None)
            }
            Place::Anyone => {
                let seat = core.door.wait(service);
                Meeting::new(core, reserve, None, Some(seat))
            }
            // The meeting never begins.
            Place::Domain(_) | Place::Host(_) => Meeting::new(core, reserve, None, None),
        }
    }
}

impl<M: Machine, N: Neighbour> Core<M, N> {
    /// This domain.
    fn domain(&self) -> DomId {
        self.door.domain.get()
    }

    fn next_turn(&self) {
        self.turn.set(self.turn.get() + 1);
        self.turned.wake_all();
    }

    /// Waits until it is no longer this turn.
    async fn turn_ends(&self, turn: u32) {
        self.turned.until(|| (self.turn.get() != turn).then_some(())).await;
    }
}

/// The folder of a domain.
fn folder(domain: DomId) -> String {
    format!("/local/domain/{domain}/data/idc")
}

/// The permissions of a node of `owner`: `default` for all others.
fn permissions(owner: DomId, default: Access) -> [Permission; 1] {
    [Permission { access: default, domain: owner }]
}

/// The permissions of a node of `owner` that `other` may access, and nobody else.
fn permissions_for(owner: DomId, access: Access, other: DomId) -> [Permission; 2] {
    [Permission { access: Access::None, domain: owner }, Permission { access, domain: other }]
}

/// Limits how often this domain looks at what another one has written, which may write without a
/// pause.
struct Pace(Instant);

impl Pace {
    /// What may be spent at once after a pause.
    const BURST: Duration = Duration::from_millis(100);

    fn new() -> Self {
        Pace(Instant::MIN)
    }

    /// Waits as long as more was spent than time has passed, and spends `cost`. Can be dropped and
    /// called again.
    async fn wait(&mut self, cost: Duration) {
        Timer::at(self.0).await;
        let earliest = Instant::now().checked_sub(Self::BURST).unwrap_or(Instant::MIN);
        self.0 = self.0.max(earliest) + cost;
    }
}
