//! The control socket: what `xensockctl` asks, and what the daemon answers. Each is a line of JSON.

pub mod arguments;
mod server;

pub use server::Server;

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Where the socket is, unless the command line names another place.
pub const DEFAULT: &str = "/run/xensockd/control";

/// The group whose members may use the socket, if it exists; otherwise only root may.
pub const GROUP: &str = "xensockd";

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What the daemon and its guests have.
    Status,
    /// The same in numbers, for Prometheus.
    Metrics,
    /// To end a socket of a guest, which is named by its name or its domain's number. The socket's
    /// number is that in the status.
    Close {
        /// The guest.
        guest: String,
        /// The socket.
        socket: u64,
    },
    /// To read the rules again.
    Reload,
    /// To stop, so that the one that has started it starts it again.
    Restart,
    /// To stop, and to leave the listening sockets to the client, which is another daemon.
    HandOver,
    /// To log messages of this level from now on, and worse ones.
    LogLevel(String),
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done. A line for the user.
    Done(String),
    /// Why it is not done. A line for the user.
    Failed(String),
    /// The status.
    Status(Status),
    /// The numbers, as [`crate::metrics::text`] writes them.
    Metrics(String),
}

/// What the daemon and its guests have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the daemon.
    pub version: String,
    /// Which rules hold.
    pub rules: String,
    /// Mappings of guests' memory.
    pub mappings: u64,
    /// Bound event channels.
    pub ports: u64,
    /// The guests that have a device, by their domains' numbers.
    pub guests: Vec<GuestStatus>,
}

impl Status {
    /// The guest with this name, or else with this domain's number.
    pub fn guest(&self, name: &str) -> Option<&GuestStatus> {
        let find = |is: &dyn Fn(&GuestStatus) -> bool| self.guests.iter().find(|guest| is(guest));
        find(&|guest| guest.name.as_deref() == Some(name))
            .or_else(|| find(&|guest| guest.domain.to_string() == name))
    }
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Its domain's number.
    pub domain: u16,
    /// Its name, if the toolstack has given it one.
    pub name: Option<String>,
    /// Its UUID.
    pub uuid: Option<String>,
    /// The section of the rules that applies to it.
    pub section: String,
    /// Where it may listen, as in the rules.
    pub listen: String,
    /// Where it may connect.
    pub connect: Vec<String>,
    /// Where it may not connect.
    pub connect_deny: Vec<String>,
    /// The sockets that count, also those that are neither bound nor connected.
    pub sockets_used: usize,
    /// The most of them.
    pub sockets_limit: usize,
    /// Mapped pages of data rings, also of rings that the guest will use again.
    pub ring_pages_used: usize,
    /// The most of them.
    pub ring_pages_limit: usize,
    /// Its bound and connected sockets.
    pub sockets: Vec<SocketStatus>,
}

/// A socket of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Its number, which no other socket of the guest has had.
    pub number: u64,
    /// How it came to be.
    pub kind: Kind,
    /// Its own address.
    pub local: Option<SocketAddr>,
    /// The peer's address, or that which the guest asked for to listen or to receive datagrams.
    pub remote: SocketAddr,
    /// Its age in seconds.
    pub age: u64,
    /// The bytes that the guest has received.
    pub bytes_in: u64,
    /// The bytes that the guest has sent.
    pub bytes_out: u64,
    /// The data ring of a connection.
    pub ring: Option<RingStatus>,
}

/// The bytes of a data ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingStatus {
    /// The size of the buffer that the guest reads from.
    pub in_size: u32,
    /// What the guest has not read yet.
    pub in_used: u32,
    /// The size of the buffer that the guest writes to.
    pub out_size: u32,
    /// What the daemon has not sent yet.
    pub out_used: u32,
}

/// How a socket came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The guest has bound it.
    Listen,
    /// A peer has connected.
    Accept,
    /// The guest has connected.
    Connect,
    /// It is for datagrams.
    Datagrams,
}
