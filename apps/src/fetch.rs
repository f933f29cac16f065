//! An HTTP client for one GET, to test connections from the guest. It reports the status, and the
//! body's length and SHA-256. Redirects are reported, not followed.

use super::http::{Body, Framing, length};
use super::wire::{Deadline, Wire, WireError};
use crate::Context;
use crate::config::{Host, Url};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use edge_nal::{AddrType, Dns, TcpConnect, TcpShutdown};
use embedded_io_async::{Read, Write};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The connection's buffer, in bytes, and therefore the longest head of a response.
const BUFFER: usize = 16 << 10;

/// The most header lines a response may have.
const MAX_HEADERS: usize = 100;

/// The most interim responses (1xx) that are skipped.
const MAX_INTERIM: usize = 16;

/// The most bytes of the server's text that are shown.
const MAX_SHOWN: usize = 200;

/// Why the fetch failed.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages explain them")]
pub enum FetchError {
    #[error("cannot resolve {name}: {reason}")]
    Resolve { name: String, reason: String },
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("the connection failed: {0}")]
    Wire(#[from] WireError),
    #[cfg(feature = "tls")]
    #[error("{0}")]
    Tls(#[from] crate::SecureError),
    #[error("the server closed the connection before it had answered")]
    NoAnswer,
    #[error("the server's answer is not HTTP: {0}")]
    Head(&'static str),
    #[error("after {received} bytes of the body: {reason}")]
    Body { received: u64, reason: String },
}

/// The result of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The status code.
    pub status: u16,
    /// The server's reason phrase, made printable.
    pub reason: String,
    /// The body's length, in bytes.
    pub length: u64,
    /// The body's SHA-256.
    pub sha256: [u8; 32],
    /// The location of a redirect, made printable.
    pub location: Option<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, {} bytes, sha256 ", self.status, self.reason, self.length)?;
        for byte in self.sha256 {
            write!(f, "{byte:02x}")?;
        }
        match &self.location {
            Some(location) => write!(f, ", redirects to {location} (not followed)"),
            None => Ok(()),
        }
    }
}

/// Fetches `url`. `names` resolves host names, `idle` limits each wait for the server.
pub async fn fetch<S: TcpConnect>(
    url: &Url,
    stack: &S,
    names: &impl Dns,
    idle: Option<Duration>,
    context: &Context,
) -> Result<Report, FetchError> {
    let mut deadline = Deadline::new(idle);
    let ip = match &url.host {
        Host::Address(ip) => *ip,
        Host::Name(name) => {
            let resolved = deadline.guard(names.get_host_by_name(name, AddrType::Either)).await;
            resolved.map_err(|error| FetchError::Resolve {
                name: name.clone(),
                reason: error.to_string(),
            })?
        }
    };
    deadline.extend();
    let socket = deadline
        .guard(stack.connect(SocketAddr::new(ip, url.port)))
        .await
        .map_err(|error| FetchError::Connect(error.to_string()))?;
    let _open = context.connection();
    #[cfg(feature = "tls")]
    if url.tls {
        let stream = crate::secure::connect(socket, url, idle, context).await?;
        return exchange(stream, url, idle, context).await;
    }
    exchange(socket, url, idle, context).await
}

/// Sends the request, and reads the response.
async fn exchange<S: Read + Write + TcpShutdown>(
    socket: S,
    url: &Url,
    idle: Option<Duration>,
    context: &Context,
) -> Result<Report, FetchError> {
    let mut wire = Wire::new(socket, BUFFER, Deadline::new(idle), context)?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: xensock\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        url.target,
        url.authority()
    );
    wire.write_all(request.as_bytes()).await?;
    context.counters.requests.add(1);
    let head = head(&mut wire).await?;
    let (mut length, mut sum) = (0, Sha256::new());
    let take = |piece: &[u8]| {
        sum.update(piece);
        length += piece.len() as u64;
    };
    if let Err(error) = Body::new(head.framing).read_all(&mut wire, take).await {
        return Err(FetchError::Body { received: length, reason: error.to_string() });
    }
    let sha256 = sum.finalize().into();
    // The report is complete, so an error at the close does not matter.
    let _ = wire.close().await;
    let Head { status, reason, location, .. } = head;
    Ok(Report { status, reason, length, sha256, location })
}

/// The parts of a response's head that matter here.
struct Head {
    status: u16,
    reason: String,
    framing: Framing,
    location: Option<String>,
}

/// Reads heads, up to the final one.
async fn head<S>(wire: &mut Wire<'_, S>) -> Result<Head, FetchError>
where
    S: Read + Write + TcpShutdown,
{
    let mut interim = 0;
    loop {
        match parse(wire.buffered())? {
            Some((length, head)) => {
                wire.consume(length);
                if head.status >= 200 {
                    return Ok(head);
                }
                interim += 1;
                if head.status == 101 || interim > MAX_INTERIM {
                    return Err(FetchError::Head("it has no final status"));
                }
            }
            None if wire.is_full() => return Err(FetchError::Head("its header is too long")),
            None => {
                wire.deadline.extend();
                if wire.fill().await? == 0 {
                    return Err(FetchError::NoAnswer);
                }
            }
        }
    }
}

/// Reads a head and its length from the beginning of `input`; `None` if it is incomplete.
fn parse(input: &[u8]) -> Result<Option<(usize, Head)>, FetchError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parser = httparse::Response::new(&mut headers);
    let taken = match parser.parse(input) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(FetchError::Head("it has too many header lines"));
        }
        Err(_) => return Err(FetchError::Head("its status line or a header line is malformed")),
    };
    let status = parser.code.unwrap_or_default();
    let (mut content_length, mut chunked, mut location) = (None, false, None);
    for header in parser.headers.iter() {
        if header.name.eq_ignore_ascii_case("Content-Length") {
            let length =
                length(header.value).map_err(|refusal| FetchError::Head(refusal.reason))?;
            if content_length.is_some_and(|other| other != length) {
                return Err(FetchError::Head("it gives two lengths"));
            }
            content_length = Some(length);
        } else if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            if chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                return Err(FetchError::Head("it uses a transfer coding other than chunked"));
            }
            chunked = true;
        } else if header.name.eq_ignore_ascii_case("Location") && (300..400).contains(&status) {
            location = Some(shown(header.value));
        }
    }
    let framing = match (status, chunked, content_length) {
        (..200 | 204 | 304, ..) => Framing::Length(0),
        (_, true, None) => Framing::Chunked,
        (_, true, Some(_)) => return Err(FetchError::Head("it has a length and chunks")),
        (_, false, Some(length)) => Framing::Length(length),
        (_, false, None) => Framing::UntilClose,
    };
    let reason = shown(parser.reason.unwrap_or_default().as_bytes());
    Ok(Some((taken, Head { status, reason, framing, location })))
}

/// The server's text, escaped so that it cannot control the console.
fn shown(text: &[u8]) -> String {
    text[..text.len().min(MAX_SHOWN)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(text: &str) -> Result<Framing, FetchError> {
        parse(text.as_bytes()).map(|head| head.unwrap().1.framing)
    }

    #[test]
    fn the_head_determines_where_the_body_ends() {
        for (head, expected) in [
            ("200 OK\r\nContent-Length: 5\r\n", Framing::Length(5)),
            ("200 OK\r\nTransfer-Encoding: Chunked\r\n", Framing::Chunked),
            ("200 OK\r\n", Framing::UntilClose),
            ("204 No Content\r\n", Framing::Length(0)),
            ("304 Not Modified\r\nContent-Length: 5\r\n", Framing::Length(0)),
        ] {
            assert_eq!(framing(&format!("HTTP/1.1 {head}\r\n")).unwrap(), expected, "{head}");
        }
        for head in [
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: five",
            "Transfer-Encoding: gzip",
        ] {
            assert!(framing(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n")).is_err(), "{head}");
        }
    }

    #[test]
    fn text_from_a_server_cannot_control_the_console() {
        let text = b"HTTP/1.1 302 \xe9\r\nLocation: \x80\x9b31m\r\n\r\n";
        let (_, head) = parse(text).unwrap().unwrap();
        assert!(head.reason.is_ascii());
        assert_eq!(head.location.unwrap(), "\\x80\\x9b31m");
        assert_eq!(shown(&[b'x'; 1000]).len(), MAX_SHOWN);
    }
}
