//! TLS under the apps: roots, certificates and keys are the first file of the guest.

use crate::Context;
use crate::config::{Host, Url};
use crate::wire::{Deadline, WireError};
use alloc::string::ToString;
use embassy_time::Duration;
use embedded_io_async::{Read, Write};
use thiserror::Error;
use tls::{BUFFER, BundleError, Client, Server, ServerName, Stream};

/// The time limit of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The most memory that TLS takes for a connection, in bytes: a record in each direction, the text
/// of one, and rustls' state.
pub const CONNECTION_MEMORY: usize = 3 * BUFFER + (8 << 10);

/// The longest messages of a server's handshake: its certificates.
const CLIENT_BUFFER: usize = 64 << 10;

/// Why there is no TLS.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages explain them")]
pub enum SecureError {
    #[error(
        "no file has {0}: put it beside the kernel, with ramdisk= in the domain's configuration"
    )]
    NoFile(&'static str),
    #[error("the file of ramdisk=: {0}")]
    File(#[from] BundleError),
    #[error("the host's name is none that a certificate can have")]
    Name,
    #[error("{0}")]
    Connection(#[from] WireError),
}

/// The settings of a server.
pub fn server(context: &Context) -> Result<Server, SecureError> {
    let file = context.file().ok_or(SecureError::NoFile("the server's certificate and key"))?;
    Ok(Server::new(file)?)
}

/// Shakes hands with a client.
pub async fn accept<S: Read + Write>(
    socket: S,
    server: &Server,
    idle: Option<core::time::Duration>,
    context: &Context,
) -> Result<Stream<S>, WireError> {
    if !context.has_room(CONNECTION_MEMORY) {
        return Err(WireError::NoMemory);
    }
    let buffer = context.buffer(BUFFER).ok_or(WireError::NoMemory)?;
    shake(Stream::server(socket, server, buffer).map_err(WireError::io)?, idle).await
}

/// Shakes hands with the server of a URL.
pub async fn connect<S: Read + Write>(
    socket: S,
    url: &Url,
    idle: Option<core::time::Duration>,
    context: &Context,
) -> Result<Stream<S>, SecureError> {
    let file = context.file().ok_or(SecureError::NoFile("the roots that the guest trusts"))?;
    let client = Client::new(file, context.clock())?;
    let name = match &url.host {
        Host::Address(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    };
    let name = ServerName::try_from(name).map_err(|_| SecureError::Name)?;
    let buffer = context.buffer(CLIENT_BUFFER).ok_or(WireError::NoMemory)?;
    let stream = Stream::client(socket, &client, name, buffer).map_err(WireError::io)?;
    Ok(shake(stream, idle).await?)
}

async fn shake<S: Read + Write>(
    mut stream: Stream<S>,
    idle: Option<core::time::Duration>,
) -> Result<Stream<S>, WireError> {
    let mut deadline = Deadline::new(idle);
    deadline.shorten(HANDSHAKE);
    deadline.guard(stream.handshake()).await?;
    Ok(stream)
}
