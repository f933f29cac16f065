//! An exam of two ends: a service that behaves as it is asked to, and a client that tries all that
//! two ends can see of each other. For those who write another transport or implementation.
//!
//! [`serve`] runs at one end and [`examine`] at the other one; each end should have its turn at
//! both. [`load`] keeps a service busy while one of the ends is killed. [`bench`] measures what two
//! ends can do. [`run`] is a program of them all.
//!
//! Every item begins with a head of 20 bytes, little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 0..12 | the client's connection: 8 random bytes of the client, and how often it connected |
//! | 12..16 | the item's number within the connection, of messages and transactions together |
//! | 16..20 | what is to be done |

pub mod bench;
mod examine;
mod load;
mod run;
mod serve;

pub use examine::examine;
pub use load::{Load, load};
pub use run::{run, word};
pub use serve::serve;

use crate::{Event, LocalBuffer, Node, Quota, transport::Transport};
use alloc::vec::Vec;
use core::cell::Cell;
use zerocopy::TryFromBytes;

/// The quota of both ends.
pub const QUOTA: Quota =
    Quota { messages: 4, message: 4096, transactions: 8, parameters: 4096, status: 4096 };

/// What an owner writes to a buffer that is not registered any more.
const POISON: u8 = 0xa5;

/// What a client asks for. The arguments are `u32`s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes)]
#[repr(u32)]
enum Op {
    /// Finish a message, or answer a transaction: with the first argument as the error, and the
    /// rest as the status.
    Echo,
    /// Keep a message or transaction.
    Keep,
    /// Finish so many of what was kept, the latest first. The error of a transaction is the number
    /// of its answer.
    Release,
    /// Abandon the transaction.
    Abandon,
    /// Try to answer with a status that is too long.
    TooLong,
    /// Send messages to the client until there is no slot. The status is their number.
    Flood,
    /// Submit so many transactions to the client. The status has the error and the length of the
    /// status of each.
    Ask,
    /// Register a buffer of this length with these rights. The status is its reference.
    Own,
    /// Unregister the buffer, and fill it with [`POISON`].
    Revoke,
    /// The status is the buffer's digest.
    Digest,
    /// Tell what was [`Seen`].
    Report,
    /// Destroy the endpoint with all that is outstanding, and make another one after so many
    /// milliseconds.
    Leave,
}

/// What a service has seen, in all connections unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    connections: u32,
    /// Items of this connection.
    items: u32,
    /// Items that belong to another connection than the one in which they came.
    stale: u32,
    /// Items and events that were out of order.
    disorder: u32,
    /// Statuses that were refused.
    refused: u32,
}

impl Seen {
    fn words(&self) -> [u32; 5] {
        [self.connections, self.items, self.stale, self.disorder, self.refused]
    }

    fn from_words(words: &[u32]) -> Option<Self> {
        let &[connections, items, stale, disorder, refused] = words else { return None };
        Some(Seen { connections, items, stale, disorder, refused })
    }
}

/// A client's connection, whose items it makes.
struct Items {
    client: [u8; 8],
    connection: u32,
    next: Cell<u32>,
}

impl Items {
    fn new<T: Transport>(node: &Node<T>) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = node.random();
        Items { client: [a, b, c, d, e, f, g, h], connection: 0, next: Cell::new(0) }
    }

    fn begin_connection(&mut self) {
        self.connection += 1;
        self.next.set(0);
    }

    fn item(&self, op: Op, arguments: &[u32]) -> LocalBuffer {
        let number = self.next.replace(self.next.get() + 1);
        let mut item = self.client.to_vec();
        item.extend(bytes(&[self.connection, number, op as u32]));
        item.extend(bytes(arguments));
        item.into()
    }
}

/// How far the events of an endpoint are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Gone,
    There,
    Connected,
}

impl Stage {
    /// The stage after an event. `None` if the event may not come now.
    fn after(self, event: &Event) -> Option<Stage> {
        match (self, event) {
            (Stage::Gone, Event::Appear) => Some(Stage::There),
            (Stage::There, Event::Connect) => Some(Stage::Connected),
            (Stage::Connected, Event::Message(_) | Event::Transaction(_)) => Some(self),
            (Stage::Connected, Event::Disconnect(_)) => Some(Stage::There),
            (Stage::There, Event::Disappear) => Some(Stage::Gone),
            _ => None,
        }
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// The bytes that an owner's buffer has at first.
fn pattern(at: usize) -> u8 {
    (at * 7 + at / 251) as u8 & 0x7f
}

/// The digest of bytes (FNV-1a).
fn digest(bytes: impl Iterator<Item = u8>) -> [u32; 2] {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, mix);
    [hash as u32, (hash >> 32) as u32]
}
