//! A meeting: each end's publication is a node in its own folder, which the other end can read.
//!
//! The node of domain M for domain P is below M's home: `data/idc/SERVICE/P` if M visits P, and
//! `data/idc/SERVICE@/P` if M waits for visitors, so two domains can serve each other. Only M and
//! dom0 can write there, so the path says who wrote it. The text is the publication, and what this
//! end can do with pages: `grant`, `map` or `both`. An end that offers a link adds the first page's
//! grant, the port, and the order.

use super::door::{DOOR, Visitor, Waiting, knock};
use super::link::{Link, MAX_ORDER, Offer, Reserve};
use super::peers::Watched;
use super::{Core, PAUSE, Pace, folder, permissions, permissions_for};
use crate::address::number;
use crate::life::{Phase, Publication};
use crate::transport;
use crate::{Place, Service};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::future::pending;
use core::pin::pin;
use embassy_time::{Duration, Timer};
use futures_util::future::{Either, select};
use log::Level;
use xen::xenstore::{Access, Store, Transaction};
use xen::{DomId, Errno, GrantRef, Machine, Neighbour, Port};

/// What a look at the other end's node costs. A connection takes about five.
const LOOK: Duration = Duration::from_millis(5);

/// What an end can do with pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Can {
    grant: bool,
    map: bool,
}

/// What the other end shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    publication: Publication,
    can: Can,
    offer: Option<Offer>,
}

/// The other end, once it is known.
pub(super) struct Other {
    domain: DomId,
    service: Service,
    watched: Watched,
    /// The folder of this end's node, the node, and the other end's node.
    folder: String,
    mine: String,
    theirs: String,
    /// The node in either end's door that says that the two want to meet.
    knock: String,
    /// Whether that node is there, as far as this end knows.
    is_knocked: bool,
    /// Whether this end's node is there, is up to date, and can be read by the other end.
    is_made: bool,
    is_shown: bool,
    is_readable: bool,
    /// Whether the other end's node may have changed.
    is_stale: bool,
}

/// One end's view of another end, in xenstore.
///
/// An end that waits for anyone takes the first visitor, and after that one has gone, the next.
pub struct Meeting<M: Machine, N: Neighbour> {
    core: Rc<Core<M, N>>,
    /// The turn of this domain, or a former one if it was suspended meanwhile.
    turn: u32,
    reserve: Reserve<M>,
    other: Option<Other>,
    /// Where the other end comes from, if it can be anyone.
    visitors: Option<Waiting>,
    mine: Option<Publication>,
    offer: Option<Offer>,
    seen: Option<Seen>,
    /// What `changed` last returned.
    told: Option<Publication>,
    /// What the host showed when this end began the present attempt, until it shows something else.
    /// It may be a dead one's: then another one has to be told of this end.
    unanswered: Option<Option<Seen>>,
    pace: Pace,
    /// Whether there was a connection with this visitor.
    has_connected: bool,
    warned: bool,
}

impl Other {
    /// An end that this one visits.
    pub(super) fn host<M: Machine, N: Neighbour>(
        core: &Core<M, N>,
        domain: DomId,
        service: &Service,
    ) -> Self {
        let (visits, waits) = (service.to_string(), format!("{service}@"));
        let knock = knock(service, core.domain());
        Other {
            knock: format!("{}/{DOOR}/{knock}", folder(domain)),
            ..Other::new(core, domain, service.clone(), [&visits, &waits], knock)
        }
    }

    /// An end whose node is in the second of these folders of its domain.
    fn new<M: Machine, N: Neighbour>(
        core: &Core<M, N>,
        domain: DomId,
        service: Service,
        [own, other]: [&str; 2],
        knock: String,
    ) -> Self {
        let watched = core.peers.watch(domain, other.to_string(), knock);
        let own = format!("{}/{own}", folder(core.domain()));
        Other {
            domain,
            service,
            watched,
            mine: format!("{own}/{domain}"),
            folder: own,
            theirs: format!("{}/{other}/{}", folder(domain), core.domain()),
            knock: String::new(),
            is_knocked: false,
            is_made: false,
            is_shown: false,
            is_readable: false,
            is_stale: true,
        }
    }

    /// An end that has come to this one's door.
    fn visitor<M: Machine, N: Neighbour>(core: &Core<M, N>, visitor: Visitor) -> Self {
        let Visitor { domain, service, knock } = visitor;
        let (visits, waits) = (service.to_string(), format!("{service}@"));
        let folders = [waits.as_str(), visits.as_str()];
        let other = Other::new(core, domain, service, folders, String::new());
        Other { knock, is_knocked: true, ..other }
    }

    /// Reads the other end's node.
    async fn read(&self, store: &Store) -> Result<Option<Seen>, Errno> {
        match store.read_string(&self.theirs).await {
            Ok(text) => Ok(decode(&text)),
            // It is not there, or not for this end; or there is no such domain.
            Err(Errno::ENOENT | Errno::EACCES | Errno::EPROTO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes this end's node in the other end's door, if that has one.
    async fn knock(&mut self, store: &Store, own: DomId) {
        let there = store.get_permissions(&self.knock).await.unwrap_or_default();
        self.is_knocked = there.first().is_some_and(|owner| owner.domain == own);
        if !self.is_knocked {
            self.is_knocked = store.write(&self.knock, "").await.is_ok();
            // What dom0 makes belongs to the other end at first.
            let ours = permissions_for(own, Access::Both, self.domain);
            let _ = store.set_permissions(&self.knock, &ours).await;
        }
    }
}

impl<M: Machine, N: Neighbour> Meeting<M, N> {
    pub(super) fn new(
        core: Rc<Core<M, N>>,
        reserve: Reserve<M>,
        other: Option<Other>,
        visitors: Option<Waiting>,
    ) -> Self {
        let (mine, offer, seen, told, unanswered, has_connected, warned) = Default::default();
        Meeting {
            // While it is suspended, a meeting begins with the next turn.
            turn: core.turn.get() & !1,
            core,
            reserve,
            other,
            visitors,
            mine,
            offer,
            seen,
            told,
            unanswered,
            pace: Pace::new(),
            has_connected,
            warned,
        }
    }

    /// Begins anew after this domain was suspended: it may have been restored as another one.
    async fn begin_again(&mut self, turn: u32) {
        self.leave().await;
        if self.visitors.is_none() {
            let again = |other: Other| Other::host(&self.core, other.domain, &other.service);
            self.other = self.other.take().map(again);
        }
        self.turn = turn;
        if let Some(mine) = self.mine {
            // What fails now is done with the next look.
            let _ = transport::Meeting::publish(self, &mine).await;
        }
    }

    /// What this end can do.
    fn can(&self) -> Can {
        Can { grant: self.core.pool.is_some(), map: self.core.neighbour.is_some() }
    }

    /// Whether this end and the other can each be the one that grants.
    fn may_lead(&self) -> (bool, bool) {
        let (ours, theirs) = (self.can(), self.seen.map_or(Can::default(), |seen| seen.can));
        (ours.grant && theirs.map, theirs.grant && ours.map)
    }

    /// Looks at the other end's node, and does what follows: shows this end's node, knocks, or
    /// dismisses the visitor.
    async fn look(&mut self) -> Result<(), Errno> {
        let (store, own) = (self.core.store.clone(), self.core.domain());
        let Some(other) = &mut self.other else { return Ok(()) };
        self.seen = other.read(&store).await?;
        let node = |publication: Publication| publication.node;
        let is_same = self.seen.map(|seen| node(seen.publication)) == self.told.map(node);
        if self.seen.is_none() && self.visitors.is_some() {
            self.leave().await;
            return Ok(());
        }
        // The permission to read does not count for a domain that is younger.
        other.is_readable &= self.seen.is_some() && is_same;
        self.show().await?;
        self.warn();
        let Some(other) = &mut self.other else { return Ok(()) };
        self.unanswered = self.unanswered.filter(|before| *before == self.seen);
        if self.seen.is_some() && self.unanswered.is_none() {
            if other.is_knocked && other.is_shown {
                // It may be gone already.
                let _ = store.rm(&other.knock).await;
                other.is_knocked = false;
            }
        } else if other.is_shown {
            other.knock(&store, own).await;
        }
        other.is_stale = false;
        Ok(())
    }

    /// Brings this end's node up to date, if the other end is known.
    async fn show(&mut self) -> Result<(), Errno> {
        let can = self.can();
        let (Some(other), Some(mine)) = (&mut self.other, &self.mine) else { return Ok(()) };
        if other.is_shown && other.is_readable {
            return Ok(());
        }
        self.core.door.is_open.raised().await;
        let (store, own) = (&self.core.store, self.core.domain());
        if !other.is_made {
            // Nobody can read what is new in this folder, so the node is complete when it appears.
            store.mkdir(&other.folder).await?;
            store.set_permissions(&other.folder, &permissions(own, Access::None)).await?;
        }
        if !other.is_shown {
            let text = match self.offer {
                None => format!("{mine} {can}"),
                Some(Offer { page, port, order }) => {
                    format!("{mine} {can} {} {} {order}", page.0, port.0)
                }
            };
            store.write(&other.mine, text).await?;
            // Only with its first node can this end knock.
            other.is_stale |= !other.is_made;
            (other.is_made, other.is_shown) = (true, true);
        }
        if !other.is_readable {
            let readable = permissions_for(own, Access::Read, other.domain);
            store.set_permissions(&other.mine, &readable).await?;
            other.is_readable = true;
        }
        Ok(())
    }

    /// Removes what this end has shown to the other end. A visitor is dismissed.
    async fn leave(&mut self) {
        let Some(other) = &self.other else { return };
        let store = &self.core.store;
        if other.is_made && remove(store, &other.folder, &other.mine).await.is_err() {
            let _ = store.rm(&other.mine).await;
        }
        if other.is_knocked {
            let _ = store.rm(&other.knock).await;
        }
        self.offer = None;
        if let Some(visitors) = &self.visitors {
            self.other = None;
            // Somebody who came for nothing may come again, but not at once.
            visitors.dismiss(!core::mem::take(&mut self.has_connected));
        }
    }

    /// Warns once of an end with which there can be no link.
    fn warn(&mut self) {
        if let (Some(other), Some(_), (false, false)) = (&self.other, &self.seen, self.may_lead())
            && !core::mem::replace(&mut self.warned, true)
        {
            // Each visitor of the buffers has a meeting of its own.
            let level = self.core.quiet.level(Level::Error);
            log::log!(
                level,
                "{}: neither end can map the other's pages, so they cannot connect",
                other.theirs
            );
        }
    }

    /// Waits until the other end has changed.
    async fn another(&mut self) -> Option<Publication> {
        loop {
            match (&self.other, &self.visitors) {
                (Some(other), _) if !other.is_stale => {
                    other.watched.changed().await;
                    if let Some(other) = &mut self.other {
                        other.is_stale = true;
                    }
                }
                (Some(_), _) => {
                    self.pace.wait(LOOK).await;
                    if let Err(error) = self.look().await {
                        log::debug!("xenstore: {error}; retrying");
                        Timer::after(PAUSE).await;
                        continue;
                    }
                    let now = self.seen.map(|seen| seen.publication);
                    if core::mem::replace(&mut self.told, now) != now {
                        return now;
                    }
                }
                (None, Some(visitors)) => {
                    let visitor = visitors.visitor().await;
                    self.other = Some(Other::visitor(&self.core, visitor));
                }
                (None, None) => {
                    // Only now: of two transports, the other one may be meant.
                    if !core::mem::replace(&mut self.warned, true) {
                        log::error!("an end's address is not another domain of this host");
                    }
                    pending().await
                }
            }
        }
    }
}

impl<M: Machine, N: Neighbour> transport::Meeting for Meeting<M, N> {
    type Link = Link<M, N>;
    type Reserve = Reserve<M>;

    async fn changed(&mut self) -> Option<Publication> {
        let core = self.core.clone();
        loop {
            let turn = core.turn.get();
            if turn != self.turn {
                self.seen = None;
                if self.told.take().is_some() {
                    return None;
                }
                match turn % 2 {
                    0 => self.begin_again(turn).await,
                    _ => core.turn_ends(turn).await,
                }
                continue;
            }
            let (another, end) = (pin!(self.another()), pin!(core.turn_ends(turn)));
            if let Either::Left((seen, _)) = select(another, end).await {
                return seen;
            }
        }
    }

    async fn publish(&mut self, mine: &Publication) -> Result<(), Errno> {
        self.mine = Some(*mine);
        self.has_connected |= mine.phase.is_connected();
        if !matches!(mine.phase, Phase::Offered(_) | Phase::Up(_)) {
            self.offer = None;
        }
        if let Some(other) = &mut self.other {
            if self.turn != self.core.turn.get() {
                // It will be shown when this end begins again.
                return Ok(());
            }
            other.is_shown = false;
            if mine.phase == Phase::Idle && self.visitors.is_none() {
                self.unanswered = Some(other.read(&self.core.store).await?);
                other.is_stale = true;
            }
        }
        self.show().await
    }

    fn leads(&self) -> bool {
        match (self.may_lead(), &self.other) {
            ((true, true), Some(other)) => self.core.domain() > other.domain,
            ((leads, _), _) => leads,
        }
    }

    fn place(&self) -> Place {
        self.other.as_ref().map_or(Place::Anyone, |other| Place::Domain(other.domain))
    }

    fn instance(&self) -> u32 {
        self.other.as_ref().map_or(0, |other| other.service.instance())
    }

    async fn link(&mut self) -> Result<Link<M, N>, Errno> {
        let (Some(other), Some(seen)) = (&self.other, self.seen) else {
            return Err(Errno::ENOTCONN);
        };
        if self.turn != self.core.turn.get() {
            return Err(Errno::ENOTCONN);
        }
        let domain = other.domain;
        let mut link = if self.leads() {
            let (link, offer) = self.reserve.offer(domain)?;
            self.offer = Some(offer);
            link
        } else {
            let offer = seen.offer.ok_or(Errno::EPROTO)?;
            let neighbour = self.core.neighbour.as_ref().ok_or(Errno::EOPNOTSUPP)?;
            Link::attach(neighbour, domain, offer)?
        };
        link.counted = self.core.links.clone();
        Ok(link)
    }

    async fn dismiss(&mut self) {
        if self.visitors.is_some() {
            self.leave().await;
            (self.seen, self.told) = (None, None);
        }
    }

    async fn part(mut self) -> Reserve<M> {
        self.leave().await;
        self.reserve.withdraw();
        self.reserve
    }
}

impl fmt::Display for Can {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.grant, self.map) {
            (true, true) => "both",
            (true, false) => "grant",
            (false, true) => "map",
            (false, false) => "none",
        })
    }
}

/// Removes a node of this domain, and its folder if that was the last one in it.
async fn remove(store: &Store, folder: &str, node: &str) -> Result<(), Errno> {
    let remove = async |nodes: &Transaction| {
        nodes.rm(node).await?;
        match nodes.directory(folder).await?.is_empty() {
            true => nodes.rm(folder).await,
            false => Ok(()),
        }
    };
    store.transact(remove).await
}

/// Removes this domain's nodes for domains that are gone. A process that is killed leaves some.
pub(super) async fn sweep(store: &Store, own: DomId) -> Result<(), Errno> {
    let own = folder(own);
    for service in store.directory(&own).await? {
        let folder = format!("{own}/{service}");
        // What is in the door goes with its owner, and what is gone need not be removed.
        let peers = if service == DOOR { Ok(Vec::new()) } else { store.directory(&folder).await };
        for peer in peers.unwrap_or_default() {
            let home = store.directory(&format!("/local/domain/{peer}")).await;
            if home == Err(Errno::ENOENT) {
                let _ = remove(store, &folder, &format!("{folder}/{peer}")).await;
            }
        }
    }
    Ok(())
}

/// Reads a node's text. `None` if it makes no sense.
fn decode(text: &str) -> Option<Seen> {
    let (publication, words) = Publication::from_text(text).ok()?;
    let mut words = words?.split(' ');
    let (grant, map) = match words.next()? {
        "both" => (true, true),
        "grant" => (true, false),
        "map" => (false, true),
        "none" => (false, false),
        _ => return None,
    };
    let offer = match words.next() {
        None => None,
        Some(page) => {
            let (page, port) = (GrantRef(number(page)?), Port(number(words.next()?)?));
            let order = number(words.next()?).filter(|order| (1..=MAX_ORDER).contains(order))?;
            Some(Offer { page, port, order })
        }
    };
    words.next().is_none().then_some(Seen { publication, can: Can { grant, map }, offer })
}
