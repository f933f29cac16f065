//! The HTTP server (RFC 9110, RFC 9112).
//!
//! It stands on `httparse`, which splits heads and chunk sizes; what lies between, framing and the
//! conversation itself, is in this folder. The complete no_std servers were looked at and cannot do
//! it: picoserve 0.20 knows no chunked request bodies, and takes a length that it cannot read for
//! none; edge-http 0.8 panics on such a length, loses pipelined requests behind a chunked body,
//! takes a chunked body that breaks off for a complete one, and knows neither `HEAD` nor `Expect`.
//!
//! | path | methods | what |
//! |---|---|---|
//! | `/` | GET, HEAD | a page for humans |
//! | `/healthz` | GET, HEAD | `ok` |
//! | `/metrics` | GET, HEAD | Prometheus' text format |
//! | `/bytes/N` | GET, HEAD | N bytes, at offset i stands i mod 251 |
//! | `/sum` | POST | the body's SHA-256 in hexadecimal, and a line feed |

mod body;
mod conversation;
mod page;
mod pattern;
mod prometheus;
mod request;
mod response;
mod route;

pub(super) use body::{Body, BodyError, Framing};
pub(super) use request::length;

use super::wire::{Deadline, Wire};
use crate::Context;
use conversation::Conversation;
use edge_nal::TcpShutdown;
use embedded_io_async::{Read, Write};

/// The buffer for what comes in, in bytes: the longest head, and what a body is read by.
const BUFFER: usize = 16 << 10;

/// The memory that one connection costs at most, in bytes, what is beneath the app left out: its
/// buffer, a page under way, and the future itself.
pub const CONNECTION_MEMORY: usize = BUFFER + 2 * page::CAPACITY + (2 << 10);

/// Serves one connection until it ends.
pub async fn converse<S>(socket: S, idle: Option<core::time::Duration>, context: &Context)
where
    S: Read + Write + TcpShutdown,
{
    let served = match Wire::new(socket, BUFFER, Deadline::new(idle), context) {
        Ok(wire) => Conversation::new(wire, context).hold().await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        context.counters.connections_failed.add(1);
        log::debug!("http: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use edge_nal::Close;

    /// A socket without a body.
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
    fn a_conversation_costs_what_it_says() {
        let context = Context::new(());
        let future = size_of_val(&converse(Nothing, None, &context));
        assert!(BUFFER + 2 * page::CAPACITY + future <= CONNECTION_MEMORY, "{future}");
    }
}
