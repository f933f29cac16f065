//! Event channels, through `/dev/xen/evtchn` (Linux's `include/uapi/xen/evtchn.h`).
//!
//! One open file serves all channels: each event is a port number to read. The driver masks a port
//! when it hands out its number, and writing the number back unmasks it. This happens before any
//! task reads its ring, so an event that arrives in between is reported again. A domain that sends
//! events without end is served once per turn of the event loop, like any other domain.
//!
//! The driver does not wake a reader for an event that arrives during a read. So epoll watches the
//! file level-triggered: it looks at the file again in each turn, and one read per turn is enough.

use crate::counts::{Count, Ticket};
use crate::device::{explain, request};
use crate::errno;
use crate::runtime::{EventFlags, Reactor, Watched};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::ioctl;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use xen::{DomId, Errno, Port, Side, Signal};

/// The device file for event channels.
pub const DEVICE: &str = "/dev/xen/evtchn";

/// How many ports are read at a time.
const BATCH: usize = 256;

/// The device, open, and the channels bound through it.
#[derive(Clone)]
pub struct EventChannels(Rc<Inner>);

struct Inner {
    file: Watched,
    signals: RefCell<HashMap<u32, Arc<Signal>>>,
    counter: Arc<Count>,
}

impl EventChannels {
    /// Opens the device. Channels are counted in `counter`. An error is a line for the user.
    pub fn open(reactor: &Reactor, counter: Arc<Count>) -> Result<Self, String> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(DEVICE, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| reactor.watch(Rc::new(file), EventFlags::IN))
            .map_err(|error| explain(DEVICE, "xen-evtchn", error))?;
        Ok(EventChannels(Rc::new(Inner { file, signals: RefCell::default(), counter })))
    }

    /// Binds to an event channel that `owner` offers. Its events raise `signal`.
    /// [`Errno::ENOBUFS`] if this domain has no more event channels.
    pub fn bind(
        &self,
        owner: DomId,
        remote: Port,
        signal: Arc<Signal>,
    ) -> Result<BoundPort, Errno> {
        let request = BindInterdomain { domain: u32::from(owner.0), port: remote.0 };
        // SAFETY: the structure is the one that the driver reads.
        let port = unsafe { ioctl(&*self.0.file, request) }.map_err(refused)?;
        self.0.signals.borrow_mut().insert(port, signal);
        Ok(BoundPort { inner: self.0.clone(), port, _ticket: Ticket::new(self.0.counter.clone()) })
    }

    /// Raises the signals of all events. Returns only if the device fails.
    pub async fn run(&self) -> io::Error {
        poll_fn(|cx| {
            loop {
                if let Err(error) = ready!(self.poll_turn(cx)) {
                    return Poll::Ready(error);
                }
            }
        })
        .await
    }

    /// Waits for events and raises their signals.
    fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let file = &self.0.file;
        let mut ports = [0; BATCH * size_of::<u32>()];
        let read = |file: &_| Ok(rustix::io::read(file, &mut ports)?);
        let read = ready!(file.poll_io(cx, Side::Rx, read));
        // The next turn of the reactor reports further events.
        file.clear(Side::Rx);
        Poll::Ready(match read {
            Ok(len) => self.raise(&ports[..len]),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::FBIG.raw_os_error()) => {
                self.recover()
            }
            Err(error) => Err(error),
        })
    }

    /// Unmasks ports, and raises their signals.
    fn raise(&self, ports: &[u8]) -> io::Result<()> {
        rustix::io::write(&*self.0.file, ports)?;
        let signals = self.0.signals.borrow();
        for port in ports.as_chunks().0 {
            if let Some(signal) = signals.get(&u32::from_ne_bytes(*port)) {
                signal.raise();
            }
        }
        Ok(())
    }

    /// Recovers from an overflow, in which the driver lost events: unmasks and raises all ports.
    fn recover(&self) -> io::Result<()> {
        log::warn!("{DEVICE}: events were lost; checking every ring");
        // SAFETY: the request has no argument.
        unsafe { ioctl(&*self.0.file, Reset) }?;
        for (port, signal) in &*self.0.signals.borrow() {
            rustix::io::write(&*self.0.file, &port.to_ne_bytes())?;
            signal.raise();
        }
        Ok(())
    }
}

/// The error of a channel that the kernel cannot bind.
fn refused(error: rustix::io::Errno) -> Errno {
    match error {
        // As for a device without space: there is no free port.
        rustix::io::Errno::NOSPC => Errno::ENOBUFS,
        error => errno(error),
    }
}

/// A bound event channel. Dropping it unbinds it.
pub struct BoundPort {
    inner: Rc<Inner>,
    port: u32,
    _ticket: Ticket,
}

impl BoundPort {
    /// The number of this domain's end.
    pub(crate) fn number(&self) -> u32 {
        self.port
    }
}

impl xen::Channel for BoundPort {
    fn notify(&self) {
        // SAFETY: the structure is the one that the driver reads.
        if let Err(error) = unsafe { ioctl(&*self.inner.file, Notify { port: self.port }) } {
            // The other domain was destroyed or closed its end, which xenstore shows.
            log::debug!("{DEVICE}: notifying port {} failed: {error}", self.port);
        }
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        self.inner.signals.borrow_mut().remove(&self.port);
        // SAFETY: the structure is the one that the driver reads.
        if let Err(error) = unsafe { ioctl(&*self.inner.file, Unbind { port: self.port }) } {
            log::error!("{DEVICE}: unbinding port {} failed: {error}", self.port);
        }
    }
}

/// `struct ioctl_evtchn_bind_interdomain`; the driver returns the local port.
#[repr(C)]
struct BindInterdomain {
    domain: u32,
    port: u32,
}

/// `struct ioctl_evtchn_unbind`.
#[repr(C)]
struct Unbind {
    port: u32,
}

/// `struct ioctl_evtchn_notify`.
#[repr(C)]
struct Notify {
    port: u32,
}

/// `IOCTL_EVTCHN_RESET` has no structure.
struct Reset;

request!(BindInterdomain, b'E', 1, u32, port => port.cast_unsigned());
request!(Unbind, b'E', 3, (), _done => ());
request!(Notify, b'E', 4, (), _done => ());
request!(Reset, b'E', 5, (), _done => ());

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::ioctl::Ioctl;

    #[test]
    fn a_lack_of_ports_is_not_a_mistake_of_the_guest() {
        assert_eq!(refused(rustix::io::Errno::NOSPC), Errno::ENOBUFS);
        assert_eq!(refused(rustix::io::Errno::INVAL), Errno::EINVAL);
    }

    #[test]
    fn requests_have_the_numbers_of_the_header() {
        assert_eq!(BindInterdomain { domain: 0, port: 0 }.opcode(), 0x0008_4501);
        assert_eq!(Unbind { port: 0 }.opcode(), 0x0004_4503);
        assert_eq!(Notify { port: 0 }.opcode(), 0x0004_4504);
        assert_eq!(Reset.opcode(), 0x0000_4505);
    }
}
