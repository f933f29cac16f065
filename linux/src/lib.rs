//! A Linux process's view of Xen: what a program needs that serves guests.
//!
//! [`Domain`] maps other domains' pages and binds their ports through `/dev/xen/*`, and has a
//! client of xenstore. [`runtime`] is the event loop of the thread that it belongs to.
//!
//! ```no_run
//! use futures_util::future::{Either, select};
//! use std::pin::pin;
//! use xen_linux::runtime::Runtime;
//! use xen_linux::{Counts, Domain};
//!
//! let mut runtime = Runtime::new()?;
//! let (domain, driver) = Domain::open(runtime.reactor(), &Counts::default())?;
//! let name = runtime.block_on(async {
//!     let name = pin!(domain.store().read_string("/local/domain/0/name"));
//!     match select(name, pin!(driver.run())).await {
//!         Either::Left((name, _)) => name.map_err(|error| error.to_string()),
//!         Either::Right((reason, _)) => Err(reason),
//!     }
//! })?;
//! println!("domain 0 is {}", name?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod counts;
mod device;
mod domain;
#[allow(unsafe_code, reason = "ioctls of `/dev/xen/evtchn`")]
mod evtchn;
#[allow(unsafe_code, reason = "ioctls of `/dev/xen/gntdev`, and mappings of other domains' pages")]
mod gntdev;
pub mod runtime;
pub mod tcp;
mod xenbus;
mod xenstored;

pub use counts::{Count, Counts, Ticket};
pub use domain::{Domain, Driver};
pub use evtchn::BoundPort;
pub use gntdev::MappedPages;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use xen::Errno;

/// A number that nobody can guess. Waits until the kernel has collected enough for it, which it has
/// soon after it has booted.
pub fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    let count = retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()));
    assert_eq!(count, Ok(bytes.len()), "so few bytes come at once");
    bytes
}

/// Linux's error numbers equal Xen's, as far as sockets and Xen's device files need them.
pub fn errno(error: impl Into<std::io::Error>) -> Errno {
    error.into().raw_os_error().map_or(Errno::EIO, Errno)
}
