//! The way to xenstored: its own socket where it runs in this domain, else the kernel's device.
//!
//! The socket is better: when xenstored ends, so does the stream, where the kernel would wait.

use crate::xenbus::{XenBusReader, XenBusWriter};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::net::UnixStream;
use xen::Errno;

/// Where xenstored listens, unless `XENSTORED_PATH` says otherwise, as for Xen's own tools.
const SOCKET: &str = "/run/xenstored/socket";

/// What comes from xenstored.
pub enum Reader {
    /// Through its socket.
    Socket(Rc<UnixStream>),
    /// Through the kernel.
    Device(XenBusReader),
}

/// What goes to xenstored.
pub enum Writer {
    /// Through its socket.
    Socket(Rc<UnixStream>),
    /// Through the kernel.
    Device(XenBusWriter),
}

/// Connects, inside a tokio runtime. An error is a line for the user.
pub async fn connect() -> Result<(Reader, Writer), String> {
    let path = std::env::var_os("XENSTORED_PATH").map_or(SOCKET.into(), PathBuf::from);
    match UnixStream::connect(&path).await {
        Ok(socket) => {
            let socket = Rc::new(socket);
            Ok((Reader::Socket(socket.clone()), Writer::Socket(socket)))
        }
        Err(error) => {
            log::debug!("{}: {error}; trying the kernel's way", path.display());
            let (reader, writer) = crate::xenbus::open()?;
            Ok((Reader::Device(reader), Writer::Device(writer)))
        }
    }
}

fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno)
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
                socket.async_io(Interest::READABLE, || socket.try_read(bytes)).await.map_err(errno)
            }
            Reader::Device(device) => device.read(bytes).await.map_err(errno),
        }
    }
}

impl embedded_io_async::Write for Writer {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Writer::Socket(socket) => {
                socket.async_io(Interest::WRITABLE, || socket.try_write(bytes)).await.map_err(errno)
            }
            Writer::Device(device) => device.write(bytes).map_err(errno),
        }
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}
