//! A benchmark of two ends: transfers, transactions and messages, beside the same bytes through a
//! link alone.
//!
//! [`serve`] is one end, and [`visit`] the other one, which measures. Both have an endpoint and,
//! beside it, a link without endpoints (a *ring*, between domains), on which the visitor sends
//! commands.

mod ring;
mod serve;
mod visit;

pub use serve::serve;
pub use visit::{Way, visit};

use crate::{Address, Quota, Service};
use core::time::Duration;

/// The quota of both ends.
const QUOTA: Quota =
    Quota { messages: 256, message: 64, transactions: 8, parameters: 64, status: 128 };

/// The bytes of a transaction's parameters, of its status, and of a message.
const MESSAGE: usize = 64;

/// The bytes of the registered buffer, and the most of a transfer.
const BUFFER: usize = 4 << 20;

/// The bytes that the ends of a link write and read at a time.
const PIECE: usize = 1 << 20;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// MiB in each direction.
    pub mib: usize,
    /// Round trips. There are ten times as many messages.
    pub count: usize,
}

/// What an end has used up since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// The processor's time.
    pub cpu: Duration,
    /// Hypercalls, if they are counted.
    pub hypercalls: u64,
    /// Those that send events.
    pub notifications: u64,
}

impl Used {
    fn since(&self, before: &Used) -> Used {
        Used {
            cpu: self.cpu.saturating_sub(before.cpu),
            hypercalls: self.hypercalls.saturating_sub(before.hypercalls),
            notifications: self.notifications.saturating_sub(before.notifications),
        }
    }

    fn least(&self, other: &Used) -> Used {
        Used {
            cpu: self.cpu.min(other.cpu),
            hypercalls: self.hypercalls.min(other.hypercalls),
            notifications: self.notifications.min(other.notifications),
        }
    }

    fn add(&mut self, other: &Used) {
        self.cpu += other.cpu;
        self.hypercalls += other.hypercalls;
        self.notifications += other.notifications;
    }

    fn to_bytes(self) -> [u8; 24] {
        let words = [self.cpu.as_nanos() as u64, self.hypercalls, self.notifications];
        zerocopy::transmute!(words.map(u64::to_le_bytes))
    }

    fn from_bytes(bytes: [u8; 24]) -> Self {
        let words: [[u8; 8]; 3] = zerocopy::transmute!(bytes);
        let [cpu, hypercalls, notifications] = words.map(u64::from_le_bytes);
        Used { cpu: Duration::from_nanos(cpu), hypercalls, notifications }
    }
}

/// The address of the link beside the endpoint at an address.
fn link_beside(address: &Address) -> Address {
    let service = Service::new("link", 0).expect("it is a name");
    Address { place: address.place, service }
}
