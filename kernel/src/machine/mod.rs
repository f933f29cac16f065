//! The machine that Xen gives a domain, brought to life: event channels, grants, the clock, the
//! console and the way to xenstore.

mod domain;
mod guest;
mod ring;
mod suspend;

pub use domain::Domain;
pub use guest::{Console, Guest, guest, start, xenstore};
pub use ring::notifications_sent;
pub use suspend::Resumed;
