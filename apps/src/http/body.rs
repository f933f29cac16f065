//! Decodes message bodies: by length, in chunks, or up to the end of the stream (RFC 9112,
//! section 6).
//!
//! The decoder works in the connection's buffer and copies nothing. It is as strict as the RFC
//! allows: no sign or space before a chunk's size, no lone CR or LF after its data, and a stream
//! that ends early is an error, not the end of the body.

use super::super::wire::{Wire, WireError};
use edge_nal::TcpShutdown;
use embedded_io_async::{Read, Write};
use thiserror::Error;

/// The longest line with a chunk's size, including extensions, and the longest trailer section.
const MAX_OVERHEAD: usize = 4096;

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// At the connection's end; for responses only.
    UntilClose,
}

/// Why a body cannot be read.
#[derive(Debug, Error)]
pub enum BodyError {
    /// The connection failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The stream ended inside the body.
    #[error("the connection ended in the middle of the body")]
    Ended,
    /// The chunks are invalid.
    #[error("{0}")]
    Malformed(&'static str),
}

/// The reader's position in the body.
#[derive(Clone, Copy, Debug)]
enum State {
    /// This many bytes are left of the body.
    Length(u64),
    /// Before a chunk's size.
    Size,
    /// This many bytes are left of a chunk.
    Chunk(u64),
    /// Before the line end after a chunk.
    ChunkEnd,
    /// In the trailer section, which may have this many more bytes.
    Trailers(usize),
    UntilClose,
    Done,
}

/// A body that is being read.
#[derive(Debug)]
pub struct Body {
    state: State,
}

impl Body {
    /// A body, before its first byte.
    pub fn new(framing: Framing) -> Body {
        let state = match framing {
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::UntilClose => State::UntilClose,
        };
        Body { state }
    }

    /// Returns `n`, when the first `n` bytes of the wire's buffer are the body's next ones; 0 at
    /// the body's end. The caller consumes all `n` before the next call.
    pub async fn next<S>(&mut self, wire: &mut Wire<'_, S>) -> Result<usize, BodyError>
    where
        S: Read + Write + TcpShutdown,
    {
        loop {
            if let State::Done | State::Length(0) = self.state {
                return Ok(0);
            }
            let data = match self.state {
                State::Length(left) | State::Chunk(left) => {
                    let held = wire.buffered().len();
                    held.min(usize::try_from(left).unwrap_or(usize::MAX))
                }
                State::UntilClose => wire.buffered().len(),
                _ => 0,
            };
            if data > 0 {
                self.state = match self.state {
                    State::Length(left) => State::Length(left - data as u64),
                    State::Chunk(left) if left > data as u64 => State::Chunk(left - data as u64),
                    State::Chunk(_) => State::ChunkEnd,
                    other => other,
                };
                return Ok(data);
            }
            let (consumed, state) = step(self.state, wire.buffered())?;
            if consumed > 0 {
                wire.consume(consumed);
                self.state = state;
                continue;
            }
            wire.deadline.extend();
            if wire.fill().await? == 0 {
                return match self.state {
                    State::UntilClose => {
                        self.state = State::Done;
                        Ok(0)
                    }
                    _ => Err(BodyError::Ended),
                };
            }
        }
    }

    /// Reads the body to its end, and passes it to `take` piece by piece.
    pub async fn read_all<S>(
        mut self,
        wire: &mut Wire<'_, S>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), BodyError>
    where
        S: Read + Write + TcpShutdown,
    {
        loop {
            let read = self.next(wire).await?;
            if read == 0 {
                return Ok(());
            }
            take(&wire.buffered()[..read]);
            wire.consume(read);
        }
    }
}

/// Parses the framing between data. Returns its length in `input` and the next state; length 0 if
/// more input is needed.
fn step(state: State, input: &[u8]) -> Result<(usize, State), BodyError> {
    let more = Ok((0, state));
    match state {
        State::Size => match (input.first(), httparse::parse_chunk_size(input)) {
            (None, _) => more,
            // The parser would take a missing size for 0.
            (Some(first), _) if !first.is_ascii_hexdigit() => Err(SIZE),
            (_, Ok(httparse::Status::Complete((taken, _)))) if taken > MAX_OVERHEAD => Err(SIZE),
            // The parser steps over bare line feeds in an extension; an intermediary may not.
            (_, Ok(httparse::Status::Complete((taken, _))))
                if input[..taken - 2].iter().any(|byte| *byte < b' ' && *byte != b'\t') =>
            {
                Err(SIZE)
            }
            (_, Ok(httparse::Status::Complete((taken, 0)))) => {
                Ok((taken, State::Trailers(MAX_OVERHEAD)))
            }
            (_, Ok(httparse::Status::Complete((taken, size)))) => Ok((taken, State::Chunk(size))),
            (_, Ok(httparse::Status::Partial)) if input.len() <= MAX_OVERHEAD => more,
            _ => Err(SIZE),
        },
        State::ChunkEnd => match input {
            [b'\r', b'\n', ..] => Ok((2, State::Size)),
            [] | [b'\r'] => more,
            _ => Err(BodyError::Malformed("A chunk is longer than its size.")),
        },
        State::Trailers(left) => match input.iter().position(|byte| *byte == b'\n') {
            Some(at) if at < left => {
                let line = &input[..at];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                let state =
                    if line.is_empty() { State::Done } else { State::Trailers(left - at - 1) };
                Ok((at + 1, state))
            }
            None if input.len() < left => more,
            _ => Err(BodyError::Malformed("The trailer section is too long.")),
        },
        State::Length(_) | State::Chunk(_) | State::UntilClose | State::Done => more,
    }
}

const SIZE: BodyError = BodyError::Malformed("A chunk's size is not a hexadecimal number.");

#[cfg(test)]
mod tests {
    use super::*;

    fn size(input: &[u8]) -> Option<(usize, u64)> {
        match step(State::Size, input) {
            Ok((taken, State::Chunk(size))) => Some((taken, size)),
            Ok((taken, State::Trailers(_))) => Some((taken, 0)),
            Ok((0, State::Size)) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_chunk_size_is_hexadecimal_and_may_have_extensions() {
        assert_eq!(size(b"1a\r\nx"), Some((4, 26)));
        assert_eq!(size(b"FF;name=value\r\n"), Some((15, 255)));
        assert_eq!(size(b"000\r\n"), Some((5, 0)));
        assert_eq!(size(b"ffffffffffffffff\r\n"), Some((18, u64::MAX)));
        assert_eq!(size(b""), None);
        assert_eq!(size(b"1"), None);
        assert_eq!(size(b"1\r"), None);
    }

    #[test]
    fn invalid_chunk_sizes_are_refused() {
        let long = [b'0'; MAX_OVERHEAD + 1];
        let extension = [b"1;".as_slice(), &[b'x'; MAX_OVERHEAD]].concat();
        for input in [
            b"\r\n".as_slice(),
            b" 1\r\n",
            b"+1\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b"g\r\n",
            b"1\n",
            b"1;\nx\r\n",
            b"10000000000000000\r\n",
            &long,
            &extension,
        ] {
            assert!(step(State::Size, input).is_err(), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn only_cr_and_lf_end_a_chunk() {
        assert!(matches!(step(State::ChunkEnd, b"\r\n5"), Ok((2, State::Size))));
        assert!(matches!(step(State::ChunkEnd, b"\r"), Ok((0, _))));
        assert!(step(State::ChunkEnd, b"\n").is_err());
        assert!(step(State::ChunkEnd, b"\rx").is_err());
    }

    #[test]
    fn trailers_end_with_an_empty_line_and_are_bounded() {
        let state = State::Trailers(20);
        assert!(matches!(step(state, b"\r\n"), Ok((2, State::Done))));
        assert!(matches!(step(state, b"a: b\r\n\r\n"), Ok((6, State::Trailers(14)))));
        assert!(matches!(step(state, b"a: b"), Ok((0, _))));
        assert!(step(state, &[b'a'; 20]).is_err());
        assert!(step(State::Trailers(1), b"a\n").is_err());
    }
}
