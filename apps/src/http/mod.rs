//! The HTTP server (RFC 9110, RFC 9112).
//!
//! `httparse` parses heads and chunk sizes; this folder has the rest. The existing no_std servers
//! do not suffice: picoserve 0.20 lacks chunked request bodies and ignores an invalid length;
//! edge-http 0.8 panics on an invalid length, loses pipelined requests after a chunked body,
//! accepts a chunked body that ends early, and lacks `HEAD` and `Expect`.
//!
//! | path | methods | response |
//! |---|---|---|
//! | `/` | GET, HEAD | a page for humans, with a demonstration |
//! | `/healthz` | GET, HEAD | `ok` |
//! | `/metrics` | GET, HEAD | Prometheus' text format |
//! | `/bytes/N` | GET, HEAD | N bytes; the byte at offset i is i mod 251 |
//! | `/sum` | POST | the body's SHA-256 in hexadecimal, and a line feed |
//! | `/sink` | POST | the body's length in bytes, and a line feed |

mod body;
mod conversation;
mod page;
pub(crate) mod pattern;
mod prometheus;
mod request;
mod response;
mod route;

pub(super) use body::{Body, Framing};
pub(super) use request::length;

use super::wire::{Deadline, Wire, WireError};
use crate::Context;
use conversation::Conversation;
use core::time::Duration;
use edge_nal::TcpShutdown;
use embedded_io_async::{Read, Write};

/// The read buffer, in bytes, and therefore the longest head.
const BUFFER: usize = 16 << 10;

/// The most memory that one connection takes, in bytes, without its socket: its buffer, a page's
/// numbers, and the future.
pub const CONNECTION_MEMORY: usize = BUFFER + page::CAPACITY + (2 << 10);

/// Serves one connection until it ends.
pub async fn converse<S>(
    socket: S,
    idle: Option<Duration>,
    context: &Context,
) -> Result<(), WireError>
where
    S: Read + Write + TcpShutdown,
{
    let wire = Wire::new(socket, BUFFER, Deadline::new(idle), context)?;
    Conversation::new(wire, context).serve().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use edge_nal::Close;

    /// A socket without data.
    struct Nothing;

    impl embedded_io_async::ErrorType for Nothing {
        type Error = Infallible;
    }

    impl Read for Nothing {
        async fn read(&mut self, _: &mut [u8]) -> Result<usize, Infallible> {
            Ok(0)
        }
    }

    impl Write for Nothing {
        async fn write(&mut self, data: &[u8]) -> Result<usize, Infallible> {
            Ok(data.len())
        }

        async fn flush(&mut self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    impl TcpShutdown for Nothing {
        async fn close(&mut self, _: Close) -> Result<(), Infallible> {
            Ok(())
        }

        async fn abort(&mut self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    #[test]
    fn a_conversation_fits_into_its_memory() {
        let context = Context::new(());
        let future = size_of_val(&converse(Nothing, None, &context));
        assert!(BUFFER + page::CAPACITY + future <= CONNECTION_MEMORY, "{future}");
    }
}
