//! The life of a connection: what each end publishes, and which step it takes next.
//!
//! One pure function decides, for all transports. `docs/idc.md` has the table and its properties.

use crate::Quota;

/// The identity of a node: a domain or process from its start to its end. Random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

/// One attempt of an end to connect. A node never uses a number twice; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// How far an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for the other end.
    Idle,
    /// The leader has made a link for the other end's epoch.
    Offered(Epoch),
    /// The follower has attached to the link of this epoch and is connected.
    Ready(Epoch),
    /// The leader is connected with this epoch.
    Up(Epoch),
    /// It has left the connection, and its client does not know all of it yet.
    Leaving,
}

/// What an end shows to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its node.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its phase.
    pub phase: Phase,
    /// The other's epoch with which this end last told its client that it is connected, or 0.
    pub met: Epoch,
    /// What it is ready to receive.
    pub quota: Quota,
}
