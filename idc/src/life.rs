//! The life of a connection: what each end publishes, and which step it takes next.
//!
//! One pure function decides, for all transports: [`next_step`]. [`Ours::take`] is the effect of
//! the step. Neither depends on what an end missed, nor on how soon its publication is seen:
//! `tests/model.rs` tries every order. `docs/idc.md` has the table and its properties.

use crate::Quota;

/// The identity of a node: a domain or process from its start to its end. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl NodeId {
    /// The node's first epoch. The others follow, one by one.
    ///
    /// It is random, because no two nodes may use the same epochs: a publication does not name the
    /// node that it was written for, so an end may read what was meant for its predecessor.
    pub fn first_epoch(&self) -> Epoch {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        // Not 0, and never near the highest number.
        Epoch(u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 1 | 1)
    }
}

/// One attempt of an end to connect. No two nodes use the same number, nor does a node use it
/// twice, and each is higher than the node's earlier ones; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// How far an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It waits for the other end.
    Idle,
    /// The leader has made a link for the other end's epoch.
    Offered(Epoch),
    /// The follower has attached to the link of this epoch and is connected.
    Ready(Epoch),
    /// The leader is connected, with the other end's epoch.
    Up(Epoch),
    /// It has left the connection, and its client does not know all of it yet.
    Leaving,
}

impl Phase {
    /// Whether the client is connected.
    pub fn is_connected(self) -> bool {
        matches!(self, Phase::Ready(_) | Phase::Up(_))
    }
}

/// What an end shows to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Publication {
    /// Its node.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its phase.
    pub phase: Phase,
    /// The connection that its client was last told of, or 0. A connection is named by the leader's
    /// epoch.
    pub met: Epoch,
    /// What it is ready to receive.
    pub quota: Quota,
}

/// Which part an end has. It stays the same as long as both nodes do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Makes the links.
    Leader,
    /// Attaches to the other end's links.
    Follower,
}

/// What an end knows of itself. It outlives the connections and the other end's absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ours {
    /// This attempt to connect.
    pub epoch: Epoch,
    /// How far it is.
    pub phase: Phase,
    /// The connection that the client was last told of, or 0: the leader's epoch.
    pub met: Epoch,
    /// The node of the other end, if the client was told that it is there.
    pub appeared: Option<NodeId>,
    /// The first attempt of this end. Earlier ones were those of its predecessors at this node.
    first: Epoch,
}

/// What a step depends on beside what an end knows of itself.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// This end's part.
    pub role: Role,
    /// The other end's publication, which may be out of date. `None` also at an end that is being
    /// destroyed: it leaves, and the other end disappears for it.
    pub seen: Option<&'a Publication>,
    /// The link is broken, or this end does not want one.
    pub broken: bool,
    /// In phase [`Leaving`](Phase::Leaving): the client has completed everything of the connection.
    pub finished: bool,
}

/// What an end does next. The text says what the caller does beside [`Ours::take`], before it
/// publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Wait for a change.
    Wait,
    /// The other end is there.
    Appear,
    /// The other end is gone, or another is in its place.
    Disappear,
    /// The leader makes a link for the other end's epoch. If it cannot, it does not take the step
    /// and tries again later.
    Offer,
    /// The follower attaches to the link and is connected. If it cannot, it takes
    /// [`Renew`](Step::Renew) instead, and the leader will offer another link.
    Attach,
    /// The leader is connected too.
    Confirm,
    /// The other end was connected with an epoch of the leader's, and the leader was not. The
    /// leader's client is told of a connection that is over. Drop the link, if there is one.
    Missed,
    /// Drop the link.
    Leave,
    /// The next attempt begins.
    Renew,
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// The other end is there.
    Appear,
    /// A connection begins.
    Connect,
    /// The connection is over.
    Disconnect,
    /// The other end is gone.
    Disappear,
}

/// Returns the next step.
pub fn next_step(ours: &Ours, view: &View<'_>) -> Step {
    let other = view.seen.filter(|other| Some(other.node) == ours.appeared);
    match (ours.phase, other) {
        (Phase::Leaving, _) if view.finished => Step::Renew,
        (Phase::Leaving, _) => Step::Wait,
        (Phase::Idle, None) if ours.appeared.is_some() => Step::Disappear,
        (Phase::Idle, None) if view.seen.is_some() => Step::Appear,
        (Phase::Idle, None) => Step::Wait,
        (_, None) => Step::Leave,
        (Phase::Idle, Some(_)) if view.broken => Step::Wait,
        (_, Some(other)) => match view.role {
            Role::Leader => lead(ours, other, view.broken),
            Role::Follower => follow(ours, other, view.broken),
        },
    }
}

fn lead(ours: &Ours, other: &Publication, broken: bool) -> Step {
    let ready = other.phase == Phase::Ready(ours.epoch);
    match ours.phase {
        Phase::Offered(pair) if ready && other.epoch == pair && !broken => Step::Confirm,
        // In any other phase than this one, the client knows of the latest connection.
        Phase::Idle | Phase::Offered(_) if ours.missed(other) => Step::Missed,
        Phase::Idle if other.phase == Phase::Idle => Step::Offer,
        Phase::Idle => Step::Wait,
        Phase::Offered(pair) if other.epoch == pair && other.phase == Phase::Idle && !broken => {
            Step::Wait
        }
        Phase::Up(pair) if other.epoch == pair && ready && !broken => Step::Wait,
        _ => Step::Leave,
    }
}

fn follow(ours: &Ours, other: &Publication, broken: bool) -> Step {
    let offered = other.phase == Phase::Offered(ours.epoch);
    let up = other.phase == Phase::Up(ours.epoch);
    match ours.phase {
        Phase::Idle if offered => Step::Attach,
        Phase::Idle => Step::Wait,
        Phase::Ready(pair) if other.epoch == pair && (offered || up) && !broken => Step::Wait,
        _ => Step::Leave,
    }
}

impl Ours {
    /// An end that has met nobody.
    pub fn new(epoch: Epoch) -> Self {
        Ours { epoch, phase: Phase::Idle, met: Epoch(0), appeared: None, first: epoch }
    }

    /// Whether the other end was connected with this leader, which does not know of it.
    fn missed(&self, other: &Publication) -> bool {
        // The other end may not know yet that this end took the place of another one.
        (self.first..=self.epoch).contains(&other.met) && other.met > self.met
    }

    /// Applies a step that follows from `seen`, and returns what the client is to be told. `fresh`
    /// gives the node's next epoch.
    pub fn take(
        &mut self,
        step: Step,
        seen: Option<&Publication>,
        fresh: impl FnOnce() -> Epoch,
    ) -> &'static [Notice] {
        let was_connected = self.phase.is_connected();
        match (step, seen) {
            (Step::Appear, Some(other)) => {
                self.appeared = Some(other.node);
                &[Notice::Appear]
            }
            (Step::Disappear, _) => {
                self.appeared = None;
                &[Notice::Disappear]
            }
            (Step::Offer, Some(other)) => {
                self.phase = Phase::Offered(other.epoch);
                &[]
            }
            (Step::Attach, Some(other)) => {
                self.phase = Phase::Ready(other.epoch);
                self.met = other.epoch;
                &[Notice::Connect]
            }
            (Step::Confirm, Some(other)) => {
                self.phase = Phase::Up(other.epoch);
                self.met = self.epoch;
                &[Notice::Connect]
            }
            (Step::Missed, Some(other)) => {
                self.phase = Phase::Leaving;
                self.met = other.met;
                &[Notice::Connect, Notice::Disconnect]
            }
            (Step::Leave, _) => {
                self.phase = Phase::Leaving;
                if was_connected { &[Notice::Disconnect] } else { &[] }
            }
            (Step::Renew, _) => {
                self.phase = Phase::Idle;
                self.epoch = fresh();
                &[]
            }
            // `next_step` has no other steps without the other end.
            (Step::Wait, _) | (_, None) => &[],
        }
    }

    /// What the other end is to see.
    pub fn publication(&self, node: NodeId, quota: Quota) -> Publication {
        Publication { node, epoch: self.epoch, phase: self.phase, met: self.met, quota }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Phase::*;

    const MINE: Epoch = Epoch(10);
    const OTHER: Epoch = Epoch(20);
    const NODE: NodeId = NodeId([1; 16]);
    const SUCCESSOR: NodeId = NodeId([2; 16]);

    fn ours(phase: Phase) -> Ours {
        let mut ours = Ours::new(MINE);
        ours.take(Step::Appear, Some(&seen(Idle)), || unreachable!());
        Ours { phase, ..ours }
    }

    fn seen(phase: Phase) -> Publication {
        Publication { node: NODE, epoch: OTHER, phase, met: Epoch(0), quota: Quota::default() }
    }

    fn view(role: Role, seen: &Publication) -> View<'_> {
        View { role, seen: Some(seen), broken: false, finished: false }
    }

    fn step(role: Role, phase: Phase, other: Publication) -> Step {
        next_step(&ours(phase), &view(role, &other))
    }

    #[test]
    fn the_ends_appear_and_disappear_while_idle() {
        let mut ours = Ours::new(MINE);
        let there = seen(Offered(MINE));
        for role in [Role::Leader, Role::Follower] {
            let gone = View { seen: None, ..view(role, &there) };
            assert_eq!(next_step(&ours, &gone), Step::Wait);
            assert_eq!(next_step(&ours, &view(role, &there)), Step::Appear);
            let told = ours.take(Step::Appear, Some(&there), || unreachable!());
            assert_eq!(told, [Notice::Appear]);
            assert_eq!(next_step(&ours, &gone), Step::Disappear);
            let told = ours.take(Step::Disappear, None, || unreachable!());
            assert_eq!(told, [Notice::Disappear]);
        }
    }

    #[test]
    fn a_connection_is_offered_attached_to_and_confirmed() {
        assert_eq!(step(Role::Leader, Idle, seen(Idle)), Step::Offer);
        assert_eq!(step(Role::Leader, Offered(OTHER), seen(Idle)), Step::Wait);
        assert_eq!(step(Role::Leader, Offered(OTHER), seen(Ready(MINE))), Step::Confirm);
        assert_eq!(step(Role::Leader, Up(OTHER), seen(Ready(MINE))), Step::Wait);
        assert_eq!(step(Role::Follower, Idle, seen(Idle)), Step::Wait);
        assert_eq!(step(Role::Follower, Idle, seen(Offered(MINE))), Step::Attach);
        assert_eq!(step(Role::Follower, Ready(OTHER), seen(Offered(MINE))), Step::Wait);
        assert_eq!(step(Role::Follower, Ready(OTHER), seen(Up(MINE))), Step::Wait);
    }

    #[test]
    fn the_steps_of_a_connection_tell_the_client_and_are_published() {
        let mut leader = ours(Idle);
        assert_eq!(leader.take(Step::Offer, Some(&seen(Idle)), || unreachable!()), []);
        assert_eq!((leader.phase, leader.met), (Offered(OTHER), Epoch(0)));
        let told = leader.take(Step::Confirm, Some(&seen(Ready(MINE))), || unreachable!());
        assert_eq!(told, [Notice::Connect]);
        assert_eq!((leader.phase, leader.met), (Up(OTHER), MINE));
        let told = leader.take(Step::Leave, None, || unreachable!());
        assert_eq!((told, leader.phase), (&[Notice::Disconnect][..], Leaving));
        assert_eq!(leader.take(Step::Renew, None, || Epoch(11)), []);
        let quota = Quota { messages: 3, ..Quota::default() };
        let publication =
            Publication { node: NODE, epoch: Epoch(11), phase: Idle, met: MINE, quota };
        assert_eq!(leader.publication(NODE, quota), publication);

        let mut follower = ours(Idle);
        let told = follower.take(Step::Attach, Some(&seen(Offered(MINE))), || unreachable!());
        assert_eq!(told, [Notice::Connect]);
        assert_eq!((follower.phase, follower.met), (Ready(OTHER), OTHER));

        // Nobody was told of an offer.
        assert_eq!(ours(Offered(OTHER)).take(Step::Leave, None, || unreachable!()), []);
    }

    #[test]
    fn what_is_meant_for_another_attempt_is_no_offer_and_no_answer() {
        assert_eq!(step(Role::Follower, Idle, seen(Offered(Epoch(9)))), Step::Wait);
        assert_eq!(step(Role::Leader, Offered(OTHER), seen(Ready(Epoch(9)))), Step::Leave);
        assert_eq!(step(Role::Leader, Offered(Epoch(19)), seen(Ready(MINE))), Step::Leave);
    }

    #[test]
    fn an_end_leaves_when_the_other_end_leaves_or_is_in_another_attempt() {
        for (role, pair) in [
            (Role::Leader, Offered(OTHER)),
            (Role::Leader, Up(OTHER)),
            (Role::Follower, Ready(OTHER)),
        ] {
            assert_eq!(step(role, pair, seen(Leaving)), Step::Leave);
            let renewed = Publication { epoch: Epoch(21), ..seen(Idle) };
            assert_eq!(step(role, pair, renewed), Step::Leave);
            let gone = View { seen: None, ..view(role, &renewed) };
            assert_eq!(next_step(&ours(pair), &gone), Step::Leave);
        }
        assert_eq!(step(Role::Leader, Up(OTHER), seen(Idle)), Step::Leave);
        assert_eq!(step(Role::Follower, Ready(OTHER), seen(Idle)), Step::Leave);
        assert_eq!(step(Role::Follower, Ready(OTHER), seen(Offered(Epoch(9)))), Step::Leave);
        assert_eq!(step(Role::Follower, Ready(OTHER), seen(Up(Epoch(9)))), Step::Leave);
    }

    #[test]
    fn a_leader_reports_a_connection_that_it_missed_before_it_offers_another() {
        let missed = |met, phase| Publication { met, epoch: Epoch(21), ..seen(phase) };
        assert_eq!(step(Role::Leader, Idle, missed(MINE, Idle)), Step::Missed);
        assert_eq!(step(Role::Leader, Offered(OTHER), missed(MINE, Leaving)), Step::Missed);
        let mut leader = ours(Offered(OTHER));
        let told = leader.take(Step::Missed, Some(&missed(MINE, Idle)), || unreachable!());
        assert_eq!(told, [Notice::Connect, Notice::Disconnect]);
        assert_eq!((leader.phase, leader.met), (Leaving, MINE));
        leader.take(Step::Renew, None, || Epoch(11));
        let other = missed(MINE, Idle);
        assert_eq!(next_step(&leader, &view(Role::Leader, &other)), Step::Offer);
        // Nor does it confirm what is broken already.
        let ready = Publication { met: MINE, ..seen(Ready(MINE)) };
        let broken = View { broken: true, ..view(Role::Leader, &ready) };
        assert_eq!(next_step(&ours(Offered(OTHER)), &broken), Step::Missed);
    }

    #[test]
    fn a_connection_of_another_end_was_not_missed() {
        for met in [Epoch(9), Epoch(11)] {
            let other = Publication { met, ..seen(Idle) };
            assert_eq!(step(Role::Leader, Idle, other), Step::Offer);
        }
    }

    #[test]
    fn another_node_is_another_end() {
        let other = Publication { node: SUCCESSOR, ..seen(Ready(MINE)) };
        assert_eq!(step(Role::Leader, Up(OTHER), other), Step::Leave);
        assert_eq!(step(Role::Leader, Idle, other), Step::Disappear);
        let mut leader = ours(Idle);
        leader.take(Step::Disappear, Some(&other), || unreachable!());
        assert_eq!(next_step(&leader, &view(Role::Leader, &other)), Step::Appear);
        leader.take(Step::Appear, Some(&other), || unreachable!());
        assert_eq!(leader.appeared, Some(SUCCESSOR));
    }

    #[test]
    fn the_next_attempt_begins_when_the_client_has_completed_the_last() {
        for other in [seen(Idle), seen(Leaving), seen(Ready(MINE)), seen(Offered(MINE))] {
            for role in [Role::Leader, Role::Follower] {
                assert_eq!(step(role, Leaving, other), Step::Wait);
                let finished = View { finished: true, ..view(role, &other) };
                assert_eq!(next_step(&ours(Leaving), &finished), Step::Renew);
            }
        }
    }

    /// Everything that an end can see, and know of itself.
    fn all() -> impl Iterator<Item = (Ours, Role, Option<Publication>)> {
        let phases = [Idle, Leaving].into_iter().chain(
            [9, 10, 20, 21]
                .into_iter()
                .flat_map(|epoch| [Offered, Ready, Up].map(|phase| phase(Epoch(epoch)))),
        );
        phases.clone().flat_map(move |own| {
            let seen = phases.clone().flat_map(|phase| {
                [NODE, SUCCESSOR].into_iter().flat_map(move |node| {
                    [0, 9, 10, 11]
                        .map(|met| Some(Publication { node, met: Epoch(met), ..seen(phase) }))
                })
            });
            seen.chain([None]).flat_map(move |seen| {
                [Role::Leader, Role::Follower].map(|role| (ours(own), role, seen))
            })
        })
    }

    #[test]
    fn an_end_leaves_without_the_other_ends_help() {
        for (ours, role, seen) in all() {
            let view = View { role, seen: seen.as_ref(), broken: true, finished: true };
            match ours.phase {
                Idle => {}
                Leaving => assert_eq!(next_step(&ours, &view), Step::Renew),
                _ => assert!(matches!(next_step(&ours, &view), Step::Leave | Step::Missed)),
            }
            // That is how an endpoint is destroyed.
            let mut ours = ours;
            for _ in 0..3 {
                let view = View { seen: None, ..view };
                ours.take(next_step(&ours, &view), None, || Epoch(11));
            }
            assert_eq!((ours.phase, ours.appeared), (Idle, None), "{role:?} {seen:?}");
        }
    }

    #[test]
    fn the_steps_come_to_rest() {
        for (before, role, seen) in all() {
            for (broken, finished) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut ours = before;
                let view = View { role, seen: seen.as_ref(), broken, finished };
                let rests = (0..8).any(|_| {
                    let step = next_step(&ours, &view);
                    let was = ours;
                    ours.take(step, view.seen, || Epoch(was.epoch.0 + 1));
                    assert!(step == Step::Wait || ours != was, "{step:?} leads nowhere: {was:?}");
                    step == Step::Wait
                });
                assert!(rests, "{before:?} {view:?}");
            }
        }
    }
}
