//! Drives one end: through its meetings, and through the connections that come of them.

use crate::address::{Address, Place};
use crate::life::{Notice, Ours, Phase, Publication, Role, Step, View, next_step};
use crate::node::Node;
use crate::quota::Quota;
use crate::time::{Quiet, at};
use crate::transport::{Link, Meeting, Transport};
use core::future::Future;
use core::pin::pin;
use embassy_time::{Duration, Instant, Timer};
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use log::Level;
use xen::{Errno, yield_now};

/// How long a transport rests that could not do what it was asked to do.
const RETRY: Duration = Duration::from_millis(200);

/// How long a visitor may be there without a connection, at an end that waits for anyone.
const CONNECT: Duration = Duration::from_secs(10);

/// What uses the connections of one end: an endpoint, a courier, or the buffer service.
pub(crate) trait Client {
    /// What this end is ready to receive.
    fn quota(&self) -> Quota;

    /// Limits the log lines of all visits that the client has had.
    fn quiet(&self) -> &Quiet;

    /// Whether this end is to end for good.
    fn is_destroyed(&self) -> bool;

    /// Waits until this end is to end for good.
    async fn destroyed(&self);

    /// The other end is there, at `place`.
    async fn appear(&self, place: Place);

    /// A connection begins, with somebody at `place` who means this instance of the service.
    fn connect(&self, other: &Publication, place: Place, instance: u32);

    /// Uses the link until it is broken.
    async fn carry<L: Link>(&self, link: &mut L) -> Errno;

    /// The connection is over. Completes what is outstanding, and waits for the client.
    async fn disconnect(&self);

    /// The other end is gone.
    async fn disappear(&self);
}

/// Drives an end until it is destroyed.
pub(crate) async fn drive<T: Transport, C: Client>(
    node: &Node<T>,
    address: &Address,
    reserve: T::Reserve,
    client: &C,
) -> T::Reserve {
    let mut end = End {
        node,
        address,
        client,
        meeting: node.transport().meet(address, reserve),
        ours: Ours::new(node.next_epoch()),
        seen: None,
        link: None,
        broken: false,
        since: Instant::MIN,
    };
    end.publish().await;
    while end.step().await {}
    end.meeting.part().await
}

/// One end, while it is driven.
struct End<'a, T: Transport, C> {
    node: &'a Node<T>,
    address: &'a Address,
    client: &'a C,
    meeting: T::Meeting,
    ours: Ours,
    /// The other end's latest publication.
    seen: Option<Publication>,
    link: Option<<T::Meeting as Meeting>::Link>,
    broken: bool,
    /// Since when the other end has been there without a connection, if there is none.
    since: Instant,
}

impl<T: Transport, C: Client> End<'_, T, C> {
    /// Takes a step, or waits for a change. Returns whether there is more to do.
    async fn step(&mut self) -> bool {
        let seen = self.seen.as_ref().filter(|_| !self.client.is_destroyed());
        match next_step_of(&self.ours, &self.meeting, seen, self.broken) {
            Step::Wait if self.client.is_destroyed() => return false,
            Step::Wait => self.wait(Instant::MAX).await,
            Step::Offer => match self.meeting.link().await {
                Ok(link) => self.take(Step::Offer, Some(link)).await,
                Err(error) => {
                    self.log("cannot make a link", error);
                    // Meanwhile the other end may go, or be sent away.
                    self.wait(Instant::now() + RETRY).await;
                }
            },
            Step::Attach => match self.meeting.link().await {
                Ok(link) => self.take(Step::Attach, Some(link)).await,
                Err(error) => {
                    self.rest("cannot attach to the other end's link", error).await;
                    self.take(Step::Renew, None).await;
                }
            },
            Step::Confirm => {
                let link = self.link.take();
                self.take(Step::Confirm, link).await;
            }
            step => self.take(step, None).await,
        }
        true
    }

    /// Takes a step: tells the client and publishes. `link` is what the end has from now on.
    async fn take(&mut self, step: Step, link: Option<<T::Meeting as Meeting>::Link>) {
        log::debug!("{}: {:?} with {:?}: {step:?}", self.address, self.ours, self.seen);
        self.link = link;
        self.broken = false;
        let published = (self.ours.epoch, self.ours.phase, self.ours.met);
        let mut left = false;
        for notice in self.ours.take(step, self.seen.as_ref(), || self.node.next_epoch()) {
            match (notice, &self.seen) {
                (Notice::Appear, _) => {
                    self.since = Instant::now();
                    self.client.appear(self.meeting.place()).await;
                }
                (Notice::Connect, Some(other)) => {
                    self.client.connect(other, self.meeting.place(), self.meeting.instance());
                }
                (Notice::Connect, None) => unreachable!("nobody to connect with"),
                (Notice::Disconnect, _) => left = true,
                (Notice::Disappear, _) => self.client.disappear().await,
            }
        }
        if published != (self.ours.epoch, self.ours.phase, self.ours.met) {
            self.publish().await;
        }
        if left {
            self.client.disconnect().await;
            self.since = Instant::now();
        }
        if self.ours.phase == Phase::Leaving {
            // Nothing is outstanding any more.
            self.ours.take(Step::Renew, None, || self.node.next_epoch());
            self.publish().await;
        }
    }

    /// Waits until something has changed, or until `again`. While this end is connected, its link
    /// is in use.
    async fn wait(&mut self, again: Instant) {
        let connected = self.ours.phase.is_connected();
        let link = self.link.as_mut().filter(|_| connected);
        let client = self.client;
        let carry = async {
            match link {
                Some(link) => client.carry(link).await,
                None => core::future::pending().await,
            }
        };
        let mut carry = pin!(carry);
        let waits = self.address.place == Place::Anyone && self.ours.appeared.is_some();
        let late = if waits && !connected { self.since + CONNECT } else { Instant::MAX };
        let mut timer = pin!(at(late.min(again)));
        // A change is often none that matters. It does not interrupt the link's use, which might be
        // in the middle of a frame.
        loop {
            let changed = self.meeting.changed();
            match first(carry.as_mut(), changed, client.destroyed(), timer.as_mut()).await {
                Change::Broken(error) => {
                    log::debug!("{}: the link is broken: {error}", self.address);
                    self.broken = true;
                }
                Change::Seen(other) => {
                    self.seen = other;
                    // The next change may be there already, and so on for ever.
                    yield_now().await;
                }
                Change::Destroyed => {}
                Change::Time if Instant::now() < late => return,
                Change::Time => {
                    log::debug!("{}: a visitor does not connect", self.address);
                    self.meeting.dismiss().await;
                    self.seen = None;
                }
            }
            let seen = self.seen.as_ref().filter(|_| !client.is_destroyed());
            let step = next_step_of(&self.ours, &self.meeting, seen, self.broken);
            if client.is_destroyed() || step != Step::Wait {
                return;
            }
        }
    }

    /// Publishes, again and again until it works: the other end relies on it.
    async fn publish(&mut self) {
        let mine = self.ours.publication(self.node.id(), self.client.quota());
        while let Err(error) = self.meeting.publish(&mine).await {
            self.rest("cannot publish", error).await;
        }
    }

    /// Logs an error, and waits a little.
    async fn rest(&self, what: &str, error: Errno) {
        self.log(what, error);
        Timer::after(RETRY).await;
    }

    fn log(&self, what: &str, error: Errno) {
        let level = self.client.quiet().level(Level::Warn);
        log::log!(level, "{}: {what}: {error}; trying again", self.address);
    }
}

/// The next step of an end that is not just leaving a connection.
fn next_step_of(
    ours: &Ours,
    meeting: &impl Meeting,
    seen: Option<&Publication>,
    broken: bool,
) -> Step {
    let leads = seen.is_some() && meeting.leads();
    let role = if leads { Role::Leader } else { Role::Follower };
    next_step(ours, &View { role, seen, broken, finished: false })
}

/// What a waiting end waits for.
enum Change {
    Broken(Errno),
    Seen(Option<Publication>),
    Destroyed,
    Time,
}

async fn first(
    carry: impl Future<Output = Errno> + Unpin,
    changed: impl Future<Output = Option<Publication>>,
    destroyed: impl Future<Output = ()>,
    timer: impl Future<Output = ()> + Unpin,
) -> Change {
    let carry = carry.map(Change::Broken);
    let (changed, destroyed) = (changed.map(Change::Seen), destroyed.map(|()| Change::Destroyed));
    let timer = timer.map(|()| Change::Time);
    let (changed, destroyed) = (pin!(changed), pin!(destroyed));
    let (one, other) = (select(carry, changed), select(destroyed, timer));
    match select(one, other).await {
        Either::Left((one, _)) => one.factor_first().0,
        Either::Right((other, _)) => other.factor_first().0,
    }
}
