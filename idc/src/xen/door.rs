//! The door: a folder in which all domains can create nodes, to tell that they want to meet this
//! one, which may not know them.
//!
//! The name of such a node is the service and the visitor's domain, `disk@2@7`. The owner of the
//! node, which only dom0 can change, must be that domain: a node that lies is removed. Others stay
//! until an end waits for the service, and go with their owner: so the queue is xenstored's, and
//! counts towards the visitor's quota.
//!
//! Who may create nodes in a folder may also remove it. So any domain can hinder others that want
//! to be let in. It cannot pretend to be one of them, and ends that know each other need no door.

use super::nodes::sweep;
use super::{PAUSE, Pace, folder, permissions};
use crate::Service;
use crate::address::number;
use crate::time::at;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use core::pin::pin;
use embassy_time::{Duration, Instant, Timer};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use xen::xenstore::{Access, Permission, Store};
use xen::{DomId, Errno, Flag, WaitList};

/// The name of the door. No service has it.
pub(super) const DOOR: &str = "-door";

/// What a look at a visitor's node costs.
const LOOK: Duration = Duration::from_millis(2);

/// How long it is known which domains were refused.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The name of a visitor's node in another domain's door.
pub(super) fn knock(service: &Service, visitor: DomId) -> String {
    format!("{service}@{visitor}")
}

/// This domain's folder and its door.
pub(super) struct Door {
    pub(super) domain: Cell<DomId>,
    /// Raised when the domain goes on after it was saved.
    resumed: Flag,
    store: Store,
    /// Set once the folder is there.
    pub(super) is_open: Flag,
    seats: RefCell<Vec<Rc<Seat>>>,
    /// Set when an end begins to wait.
    wanted: Flag,
    /// When visitors of these domains last turned out to be none.
    refused: RefCell<BTreeMap<DomId, Instant>>,
}

/// An end that waits for visitors.
struct Seat {
    /// The name of the service.
    name: String,
    visitor: RefCell<Option<Visitor>>,
    taken: WaitList,
}

#[derive(Clone)]
pub(super) struct Visitor {
    pub(super) domain: DomId,
    pub(super) service: Service,
    /// The path of its node in the door.
    pub(super) knock: String,
}

/// A place for one visitor at a time.
pub(super) struct Waiting {
    door: Rc<Door>,
    seat: Rc<Seat>,
}

impl Door {
    pub(super) fn new(domain: DomId, store: Store) -> Self {
        let (resumed, is_open, seats, wanted, refused) = Default::default();
        Door { domain: Cell::new(domain), resumed, store, is_open, seats, wanted, refused }
    }

    /// Makes the folder and the door again, of what is perhaps another domain.
    pub(super) fn resume(&self, domain: DomId) {
        self.domain.set(domain);
        self.is_open.lower();
        self.resumed.raise();
    }

    /// Begins to wait for visitors of any instance of the service.
    pub(super) fn wait(self: &Rc<Self>, service: &Service) -> Waiting {
        let name = service.name().to_string();
        let (visitor, taken) = Default::default();
        let seat = Rc::new(Seat { name, visitor, taken });
        self.seats.borrow_mut().push(seat.clone());
        self.wanted.raise();
        Waiting { door: self.clone(), seat }
    }

    /// Makes the folder and the door, and lets visitors in.
    pub(super) async fn run(&self) -> Infallible {
        let mut warned = false;
        loop {
            let path = format!("{}/{DOOR}", folder(self.domain.get()));
            // Another domain may have removed the door.
            let error = match select(pin!(self.attend(&path)), pin!(self.resumed.take())).await {
                Either::Left((Err(error), _)) => error,
                Either::Right(_) => continue,
            };
            if !core::mem::replace(&mut warned, true) {
                log::warn!("{path}: {error}; making it again");
            }
            Timer::after(PAUSE).await;
        }
    }

    async fn attend(&self, path: &str) -> Result<Infallible, Errno> {
        let domain = self.domain.get();
        let folder = folder(domain);
        self.store.mkdir(&folder).await?;
        self.store.set_permissions(&folder, &permissions(domain, Access::Read)).await?;
        self.is_open.raise();
        sweep(&self.store, domain).await?;
        self.store.write(path, "").await?;
        // A node in it belongs to its creator, and inherits the other permission.
        let ours = [Access::Write, Access::Both];
        let ours = ours.map(|access| Permission { access, domain });
        self.store.set_permissions(path, &ours).await?;
        let mut watch = self.store.watch(path).await?;
        let mut pace = Pace::new();
        let (mut looks, mut is_done) = (0, true);
        loop {
            let again = if is_done { Instant::MAX } else { Instant::now() + PAUSE };
            let changed = async {
                select(pin!(watch.next()), pin!(self.wanted.take())).await;
            };
            select(pin!(changed), pin!(at(again))).await;
            pace.wait(LOOK * looks).await;
            // Whatever has changed, one look is enough.
            while watch.next().now_or_never().is_some() {}
            (looks, is_done) = self.admit(path).await?;
        }
    }

    /// Gives visitors to the ends that wait for their services, but none of a domain that was
    /// refused within the last [`PAUSE`]. Those come first whose domain was not refused, or longest
    /// ago, and then those whose domain has the fewest seats. Returns how many looks it took, and
    /// whether the others wait for nothing but such ends.
    async fn admit(&self, path: &str) -> Result<(u32, bool), Errno> {
        self.refused.borrow_mut().retain(|_, at| at.elapsed() < REMEMBERED);
        let (mut looks, mut is_done) = (1, true);
        let mut visitors = Vec::new();
        for name in self.store.directory(path).await? {
            let knock = format!("{path}/{name}");
            match visitor(&name) {
                Some((service, domain)) if !self.is_seated(&knock) => {
                    visitors.push(Visitor { domain, service, knock });
                }
                Some(_) => {}
                None => {
                    looks += 1;
                    is_done &= self.store.rm(&knock).await.is_ok();
                }
            }
        }
        loop {
            // The end that waited may be gone.
            visitors.retain(|visitor| self.seat(&visitor.service).is_some());
            let refused = |visitor: &Visitor| self.refused.borrow().get(&visitor.domain).copied();
            let rank = |visitor: &Visitor| (refused(visitor), self.seats_of(visitor.domain));
            let Some(next) = (0..visitors.len()).min_by_key(|at| rank(&visitors[*at])) else {
                return Ok((looks, is_done));
            };
            if refused(&visitors[next]).is_some_and(|at| at.elapsed() < PAUSE) {
                return Ok((looks, false));
            }
            let visitor = visitors.swap_remove(next);
            // Only now, as a domain may have made many nodes.
            looks += 1;
            let permissions = match self.store.get_permissions(&visitor.knock).await {
                Ok(permissions) => permissions,
                Err(error) => {
                    is_done &= error == Errno::ENOENT;
                    continue;
                }
            };
            match permissions.first().map(|owner| owner.domain) {
                Some(owner) if owner == visitor.domain => {
                    if let Some(seat) = self.seat(&visitor.service) {
                        seat.visitor.replace(Some(visitor));
                        seat.taken.wake_all();
                    }
                }
                // It is dom0's, which is about to say so.
                Some(owner) if owner == self.domain.get() => {}
                _ => {
                    looks += 1;
                    is_done &= self.store.rm(&visitor.knock).await.is_ok();
                }
            }
        }
    }

    /// How many seats a domain has.
    fn seats_of(&self, domain: DomId) -> usize {
        let sits = |seat: &&Rc<Seat>| {
            seat.visitor.borrow().as_ref().is_some_and(|visitor| visitor.domain == domain)
        };
        self.seats.borrow().iter().filter(sits).count()
    }

    /// A free seat for a visitor of this service.
    fn seat(&self, service: &Service) -> Option<Rc<Seat>> {
        let fits =
            |seat: &&Rc<Seat>| seat.name == service.name() && seat.visitor.borrow().is_none();
        self.seats.borrow().iter().find(fits).cloned()
    }

    fn is_seated(&self, knock: &str) -> bool {
        let sits = |seat: &Rc<Seat>| {
            seat.visitor.borrow().as_ref().is_some_and(|visitor| visitor.knock == knock)
        };
        self.seats.borrow().iter().any(sits)
    }
}

/// The service and the domain in the name of a node in the door.
fn visitor(node: &str) -> Option<(Service, DomId)> {
    let (text, domain) = node.rsplit_once('@')?;
    let domain = DomId(number(domain)?);
    let instance = text.split_once('@').map_or(Some(0), |(_, instance)| number(instance))?;
    // Only a node has this service, so its text is not that of a user's.
    let buffers = Service::buffers(instance);
    let service = if text == buffers.to_string() { buffers } else { text.parse().ok()? };
    Some((service, domain))
}

impl Waiting {
    /// Waits for a visitor, who stays until he is dismissed.
    pub(super) async fn visitor(&self) -> Visitor {
        self.seat.taken.until(|| self.seat.visitor.borrow().clone()).await
    }

    /// Makes room for the next visitor. If this one is refused, its domain is not let in for a
    /// while.
    pub(super) fn dismiss(&self, is_refused: bool) {
        if let Some(visitor) = self.seat.visitor.take().filter(|_| is_refused) {
            self.door.refused.borrow_mut().insert(visitor.domain, Instant::now());
        }
        self.door.wanted.raise();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.door.seats.borrow_mut().retain(|seat| !Rc::ptr_eq(seat, &self.seat));
    }
}
