//! The echo server (RFC 862): sends back what it receives, until the peer's end of stream.
//!
//! A connection has one buffer of 16 KiB: it is filled, written completely, and filled again. A
//! peer that sends without reading is stopped by the sockets' buffers and by the idle timeout.
//! Datagrams have a server of their own ([`datagrams`](crate::datagrams)).

use super::wire::{Deadline, Wire, WireError};
use crate::Context;
use core::time::Duration;
use edge_nal::TcpShutdown;
use embedded_io_async::{Read, Write};

/// The buffer of one connection, in bytes.
const BUFFER: usize = 16 << 10;

/// The most memory that one connection takes, in bytes, without its socket.
pub const CONNECTION_MEMORY: usize = BUFFER + (2 << 10);

/// Serves one connection.
pub async fn echo<S>(socket: S, idle: Option<Duration>, context: &Context) -> Result<(), WireError>
where
    S: Read + Write + TcpShutdown,
{
    let mut wire = Wire::new(socket, BUFFER, Deadline::new(idle), context)?;
    while wire.fill().await? > 0 {
        wire.echo().await?;
        wire.deadline.extend();
    }
    wire.close().await
}
