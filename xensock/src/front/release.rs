//! The end of a stream: what was written still goes out, then the backend lets go of the ring.

use super::device::Device;
use super::socket::Socket;
use crate::ring::len;
use crate::wire::{Call, SocketOption};
use alloc::rc::Rc;
use core::future::{Future, poll_fn};
use core::task::Poll;
use embassy_time::with_timeout;
use xen::Errno;
use xen::{Machine, Side};

/// What happens to data that the backend has not taken yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    /// It goes out first.
    Drains,
    /// It is lost.
    IsLost,
}

/// A release that counts as going on.
struct Counted<M: Machine + 'static>(Rc<Device<M>>);

impl<M: Machine> Drop for Counted<M> {
    fn drop(&mut self) {
        self.0.released();
    }
}

/// Releases a socket: a job.
///
/// Some backends lose what is in `out` at the RELEASE, so that must be empty first.
pub(super) fn release<M: Machine>(
    socket: Rc<Socket<M>>,
    unsent: Unsent,
) -> impl Future<Output = ()> {
    socket.device.releasing();
    let counted = Counted(socket.device.clone());
    async move {
        let _counted = counted;
        match unsent {
            Unsent::Drains => drain(&socket).await,
            // Where the backend knows this option it sends nothing more, and the remote learns that
            // something was lost.
            Unsent::IsLost => {
                let _ = socket.set_option(SocketOption::Linger, 0).await;
            }
        }
        if !socket.is_open() {
            return;
        }
        let berth = socket.berth();
        let answer = socket.call(Call::Release { reuse: berth.is_some() }).await;
        match (answer, berth) {
            (Ok(_), Some(berth)) => socket.end_and_park(berth),
            (Ok(_), None) => socket.end(Errno::ENOTCONN),
            (Err(error), _) => {
                log::warn!("releasing socket {} failed: {error}", socket.name);
                // Without an answer the backend may still have the ring: quarantine sees to that.
                socket.end(Errno::ENOTCONN);
            }
        }
    }
}

/// Waits until `out` is empty, or for as long as the backend takes something.
async fn drain<M: Machine>(socket: &Socket<M>) {
    let mut unsent = socket.unsent();
    while unsent > 0 {
        let less = poll_fn(|cx| {
            socket.signal.register(Side::Tx, cx.waker());
            socket.arm_for_drain();
            // A remote that reads only once it has written everything must not be stuck: what comes
            // now is thrown away.
            let _ = socket.poll_take(cx, |data| (len(&data), ()));
            // Less than ever before: a backend that takes its index back makes no progress.
            if socket.unsent() >= unsent { Poll::Pending } else { Poll::Ready(()) }
        });
        let timed_out = with_timeout(socket.device.config.linger, less).await.is_err();
        // Not everything that the backend takes comes with an event.
        let now = socket.unsent();
        if timed_out && now >= unsent {
            log::warn!("socket {}: {unsent} bytes could not be sent", socket.name);
            return;
        }
        unsent = unsent.min(now);
    }
}
