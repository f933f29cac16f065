//! Whether an event is due.

/// Whether the other end must be sent an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that sleeps and gets no event sleeps forever"]
pub enum Notify {
    /// The peer may be asleep.
    Due,
    /// The peer will look by itself.
    NotDue,
}

impl Notify {
    /// Whether an event is due.
    pub fn is_due(self) -> bool {
        self == Notify::Due
    }

    /// Whether an index has passed the one at which the peer asked for an event, by moving from `old` to `new`
    /// (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY` of `io/ring.h`).
    pub(super) fn if_passed(old: u32, new: u32, event: u32) -> Notify {
        if new.wrapping_sub(event) < new.wrapping_sub(old) { Notify::Due } else { Notify::NotDue }
    }
}
