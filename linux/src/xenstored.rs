//! The connection to xenstored: its socket if it runs in this domain, else the kernel's device.
//!
//! The socket is preferred: its stream ends when xenstored ends, while the kernel would wait.

use crate::errno;
use crate::runtime::{EventFlags, Reactor, Watched};
use crate::xenbus::{XenBusReader, XenBusWriter};
use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use xen::{Errno, Side};

/// The socket of xenstored, unless `XENSTORED_PATH` names another, as for Xen's own tools.
const SOCKET: &str = "/run/xenstored/socket";

/// The receiving half.
pub enum Reader {
    /// Through its socket.
    Socket(Rc<Watched>),
    /// Through the kernel.
    Device(XenBusReader),
}

/// The sending half.
pub enum Writer {
    /// Through its socket.
    Socket(Rc<Watched>),
    /// Through the kernel.
    Device(XenBusWriter),
}

/// Connects. An error is a line for the user.
pub fn connect(reactor: &Reactor) -> Result<(Reader, Writer), String> {
    let path = std::env::var_os("XENSTORED_PATH").map_or(SOCKET.into(), PathBuf::from);
    match open(reactor, &path) {
        Ok(socket) => {
            let socket = Rc::new(socket);
            Ok((Reader::Socket(socket.clone()), Writer::Socket(socket)))
        }
        Err(error) => {
            log::debug!("{}: {error}; trying the kernel's device", path.display());
            let (reader, writer) = crate::xenbus::open(reactor)?;
            Ok((Reader::Device(reader), Writer::Device(writer)))
        }
    }
}

fn open(reactor: &Reactor, path: &Path) -> io::Result<Watched> {
    let socket = UnixStream::connect(path)?;
    socket.set_nonblocking(true)?;
    reactor.watch(Rc::new(socket.into()), EventFlags::IN | EventFlags::OUT | EventFlags::ET)
}

impl embedded_io::ErrorType for Reader {
    type Error = Errno;
}

impl embedded_io::ErrorType for Writer {
    type Error = Errno;
}

impl embedded_io_async::Read for Reader {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Reader::Socket(socket) => {
                let mut read = |file: &_| Ok(rustix::io::read(file, &mut *bytes)?);
                poll_fn(|cx| socket.poll_io(cx, Side::Rx, &mut read)).await.map_err(errno)
            }
            Reader::Device(device) => device.read(bytes).await.map_err(errno),
        }
    }
}

impl embedded_io_async::Write for Writer {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Writer::Socket(socket) => {
                let write = |file: &_| Ok(rustix::io::write(file, bytes)?);
                poll_fn(|cx| socket.poll_io(cx, Side::Tx, write)).await.map_err(errno)
            }
            Writer::Device(device) => device.write(bytes).await.map_err(errno),
        }
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}
