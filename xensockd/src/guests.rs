//! The guests of a thread: their names, rules and accounts.

use crate::control::{GuestStatus, SocketStatus};
use crate::handover::Legacy;
use crate::listeners::Listeners;
use crate::logging::about;
use crate::metrics::{GuestNumbers, Reason, Traffic};
use crate::rules::{Destination, Identity, OwnAddresses, Policy, Refusal, Rules, Section, Target};
use futures_util::future::join_all;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use xen::xenstore::{Access, Permission, Store};
use xen::{DomId, Errno, Turn};
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
    /// Which guest receives datagrams where. A port of UDP is another one than that of TCP.
    pub datagrams: Arc<Listeners>,
    /// Whether the daemon stops, and leaves its listening sockets: it accepts no more connections.
    pub leaving: Arc<AtomicBool>,
}

/// The guests of a thread. Clones are the same.
#[derive(Clone)]
pub struct Guests(Rc<Inner>);

struct Inner {
    policy: RefCell<Arc<Policy>>,
    shared: Shared,
    guests: RefCell<HashMap<DomId, Weak<Guest>>>,
    turns: RefCell<HashMap<DomId, Weak<Turn>>>,
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
    traffic: Traffic,
    /// How often the rules were replaced.
    version: Cell<u64>,
    /// The bytes of datagrams that wait for room in the guest's rings.
    kept: Cell<usize>,
    log: Log,
    /// For what this domain has no more of. A guest may try again and again.
    shortages: Log,
}

/// An open socket of a guest.
pub trait Open {
    /// Whether the rules allow it.
    fn is_allowed(&self, guest: &Guest) -> bool;

    /// Ends it: the guest gets [`Errno::EACCES`].
    fn end(&self);

    /// Its status, with this number.
    fn status(&self, number: u64) -> SocketStatus;

    /// What it leaves to the next daemon, if it listens for this guest.
    fn legacy(&self, _guest: DomId) -> Option<Legacy> {
        None
    }
}

/// A socket's place among those of its guest, until it is dropped.
pub struct Listed {
    guest: Rc<Guest>,
    number: u64,
}

impl Guests {
    /// No guests yet.
    pub fn new(policy: Arc<Policy>, shared: Shared) -> Self {
        let (guests, turns) = Default::default();
        Guests(Rc::new(Inner { policy: RefCell::new(policy), shared, guests, turns }))
    }

    /// A guest that has a device. [`Errno::ENODEV`] if it has none.
    pub fn get(&self, id: DomId) -> Result<Rc<Guest>, Errno> {
        self.0.guests.borrow().get(&id).and_then(Weak::upgrade).ok_or(Errno::ENODEV)
    }

    /// What is charged with the work for this guest. All of its devices share it.
    pub fn turn(&self, id: DomId) -> Rc<Turn> {
        let mut turns = self.0.turns.borrow_mut();
        if let Some(turn) = turns.get(&id).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Rc::default();
        turns.insert(id, Rc::downgrade(&turn));
        turn
    }

    /// The guest with this number, by its present name. The caller keeps it while it has a device.
    pub async fn meet(&self, store: &Store, id: DomId) -> Rc<Guest> {
        let identity = identify(store, id).await;
        let Inner { policy, shared, guests, .. } = &*self.0;
        let known = self.get(id);
        let policy = policy.borrow().clone();
        if let Ok(guest) = known {
            guest.adopt(&policy, identity);
            return guest;
        }
        let rules = policy.rules(&identity);
        let guest = Rc::new(Guest {
            id,
            account: Account::with_turn(rules.limits, self.turn(id)),
            rules: RefCell::new(Rc::new(rules)),
            identity: RefCell::new(identity),
            shared: shared.clone(),
            open: RefCell::default(),
            next: Cell::new(1),
            traffic: Traffic::default(),
            version: Cell::new(0),
            kept: Cell::new(0),
            log: Log::new(LOG_LINES),
            shortages: Log::new(1),
        });
        guest.report_section();
        let mut guests = guests.borrow_mut();
        guests.retain(|_, guest| guest.strong_count() > 0);
        guests.insert(id, Rc::downgrade(&guest));
        guest
    }

    /// The status of all guests.
    pub fn status(&self) -> Vec<GuestStatus> {
        self.all().iter().map(|guest| guest.status()).collect()
    }

    /// The numbers of all guests, for Prometheus.
    pub fn numbers(&self) -> Vec<GuestNumbers> {
        self.all().iter().map(|guest| guest.numbers()).collect()
    }

    /// What the guests' sockets leave to the next daemon.
    pub fn legacies(&self) -> Vec<Legacy> {
        let of = |guest: &Rc<Guest>| -> Vec<_> {
            let open = guest.open.borrow();
            let open = open.values().filter_map(Weak::upgrade);
            open.filter_map(|open| open.legacy(guest.id)).collect()
        };
        self.all().iter().flat_map(of).collect()
    }

    /// Closes sockets of an earlier daemon that the present rules do not allow. Every thread does
    /// so before it serves guests: the rules may have given an address to another one.
    pub async fn check_kept(&self, store: &Store) {
        let Inner { policy, shared, .. } = &*self.0;
        let policy = policy.borrow().clone();
        let check = async |id| {
            let identity = identify(store, id).await;
            // Only the toolstack's domain may know whether another domain exists.
            let found = store.read(&format!("/local/domain/{id}")).await;
            let is_there = matches!(found, Ok(_) | Err(Errno::EACCES));
            let rules = is_there.then(|| policy.rules(&identity));
            shared.listeners.check_kept(id, &in_words(id, &identity), rules.as_ref());
        };
        join_all(shared.listeners.absent().into_iter().map(check)).await;
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

    /// Its name, or nothing.
    pub fn name(&self) -> String {
        self.identity.borrow().name.clone().unwrap_or_default()
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

    /// Which guest receives datagrams where.
    pub fn datagrams(&self) -> &Arc<Listeners> {
        &self.shared.datagrams
    }

    /// Whether the daemon stops, and leaves its listening sockets.
    pub fn leaving(&self) -> &Arc<AtomicBool> {
        &self.shared.leaving
    }

    fn adopt(&self, policy: &Policy, identity: Identity) {
        let rules = policy.rules(&identity);
        self.account.set_limits(rules.limits);
        self.version.set(self.version.get() + 1);
        let former = self.rules.replace(Rc::new(rules));
        self.identity.replace(identity);
        if self.rules().section != former.section {
            self.report_section();
        }
    }

    fn report_section(&self) {
        about!(info, self, "its rules are those of {}", self.rules().section);
    }

    /// Whether its rules are not known, because its name cannot be read.
    pub fn is_hidden(&self) -> bool {
        self.rules.borrow().section == Section::Hidden
    }

    fn end_forbidden(&self) {
        let all: Vec<_> = self.open.borrow().values().filter_map(Weak::upgrade).collect();
        let forbidden = all.iter().filter(|open| !open.is_allowed(self));
        let count = forbidden.map(|open| open.end()).count();
        if count > 0 {
            about!(info, self, "ended {count} sockets that its rules no longer allow");
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

    /// What its sockets have done.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    fn numbers(&self) -> GuestNumbers {
        GuestNumbers {
            domain: self.id.0,
            name: self.name(),
            sockets: self.account.sockets(),
            ring_pages: self.account.pages(),
            limits: self.account.limits(),
            requests: self.account.requests(),
            traffic: self.traffic.clone(),
        }
    }

    /// Other numbers whenever a decision of the rules may be another one.
    pub fn rules_version(&self) -> (u64, u64) {
        (self.version.get(), self.shared.own.version())
    }

    /// Adds to the bytes of datagrams that wait for room in its rings.
    pub fn keep(&self, bytes: isize) {
        self.kept.set(self.kept.get().saturating_add_signed(bytes));
    }

    /// The bytes of datagrams that wait for room in its rings.
    pub fn kept(&self) -> usize {
        self.kept.get()
    }

    /// Whether the rules allow connections to this address.
    pub fn is_connect_allowed(&self, to: SocketAddr) -> bool {
        self.rules.borrow().may_connect(&Destination::new(to, &self.shared.own))
    }

    /// Whether the rules allow a connection to this address, which Linux has made from the other.
    pub fn is_reach_allowed(&self, to: SocketAddr, from: SocketAddr) -> bool {
        self.rules.borrow().may_connect(&self.reached(to, from))
    }

    /// [`Errno::EACCES`] if the guest may not connect to this address.
    pub fn check_connect(&self, to: SocketAddr) -> Result<(), Errno> {
        self.check("connect to", &Destination::new(to, &self.shared.own))
    }

    /// [`Errno::EACCES`] if the guest may not have a connection to this address from the other.
    pub fn check_reached(&self, to: SocketAddr, from: SocketAddr) -> Result<(), Errno> {
        self.check("connect to", &self.reached(to, from))
    }

    /// [`Errno::EACCES`] if the guest may not send datagrams to this address.
    pub fn check_send(&self, to: SocketAddr) -> Result<(), Errno> {
        self.check("send to", &Destination::new(to, &self.shared.own))
    }

    /// [`Errno::EACCES`] if the guest may not send datagrams to this address from the other.
    pub fn check_sent(&self, to: SocketAddr, from: SocketAddr) -> Result<(), Errno> {
        self.check("send to", &self.reached(to, from))
    }

    /// [`Errno::EACCES`] if the guest may not be a member of a group at this port.
    pub fn check_join(&self, group: SocketAddr) -> Result<(), Errno> {
        self.check("join", &Destination::new(group, &self.shared.own))
    }

    fn reached(&self, to: SocketAddr, from: SocketAddr) -> Destination {
        Destination::new(to, &self.shared.own).reached_from(from.ip())
    }

    fn check(&self, call: &str, to: &Destination) -> Result<(), Errno> {
        let rules = self.rules();
        if rules.may_connect(to) {
            return Ok(());
        }
        self.refuse(Reason::Connect, &format_args!("{call} {to}"), || rules.no_connect(to));
        Err(Errno::EACCES)
    }

    /// The address at which to listen if the guest asks for this one. [`Errno::EACCES`] if it may
    /// not.
    pub fn check_listen(&self, asked: SocketAddr) -> Result<SocketAddr, Errno> {
        self.rules.borrow().listens(asked).ok_or_else(|| {
            let call = format_args!("listen at {asked}");
            self.refuse(Reason::Listen, &call, || self.rules().no_listen(asked));
            Errno::EACCES
        })
    }

    /// [`Errno::EPERM`] if the guest may not share ports.
    pub fn check_sharing(&self) -> Result<(), Errno> {
        if self.sharing().is_some() {
            return Ok(());
        }
        self.refuse(Reason::SharePorts, &"SO_REUSEPORT", || self.rules().no_sharing());
        Err(Errno::EPERM)
    }

    /// The section with whose guests it shares ports, if it does.
    pub fn sharing(&self) -> Option<Section> {
        let rules = self.rules.borrow();
        rules.shares_ports.then(|| rules.section.clone())
    }

    /// Logs that the guest has reached a limit.
    pub fn report_limit(&self, limit: Limit) {
        let (reason, what) = match limit {
            Limit::Sockets => (Reason::Sockets, "a socket"),
            Limit::Pages => (Reason::RingPages, "a ring"),
            Limit::Connections => (Reason::ConnectionsPerSecond, "a connection"),
        };
        self.refuse(reason, &what, || self.rules().no_more(limit));
    }

    fn may_log(&self, log: &Log) -> bool {
        log.permits(|count| about!(warn, self, "{count} more calls were refused"))
    }

    /// Logs that this domain has no more of what a call needs, if the error says so.
    pub fn report_shortage(&self, what: &str, error: Errno) {
        let Some(shortage) = shortage(error) else { return };
        self.traffic.refuse(Reason::Shortage);
        if self.may_log(&self.shortages) {
            about!(error, self, "{what} is refused: {shortage}");
        }
    }

    /// Logs why an address cannot be bound.
    pub fn report_taken(&self, verb: &str, at: SocketAddr, reason: &dyn fmt::Display) {
        self.traffic.refuse(Reason::Address);
        if self.may_log(&self.log) {
            about!(warn, self, "cannot {verb} at {at}: {reason}");
        }
    }

    fn refuse(&self, reason: Reason, call: &dyn fmt::Display, refusal: impl FnOnce() -> Refusal) {
        self.traffic.refuse(reason);
        if self.may_log(&self.log) {
            about!(warn, self, "{call} is refused: {}", refusal());
        }
    }
}

/// The guest's number, and its name if it has one.
impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&in_words(self.id, &self.identity.borrow()))
    }
}

fn in_words(id: DomId, identity: &Identity) -> String {
    match &identity.name {
        Some(name) => format!("domain {id} ({})", name.escape_debug()),
        None => format!("domain {id}"),
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.guest.open.borrow_mut().remove(&self.number);
    }
}

/// Bounds the lines about a guest in the log.
struct Log {
    /// The most lines in [`LOG_INTERVAL`].
    most: u32,
    since: Cell<Option<Instant>>,
    lines: Cell<u32>,
}

impl Log {
    fn new(most: u32) -> Self {
        Log { most, since: Cell::new(None), lines: Cell::new(0) }
    }

    /// Whether another line may be written. `more` gets the number of those that were left out.
    fn permits(&self, more: impl FnOnce(u32)) -> bool {
        let lines = self.lines.get();
        self.lines.set(lines.saturating_add(1));
        if lines < self.most && self.since.get().is_some() {
            return true;
        }
        // The clock is read only for the first line and for those that are too many.
        if self.since.get().is_some_and(|since| since.elapsed() < LOG_INTERVAL) {
            return false;
        }
        if lines > self.most {
            more(lines - self.most);
        }
        self.since.set(Some(Instant::now()));
        self.lines.set(1);
        true
    }
}

/// What this domain has no more of, in words, and the remedy.
fn shortage(error: Errno) -> Option<&'static str> {
    Some(match error {
        Errno::EMFILE => "the daemon has no more files; raise LimitNOFILE of its unit",
        Errno::ENFILE => "this domain has no more files; raise fs.file-max",
        Errno::ENOBUFS => "this domain has no more network buffers or event channels",
        Errno::ENOMEM => "no memory or no mapping is left; raise vm.max_map_count, or give more",
        Errno::ENOSPC => "the daemon waits for too many files; raise fs.epoll.max_user_watches",
        _ => return None,
    })
}

/// Reads what the toolstack calls a guest.
async fn identify(store: &Store, id: DomId) -> Identity {
    let name = trusted(store, &format!("/local/domain/{id}/name"), id).await;
    let vm = trusted(store, &format!("/local/domain/{id}/vm"), id).await;
    // Only the toolstack's domain may read the nodes of all others.
    let is_hidden = [&name, &vm].contains(&&Err(Errno::EACCES));
    let (name, vm) = (name.ok().flatten(), vm.ok().flatten());
    let uuid = vm.as_deref().and_then(|path| path.strip_prefix("/vm/"));
    Identity { name, uuid: uuid.map(str::to_ascii_lowercase), is_hidden }
}

/// Reads a node unless the guest can write it.
async fn trusted(store: &Store, path: &str, guest: DomId) -> Result<Option<String>, Errno> {
    // The permissions first: who cannot write the node cannot change them either.
    let permissions = store.get_permissions(path).await?;
    if is_writable(&permissions, guest) {
        log::warn!(DOMID = guest.0; "domain {guest} can write {path}, which is ignored");
        return Ok(None);
    }
    store.read_string(path).await.map(Some)
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
        let (log, start) = (Log::new(LOG_LINES), Instant::now());
        let lines = (0..100_000).filter(|_| log.permits(|_| ())).count() as u64;
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
