//! The connection to xenstored: its socket if it runs in this domain, else the kernel's device.
//!
//! The socket is preferred: its stream ends when xenstored ends, while the kernel would wait.

use crate::linux::errno;
use crate::xenbus::{XenBusReader, XenBusWriter};
use std::path::PathBuf;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::net::UnixStream;
use xen::Errno;

/// The socket of xenstored, unless `XENSTORED_PATH` names another, as for Xen's own tools.
const SOCKET: &str = "/run/xenstored/socket";

/// The receiving half.
pub enum Reader {
    /// Through its socket.
    Socket(Rc<UnixStream>),
    /// Through the kernel.
    Device(XenBusReader),
}

/// The sending half.
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
            log::debug!("{}: {error}; trying the kernel's device", path.display());
            let (reader, writer) = crate::xenbus::open()?;
            Ok((Reader::Device(reader), Writer::Device(writer)))
        }
    }
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
