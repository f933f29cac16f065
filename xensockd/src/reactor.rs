//! Files whose readiness tokio's reactor reports.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A file that is registered with the reactor, until it is dropped.
pub type Watched = AsyncFd<Rc<OwnedFd>>;

/// Registers a file, inside a tokio runtime.
pub fn watch(file: Rc<OwnedFd>, interest: Interest) -> io::Result<Watched> {
    // SAFETY: the `Rc` keeps the file open for as long as the registration has it, lends it to nobody
    // mutably, and always names the same descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}
