//! Two ends in every order of looks, steps, publications and failures: breadth first, from two ends
//! that have never met.
//!
//! Each end sees the other's publication late, or loses sight of it. It publishes late, or skips a
//! publication because it has gone on. Links break at any moment. Followers cannot attach. An
//! endpoint is replaced by another one of the same node or of a new node, and its publication stays
//! until its successor's replaces it. The search checks:
//!
//! - A connection is one at both ends or at none, and an end is not in one before the other end has
//!   been through all former ones of these two ends.
//! - Clients are told Appear (Connect Disconnect)* Disappear.
//! - Without the other end, an end leaves and the other disappears.
//! - When nothing fails any more, both ends are connected with each other.
//!
//! The other tests weaken the table, which the search notices.

use idc::Quota;
use idc::life::{Epoch, NodeId, Notice, Ours, Phase, Publication, Role, Step, View, next_step};
use std::collections::{HashSet, VecDeque};

/// The table and the numbers that nodes choose, which tests weaken.
#[derive(Clone, Copy)]
struct Rules<'a> {
    next: &'a dyn Fn(&Ours, &View<'_>) -> Step,
    /// The first epoch of a node.
    first_epoch: fn(NodeId) -> u64,
    /// What follows an epoch.
    following: fn(u64) -> u64,
    /// How often each endpoint may begin, and how often one is replaced.
    attempts: u8,
    replaced: u8,
}

const TABLE: Rules<'_> = Rules {
    next: &next_step,
    // Nodes with different epochs, of which the later ones are the lower ones.
    first_epoch: |node| 100 - 20 * u64::from(node.0[0]),
    following: |epoch| epoch + 1,
    attempts: 2,
    replaced: 1,
};

/// A publication and the endpoint that wrote it, which the other end does not know.
type Shown = (Publication, u8);

#[derive(Clone, PartialEq, Eq, Hash)]
struct End {
    ours: Ours,
    node: NodeId,
    endpoint: u8,
    attempts: u8,
    shown: Option<Shown>,
    seen: Option<Shown>,
    /// What the client knows: the node that has appeared, and whether it is connected.
    told: Option<(NodeId, bool)>,
}

/// A connection, with the endpoints of the leader and the follower, and how far it is for each.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Connection {
    leaders_epoch: Epoch,
    endpoints: [u8; 2],
    at: [Past; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Past {
    Never,
    Open,
    Over,
}

/// The leader, the follower, and their connections.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    ends: [End; 2],
    connections: Vec<Connection>,
}

const LEADER: usize = 0;
const FOLLOWER: usize = 1;
const ROLES: [Role; 2] = [Role::Leader, Role::Follower];

impl End {
    fn new(rules: &Rules<'_>, node: NodeId, endpoint: u8) -> Self {
        let ours = Ours::new(Epoch((rules.first_epoch)(node)));
        let [shown, seen] = [None, None];
        End { ours, node, endpoint, attempts: 1, shown, seen, told: None }
    }

    fn publication(&self) -> Option<Shown> {
        Some((self.ours.publication(self.node, Quota::default()), self.endpoint))
    }
}

impl State {
    fn new(rules: &Rules<'_>) -> Self {
        let ends = [0, 1].map(|side| End::new(rules, NodeId([side; 16]), 0));
        State { ends, connections: Vec::new() }
    }

    fn next(&self, rules: &Rules<'_>, side: usize, broken: bool) -> Step {
        let seen = self.ends[side].seen.as_ref().map(|(publication, _)| publication);
        let view = View { role: ROLES[side], seen, broken, finished: true };
        (rules.next)(&self.ends[side].ours, &view)
    }

    /// Takes a step and checks what the client is told.
    fn take(&mut self, rules: &Rules<'_>, side: usize, step: Step) -> Result<(), &'static str> {
        let end = &mut self.ends[side];
        let seen = end.seen.as_ref().map(|(publication, _)| publication);
        let epoch = end.ours.epoch.0;
        end.attempts += u8::from(step == Step::Renew);
        for notice in end.ours.take(step, seen, || Epoch((rules.following)(epoch))) {
            let end = &mut self.ends[side];
            let node = end.seen.as_ref().map(|(publication, _)| publication.node);
            end.told = match (notice, end.told) {
                (Notice::Appear, None) => node.map(|node| (node, false)),
                (Notice::Connect, Some((there, false))) if node == Some(there) => {
                    Some((there, true))
                }
                (Notice::Disconnect, Some((there, true))) => Some((there, false)),
                (Notice::Disappear, Some((_, false))) => None,
                _ => return Err("told in the wrong order"),
            };
            match notice {
                Notice::Connect => self.connect(side)?,
                Notice::Disconnect => self.disconnect(side),
                Notice::Appear | Notice::Disappear => {}
            }
        }
        Ok(())
    }

    fn connect(&mut self, side: usize) -> Result<(), &'static str> {
        let end = &self.ends[side];
        let Some((_, other)) = end.seen else { return Err("connected with nobody") };
        let leaders_epoch = end.ours.met;
        let is_this =
            |c: &Connection| c.leaders_epoch == leaders_epoch && c.endpoints[side] == end.endpoint;
        let this = match side {
            LEADER => self.connections.iter().position(is_this),
            _ if self.connections.iter().any(is_this) => return Err("connected twice"),
            _ => {
                let endpoints = [other, end.endpoint];
                let at = [Past::Never; 2];
                self.connections.push(Connection { leaders_epoch, endpoints, at });
                Some(self.connections.len() - 1)
            }
        };
        let Some(this) = this else { return Err("the other end was not connected") };
        if self.connections[this].at[side] != Past::Never {
            return Err("connected twice");
        }
        self.connections[this].at[side] = Past::Open;
        let endpoints = self.connections[this].endpoints;
        for (n, former) in self.connections.iter().enumerate() {
            if n != this && former.endpoints == endpoints && former.at != [Past::Over; 2] {
                return Err("an end is not through a former connection");
            }
        }
        Ok(())
    }

    fn disconnect(&mut self, side: usize) {
        let endpoint = self.ends[side].endpoint;
        for connection in &mut self.connections {
            if connection.endpoints[side] == endpoint && connection.at[side] == Past::Open {
                connection.at[side] = Past::Over;
            }
        }
    }

    /// Everything that may happen next.
    fn successors(&self, rules: &Rules<'_>) -> Result<Vec<State>, &'static str> {
        let mut all = Vec::new();
        for side in [LEADER, FOLLOWER] {
            let end = &self.ends[side];
            let mut with = |change: &dyn Fn(&mut End)| {
                let mut state = self.clone();
                change(&mut state.ends[side]);
                all.push(state);
            };
            let other = self.ends[1 - side].shown;
            if end.seen != other {
                with(&|end| end.seen = other);
            }
            if end.seen.is_some() {
                with(&|end| end.seen = None);
            }
            if end.shown != end.publication() {
                with(&|end| end.shown = end.publication());
            }
            let replaced: u8 = self.ends.iter().map(|end| end.endpoint).sum();
            if replaced < rules.replaced {
                let endpoint = end.endpoint + 1;
                let same = End {
                    ours: Ours::new(Epoch((rules.following)(end.ours.epoch.0))),
                    ..End::new(rules, end.node, endpoint)
                };
                let new = End::new(rules, NodeId([end.node.0[0] + 2; 16]), endpoint);
                for successor in [same, new] {
                    with(&|end| *end = End { shown: end.shown, ..successor.clone() });
                }
            }
            let next = self.next(rules, side, false);
            let mut steps = vec![next, self.next(rules, side, true)];
            if next == Step::Attach {
                steps.push(Step::Renew);
            }
            steps.dedup();
            for step in steps {
                if step != Step::Wait && (step != Step::Renew || end.attempts < rules.attempts) {
                    let mut state = self.clone();
                    state.take(rules, side, step)?;
                    all.push(state);
                }
            }
        }
        Ok(all)
    }

    /// An end that sees nobody leaves, and its client is told so.
    fn leaves_alone(&self, rules: &Rules<'_>, side: usize) -> Result<(), &'static str> {
        let mut state = self.clone();
        state.ends[side].seen = None;
        for _ in 0..4 {
            let step = state.next(rules, side, false);
            state.take(rules, side, step)?;
        }
        if state.ends[side].told.is_some() { Err("waits for the other end") } else { Ok(()) }
    }

    /// Both ends look, go as far as they can and publish, in turns.
    fn connects_at_last(&self, rules: &Rules<'_>) -> Result<(), &'static str> {
        let mut state = self.clone();
        for turn in 0..20 {
            if state.is_up() {
                return Ok(());
            }
            let side = turn % 2;
            state.ends[side].seen = state.ends[1 - side].shown;
            for _ in 0..8 {
                match state.next(rules, side, false) {
                    Step::Wait => break,
                    step => state.take(rules, side, step)?,
                }
            }
            state.ends[side].shown = state.ends[side].publication();
        }
        Err("does not connect again")
    }

    fn is_up(&self) -> bool {
        let [leader, follower] = &self.ends;
        leader.ours.phase == Phase::Up(follower.ours.epoch)
            && follower.ours.phase == Phase::Ready(leader.ours.epoch)
    }
}

/// Searches all states, and returns their number and how many of them are connected.
fn search(rules: &Rules<'_>) -> Result<(usize, usize), &'static str> {
    let first = State::new(rules);
    let mut known = HashSet::from([first.clone()]);
    let mut next = VecDeque::from([first]);
    let mut up = 0;
    while let Some(state) = next.pop_front() {
        up += usize::from(state.is_up());
        state.leaves_alone(rules, LEADER)?;
        state.leaves_alone(rules, FOLLOWER)?;
        state.connects_at_last(rules)?;
        for successor in state.successors(rules)? {
            if !known.contains(&successor) {
                known.insert(successor.clone());
                next.push_back(successor);
            }
        }
    }
    Ok((known.len(), up))
}

/// Searches all states, which hold, and prints what was searched.
fn holds(rules: &Rules<'_>) {
    let (states, up) = search(rules).unwrap();
    println!("{states} states, {up} of them connected");
    assert!(up > 0);
}

#[test]
fn connections_are_the_same_ones_at_both_ends() {
    holds(&Rules { attempts: 3, replaced: 0, ..TABLE });
}

#[test]
fn connections_are_the_same_ones_at_both_ends_when_one_is_replaced() {
    holds(&TABLE);
}

/// Checks that the search finds a violation if the table is weaker somewhere.
fn notices(weakened: &str, rules: Rules<'_>) {
    let found = search(&rules).expect_err(weakened);
    println!("{weakened}: {found}");
}

#[test]
fn the_search_notices_a_row_that_is_missing() {
    type Row = fn(Step, &View<'_>) -> bool;
    let rows: [(&str, Row); 10] = [
        ("no Appear", |step, _| step == Step::Appear),
        ("no Disappear", |step, _| step == Step::Disappear),
        ("no Offer", |step, _| step == Step::Offer),
        ("no Attach", |step, _| step == Step::Attach),
        ("no Confirm", |step, _| step == Step::Confirm),
        ("no Renew", |step, _| step == Step::Renew),
        ("Missed and then nothing", |step, _| step == Step::Missed),
        ("no Leave without the other", |step, view| step == Step::Leave && view.seen.is_none()),
        ("a leader never leaves", |step, view| {
            step == Step::Leave && view.role == Role::Leader && !view.broken
        }),
        ("a follower never leaves", |step, view| {
            step == Step::Leave && view.role == Role::Follower && !view.broken
        }),
    ];
    for (row, is_of_row) in rows {
        let next = &|ours: &Ours, view: &View<'_>| match next_step(ours, view) {
            step if is_of_row(step, view) => Step::Wait,
            step => step,
        };
        notices(row, Rules { next, ..TABLE });
    }
}

#[test]
fn the_search_notices_a_row_that_does_not_look_closely() {
    // The table applied to another publication than the one that was seen.
    type Look = fn(&Ours, &View<'_>, &mut Publication);
    let looks: [(&str, Look); 5] = [
        ("missed connections are not looked for", |_, _, seen| seen.met = Epoch(0)),
        ("an answer to another epoch is confirmed", |ours, view, seen| {
            if view.role == Role::Leader && matches!(seen.phase, Phase::Ready(_)) {
                seen.phase = Phase::Ready(ours.epoch);
            }
        }),
        ("an offer for another epoch is attached to", |ours, _, seen| {
            if ours.phase == Phase::Idle && matches!(seen.phase, Phase::Offered(_)) {
                seen.phase = Phase::Offered(ours.epoch);
            }
        }),
        ("another epoch is not looked for", |ours, _, seen| {
            if let Phase::Offered(pair) | Phase::Up(pair) | Phase::Ready(pair) = ours.phase {
                seen.epoch = pair;
            }
        }),
        ("another node is the same one", |ours, _, seen| {
            seen.node = ours.appeared.unwrap_or(seen.node);
        }),
    ];
    for (weakened, look) in looks {
        let next = &|ours: &Ours, view: &View<'_>| {
            let mut seen = view.seen.copied();
            if let Some(seen) = &mut seen {
                look(ours, view, seen);
            }
            next_step(ours, &View { seen: seen.as_ref(), ..*view })
        };
        notices(weakened, Rules { next, ..TABLE });
    }
}

#[test]
fn the_search_notices_that_an_epoch_is_used_twice() {
    notices("attempts share an epoch", Rules { following: |epoch| epoch, ..TABLE });
    notices("nodes share epochs", Rules { first_epoch: |_| 100, ..TABLE });
    // The table without the bounds of what a leader can have missed.
    for bound in ["its predecessor's at the same node", "a later node's of a lower number"] {
        let next = &|ours: &Ours, view: &View<'_>| match (next_step(ours, view), view.seen) {
            (Step::Offer | Step::Wait, Some(seen))
                if seen.met > ours.met
                    && view.role == Role::Leader
                    && ours.phase == Phase::Idle
                    && (seen.met > ours.epoch) == bound.starts_with('a') =>
            {
                Step::Missed
            }
            (step, _) => step,
        };
        notices(bound, Rules { next, ..TABLE });
    }
}
