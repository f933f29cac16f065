//! The machine that Xen gives a domain: event channels, grants, the clock, the console and the
//! connection to xenstore.

mod domain;
mod guest;
mod neighbour;
mod ring;
mod suspend;

pub use domain::Domain;
pub use guest::{Console, Guest, guest, start, xenstore};
pub use neighbour::{ForeignPages, ForeignPort};
pub use ring::notifications_sent;
pub use suspend::Resumed;
