//! Signals of Unix, as the event loop sees them.

use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use xen::Side;
use xen_linux::runtime::{READABLE, Reactor, Watched};

/// Unix signals, each of which makes a socket readable.
pub(super) struct Signals(Watched);

impl Signals {
    pub(super) fn new(reactor: &Reactor, signals: &[i32]) -> io::Result<Self> {
        Signals::watch(reactor, receive(signals)?)
    }

    pub(super) fn watch(reactor: &Reactor, receiver: UnixStream) -> io::Result<Self> {
        reactor.watch(Rc::new(receiver.into()), READABLE).map(Signals)
    }

    /// Waits for a signal. Several may arrive as one.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        let mut bytes = [0; 64];
        poll_fn(|cx| self.0.poll_io(cx, Side::Rx, |file| Ok(rustix::io::read(file, &mut bytes)?)))
            .await
            .map(drop)
    }
}

/// A socket that becomes readable at each of these signals.
pub(super) fn receive(signals: &[i32]) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, sender.try_clone()?)?;
    }
    receiver.set_nonblocking(true)?;
    Ok(receiver)
}
