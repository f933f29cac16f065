//! The way to xenstored through the kernel: `/dev/xen/xenbus`, a stream of xenstore messages.

use crate::dom0::explain;
use crate::reactor::{Watched, watch};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::rc::Rc;
use tokio::io::Interest;
use xen::Errno;

/// The device file, and where it is on a kernel that has only xenfs.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// One half of the open device; the other is its clone.
#[derive(Clone)]
pub struct XenBus(Rc<Watched>);

impl XenBus {
    /// Opens the device, inside a tokio runtime. An error is a line for the user.
    pub fn open() -> Result<Self, String> {
        let open = |path| {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let file = rustix::fs::open(path, flags, Mode::empty())?;
            // It says when it can be read; it can always be written.
            watch(Rc::new(file), Interest::READABLE)
        };
        open(DEVICES[0])
            .or_else(|first| open(DEVICES[1]).map_err(|_| first))
            .map(|file| XenBus(Rc::new(file)))
            .map_err(|error| explain(DEVICES[0], "xenfs", &error))
    }
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
}

impl embedded_io::ErrorType for XenBus {
    type Error = Errno;
}

impl embedded_io_async::Read for XenBus {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Errno> {
        self.0
            .async_io(Interest::READABLE, |file| Ok(rustix::io::read(file, &mut *bytes)?))
            .await
            .map_err(errno)
    }
}

impl embedded_io_async::Write for XenBus {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::write(&*self.0, bytes))
            .map_err(|error| Errno(error.raw_os_error()))
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}
