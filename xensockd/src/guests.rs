//! The guests of a thread: their names, rules and accounts.

use crate::control::{GuestStatus, SocketStatus};
use crate::listeners::Listeners;
use crate::rules::{Destination, Identity, OwnAddresses, Policy, Refusal, Rules, Section, Target};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use xen::xenstore::{Access, Permission, Store};
use xen::{DomId, Errno};
use xensock::back::{Account, Limit};

/// The most lines about refused calls of a guest that the log gets in [`LOG_INTERVAL`].
const LOG_LINES: u32 = 10;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What all threads share of the rules.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// This domain's own addresses.
    pub own: OwnAddresses,
    /// Which guest listens where.
    pub listeners: Arc<Listeners>,
}

/// The guests of a thread. Clones are the same.
#[derive(Clone)]
pub struct Guests(Rc<Inner>);

struct Inner {
    policy: RefCell<Arc<Policy>>,
    shared: Shared,
    guests: RefCell<HashMap<DomId, Weak<Guest>>>,
}

/// A guest. All of its devices share it.
pub struct Guest {
    id: DomId,
    identity: RefCell<Identity>,
    rules: RefCell<Rc<Rules>>,
    account: Rc<Account>,
    shared: Shared,
    /// The open sockets by their numbers.
    open: RefCell<BTreeMap<u64, Weak<dyn Open>>>,
    /// The number of the next one.
    next: Cell<u64>,
    log: Log,
}

/// An open socket of a guest.
pub trait Open {
    /// Whether the rules allow it.
    fn is_allowed(&self, guest: &Guest) -> bool;

    /// Ends it: the guest gets [`Errno::EACCES`].
    fn end(&self);

    /// Its status, with this number.
    fn status(&self, number: u64) -> SocketStatus;
}

/// A socket's place among those of its guest, until it is dropped.
pub struct Listed {
    guest: Rc<Guest>,
    number: u64,
}

impl Guests {
    /// No guests yet.
    pub fn new(policy: Arc<Policy>, shared: Shared) -> Self {
        let guests = RefCell::default();
        Guests(Rc::new(Inner { policy: RefCell::new(policy), shared, guests }))
    }

    /// A guest that has a device. [`Errno::ENODEV`] if it has none.
    pub fn get(&self, id: DomId) -> Result<Rc<Guest>, Errno> {
        self.0.guests.borrow().get(&id).and_then(Weak::upgrade).ok_or(Errno::ENODEV)
    }

    /// The guest with this number, by its present name. The caller keeps it while it has a device.
    pub async fn meet(&self, store: &Store, id: DomId) -> Rc<Guest> {
        let identity = identify(store, id).await;
        let Inner { policy, shared, guests } = &*self.0;
        let known = self.get(id);
        let policy = policy.borrow().clone();
        if let Ok(guest) = known {
            guest.adopt(&policy, identity);
            return guest;
        }
        let rules = policy.rules(&identity);
        let guest = Rc::new(Guest {
            id,
            account: Account::new(rules.limits),
            rules: RefCell::new(Rc::new(rules)),
            identity: RefCell::new(identity),
            shared: shared.clone(),
            open: RefCell::default(),
            next: Cell::new(1),
            log: Log::default(),
        });
        log::info!("{guest}: its rules are those of {}", guest.rules().section);
        let mut guests = guests.borrow_mut();
        guests.retain(|_, guest| guest.strong_count() > 0);
        guests.insert(id, Rc::downgrade(&guest));
        guest
    }

    /// The status of all guests.
    pub fn status(&self) -> Vec<GuestStatus> {
        self.all().iter().map(|guest| guest.status()).collect()
    }

    fn all(&self) -> Vec<Rc<Guest>> {
        self.0.guests.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Replaces the rules of all guests. They hold for the next call, and if they are strict for
    /// what is open, too.
    pub async fn apply(&self, store: &Store, policy: Arc<Policy>) {
        *self.0.policy.borrow_mut() = policy.clone();
        for guest in self.all() {
            guest.adopt(&policy, identify(store, guest.id).await);
            if policy.is_strict() {
                guest.end_forbidden();
            }
        }
    }
}

impl Guest {
    /// Its domain.
    pub fn id(&self) -> DomId {
        self.id
    }

    /// Its account.
    pub fn account(&self) -> &Rc<Account> {
        &self.account
    }

    /// Its rules.
    pub fn rules(&self) -> Rc<Rules> {
        self.rules.borrow().clone()
    }

    /// Which guest listens where.
    pub fn listeners(&self) -> &Arc<Listeners> {
        &self.shared.listeners
    }

    fn adopt(&self, policy: &Policy, identity: Identity) {
        let rules = policy.rules(&identity);
        self.account.set_limits(rules.limits);
        self.rules.replace(Rc::new(rules));
        self.identity.replace(identity);
    }

    fn end_forbidden(&self) {
        let all: Vec<_> = self.open.borrow().values().filter_map(Weak::upgrade).collect();
        let forbidden = all.iter().filter(|open| !open.is_allowed(self));
        let count = forbidden.map(|open| open.end()).count();
        if count > 0 {
            log::info!("{self}: ended {count} sockets that its rules no longer allow");
        }
    }

    /// Lists a socket while the result exists.
    pub fn list(self: &Rc<Self>, open: Weak<dyn Open>) -> Listed {
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, open);
        Listed { guest: self.clone(), number }
    }

    /// Ends a socket. Returns whether it existed.
    pub fn close(&self, number: u64) -> bool {
        let open = self.open.borrow().get(&number).and_then(Weak::upgrade);
        open.map(|open| open.end()).is_some()
    }

    /// What it may do and has.
    pub fn status(&self) -> GuestStatus {
        let (rules, identity) = (self.rules(), self.identity.borrow());
        let list = |targets: &[Target]| targets.iter().map(Target::to_string).collect();
        let open = self.open.borrow();
        let sockets = open.iter().filter_map(|(number, open)| Some((*number, open.upgrade()?)));
        GuestStatus {
            domain: self.id.0,
            name: identity.name.clone(),
            uuid: identity.uuid.clone(),
            section: rules.section.to_string(),
            listen: rules.listen.to_string(),
            connect: list(&rules.connect),
            connect_deny: list(&rules.connect_deny),
            sockets_used: self.account.sockets(),
            sockets_limit: rules.limits.sockets,
            ring_pages_used: self.account.pages(),
            ring_pages_limit: rules.limits.pages,
            sockets: sockets.map(|(number, open)| open.status(number)).collect(),
        }
    }

    /// Whether the rules allow connections to this address.
    pub fn is_connect_allowed(&self, to: SocketAddr) -> bool {
        self.rules.borrow().may_connect(&Destination::new(to, &self.shared.own))
    }

    /// [`Errno::EACCES`] if the guest may not connect to this address.
    pub fn check_connect(&self, to: SocketAddr) -> Result<(), Errno> {
        if self.is_connect_allowed(to) {
            return Ok(());
        }
        let to = Destination::new(to, &self.shared.own);
        self.refuse(&format_args!("connect to {to}"), || self.rules().no_connect(&to));
        Err(Errno::EACCES)
    }

    /// The address at which to listen if the guest asks for this one. [`Errno::EACCES`] if it may
    /// not.
    pub fn check_listen(&self, asked: SocketAddr) -> Result<SocketAddr, Errno> {
        self.rules.borrow().listens(asked).ok_or_else(|| {
            self.refuse(&format_args!("listen at {asked}"), || self.rules().no_listen(asked));
            Errno::EACCES
        })
    }

    /// [`Errno::EPERM`] if the guest may not share ports.
    pub fn check_sharing(&self) -> Result<(), Errno> {
        if self.sharing().is_some() {
            return Ok(());
        }
        self.refuse(&"SO_REUSEPORT", || self.rules().no_sharing());
        Err(Errno::EPERM)
    }

    /// The section with whose guests it shares ports, if it does.
    pub fn sharing(&self) -> Option<Section> {
        let rules = self.rules.borrow();
        rules.shares_ports.then(|| rules.section.clone())
    }

    /// Logs that the guest has reached a limit.
    pub fn report_limit(&self, limit: Limit) {
        let what = match limit {
            Limit::Sockets => "a socket",
            Limit::Pages => "a ring",
            Limit::Connections => "a connection",
        };
        self.refuse(&what, || self.rules().no_more(limit));
    }

    /// Logs why an address cannot be bound.
    pub fn report_taken(&self, at: SocketAddr, reason: &dyn fmt::Display) {
        if self.log.permits(self) {
            log::warn!("{self}: cannot listen at {at}: {reason}");
        }
    }

    fn refuse(&self, call: &dyn fmt::Display, refusal: impl FnOnce() -> Refusal) {
        if self.log.permits(self) {
            log::warn!("{self}: {call} is refused: {}", refusal());
        }
    }
}

/// The guest's number, and its name if it has one.
impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.id)?;
        match &self.identity.borrow().name {
            Some(name) => write!(f, " ({})", name.escape_debug()),
            None => Ok(()),
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.guest.open.borrow_mut().remove(&self.number);
    }
}

/// Bounds the lines about a guest in the log.
#[derive(Default)]
struct Log {
    since: Cell<Option<Instant>>,
    lines: Cell<u32>,
}

impl Log {
    fn permits(&self, guest: &dyn fmt::Display) -> bool {
        let lines = self.lines.get();
        self.lines.set(lines.saturating_add(1));
        if lines < LOG_LINES && self.since.get().is_some() {
            return true;
        }
        // The clock is read only for the first line and for those that are too many.
        if self.since.get().is_some_and(|since| since.elapsed() < LOG_INTERVAL) {
            return false;
        }
        if lines > LOG_LINES {
            log::warn!("{guest}: {} more calls were refused", lines - LOG_LINES);
        }
        self.since.set(Some(Instant::now()));
        self.lines.set(1);
        true
    }
}

/// Reads what the toolstack calls a guest.
async fn identify(store: &Store, id: DomId) -> Identity {
    let name = trusted(store, &format!("/local/domain/{id}/name"), id).await;
    let vm = trusted(store, &format!("/local/domain/{id}/vm"), id).await;
    let uuid = vm.as_deref().and_then(|path| path.strip_prefix("/vm/"));
    Identity { name, uuid: uuid.map(str::to_ascii_lowercase) }
}

/// Reads a node that the guest cannot write, if it exists.
async fn trusted(store: &Store, path: &str, guest: DomId) -> Option<String> {
    // The permissions first: who cannot write the node cannot change them either.
    let permissions = store.get_permissions(path).await.ok()?;
    if is_writable(&permissions, guest) {
        log::warn!("domain {guest} can write {path}, which is ignored");
        return None;
    }
    store.read_string(path).await.ok()
}

/// Whether a domain can write a node with these permissions.
fn is_writable(permissions: &[Permission], guest: DomId) -> bool {
    let Some((owner, others)) = permissions.split_first() else { return true };
    let own = others.iter().find(|permission| permission.domain == guest);
    // Those without an entry of their own have the access that comes with the owner.
    let access = own.map_or(owner.access, |permission| permission.access);
    owner.domain == guest || matches!(access, Access::Write | Access::Both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_gets_a_bounded_number_of_lines() {
        let (log, start) = (Log::default(), Instant::now());
        let lines = (0..100_000).filter(|_| log.permits(&"a guest")).count() as u64;
        let intervals = start.elapsed().as_secs() / LOG_INTERVAL.as_secs() + 1;
        assert!((10..=10 * intervals).contains(&lines), "{lines}");
    }

    #[test]
    fn a_node_is_writable_for_its_owner_and_those_who_are_permitted_to() {
        let guest = DomId(7);
        let is = |text: &str| {
            let decode = |text: &str| Permission::decode(text.as_bytes()).unwrap();
            is_writable(&text.split(' ').map(decode).collect::<Vec<_>>(), guest)
        };
        for safe in ["n0 r7", "r0", "n0", "n0 b8", "n0 n7 b8", "b0 r7"] {
            assert!(!is(safe), "{safe}");
        }
        for open in ["n7", "n0 w7", "n0 b7", "b0", "w0", "n0 r8 b7", "n7 r7"] {
            assert!(is(open), "{open}");
        }
        assert!(is_writable(&[], guest));
    }
}
