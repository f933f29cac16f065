//! What the operator sees of a socket that has a ring.

use crate::control::{Kind, RingStatus, SocketStatus};
use crate::sockets::now;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Weak;
use std::time::Duration;
use xensock::back::{Ring, RingUsage};

/// The age, the traffic and the ring of a socket.
pub struct Usage {
    since: Duration,
    /// The bytes that the guest has received.
    pub received: Cell<u64>,
    /// The bytes that were sent.
    pub sent: Cell<u64>,
    ring: RefCell<Option<Weak<dyn Ring>>>,
    /// Whether the operator ended it.
    pub ended: Cell<bool>,
}

impl Usage {
    /// A new socket, which has no ring yet.
    pub fn new() -> Self {
        Usage {
            since: now(),
            received: Cell::new(0),
            sent: Cell::new(0),
            ring: RefCell::default(),
            ended: Cell::new(false),
        }
    }

    /// The socket has another ring.
    pub fn set_ring(&self, ring: Weak<dyn Ring>) {
        self.ring.replace(Some(ring));
    }

    /// All of it, with the addresses of the socket.
    pub fn status(
        &self,
        number: u64,
        kind: Kind,
        local: Option<SocketAddr>,
        remote: SocketAddr,
    ) -> SocketStatus {
        let ring = self.ring.borrow().as_ref().and_then(Weak::upgrade);
        SocketStatus {
            number,
            kind,
            local,
            remote,
            age: now().saturating_sub(self.since).as_secs(),
            bytes_in: self.received.get(),
            bytes_out: self.sent.get(),
            ring: ring.map(|ring| {
                let RingUsage { in_size, in_used, out_size, out_used } = ring.usage();
                RingStatus { in_size, in_used, out_size, out_used }
            }),
        }
    }
}
