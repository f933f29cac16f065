//! A request's head: method, path, the body's framing, and whether the connection stays open.
//!
//! Ambiguous requests are refused (RFC 9112, sections 3.2, 6 and 11.2): two lengths, a length and
//! chunks, an unknown coding, no host or two hosts.

use super::body::Framing;
use super::response::Status;

/// The most header lines a request may have.
const MAX_HEADERS: usize = 64;

/// Heads up to this length are parsed after each read, so that invalid ones are refused at once.
/// Longer ones are parsed only when complete, so that a slow sender cannot keep the parser busy.
const EAGER: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    /// Another method of RFC 9110 or RFC 5789, which no path here accepts.
    Other,
}

/// A request that can be answered, without its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// How the body ends; [`Framing::Length`] of 0 without a body.
    pub framing: Framing,
    /// Whether the client waits for `100 Continue` before sending the body.
    pub expects_continue: bool,
    /// Whether the connection may stay open after the response.
    pub keep_alive: bool,
}

/// An error response. The connection closes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: Status,
    /// One sentence for a human.
    pub reason: &'static str,
}

const fn refuse<T>(status: Status, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

/// A request's head: its length in bytes, the path without the query, and the rest.
pub type Parsed<'h> = (usize, &'h str, Request);

/// Reads a head from the beginning of `input`; `None` if it is incomplete. `full` means that no
/// more input fits into the buffer.
pub fn parse(input: &[u8], full: bool) -> Result<Option<Parsed<'_>>, Refusal> {
    if input.len() > EAGER && !has_end(input) {
        return if full { Err(too_long(input)) } else { Ok(None) };
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parser = httparse::Request::new(&mut headers);
    let length = match parser.parse(input) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if full => return Err(too_long(input)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal(error, input)),
    };
    let (Some(method), Some(target), Some(version)) = (parser.method, parser.path, parser.version)
    else {
        return refuse(Status::BAD_REQUEST, "The request line is incomplete.");
    };
    let method = self::method(method)?;
    let path = self::path(target)?;
    let fields = Fields::read(parser.headers)?;
    let version_1_1 = version >= 1;
    if version_1_1 && fields.hosts != 1 {
        return refuse(Status::BAD_REQUEST, "A request of HTTP/1.1 has exactly one Host line.");
    }
    let framing = match (fields.chunked, fields.length) {
        (true, Some(_)) => {
            return refuse(Status::BAD_REQUEST, "A body has a length or chunks, not both.");
        }
        (true, None) if !version_1_1 => {
            return refuse(Status::BAD_REQUEST, "HTTP/1.0 has no chunks.");
        }
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    let expects_continue = fields.expects_continue && version_1_1;
    let keep_alive = !fields.close && (version_1_1 || fields.keep_alive);
    Ok(Some((length, path, Request { method, framing, expects_continue, keep_alive })))
}

/// Whether `input` contains an empty line.
fn has_end(input: &[u8]) -> bool {
    let mut rest = input;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
        rest = &rest[at + 1..];
        if let [b'\n', ..] | [b'\r', b'\n', ..] = rest {
            return true;
        }
    }
    false
}

fn too_long(input: &[u8]) -> Refusal {
    match input.contains(&b'\n') {
        true => Refusal { status: Status::HEADERS_TOO_LARGE, reason: "The header is too long." },
        false => Refusal { status: Status::URI_TOO_LONG, reason: "The request line is too long." },
    }
}

fn refusal(error: httparse::Error, input: &[u8]) -> Refusal {
    let bad = |reason| Refusal { status: Status::BAD_REQUEST, reason };
    match error {
        httparse::Error::TooManyHeaders => {
            Refusal { status: Status::HEADERS_TOO_LARGE, reason: "There are too many headers." }
        }
        httparse::Error::Version if names_a_version(input) => Refusal {
            status: Status::VERSION_NOT_SUPPORTED,
            reason: "Only HTTP/1.0 and HTTP/1.1 are supported.",
        },
        httparse::Error::HeaderName | httparse::Error::HeaderValue => {
            bad("A header line is malformed.")
        }
        _ => bad("The request line is malformed."),
    }
}

/// Whether the request line ends with an HTTP version, known or not.
fn names_a_version(input: &[u8]) -> bool {
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let word = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    matches!(word.strip_prefix(b"HTTP/"), Some([digit, ..]) if digit.is_ascii_digit())
}

fn method(name: &str) -> Result<Method, Refusal> {
    match name {
        "GET" => Ok(Method::Get),
        "HEAD" => Ok(Method::Head),
        "POST" => Ok(Method::Post),
        "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE" | "PATCH" => Ok(Method::Other),
        _ => refuse(Status::NOT_IMPLEMENTED, "This method is unknown."),
    }
}

/// The path of a request target in origin form, or in the absolute form that proxies use.
fn path(target: &str) -> Result<&str, Refusal> {
    let origin = match target.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("http://") => {
            let rest = &target[7..];
            rest.find(['/', '?']).map_or("/", |at| &rest[at..])
        }
        _ => target,
    };
    let path = origin.split(['?', '#']).next().unwrap_or_default();
    match path {
        "" if origin.starts_with('?') && origin.len() < target.len() => Ok("/"),
        // `OPTIONS *` and `CONNECT host:port` name no path.
        path if path.starts_with('/') || path == "*" => Ok(path),
        _ if target.contains(':') => Ok("*"),
        _ => refuse(Status::BAD_REQUEST, "The request's path begins with a slash."),
    }
}

/// The header fields that matter here.
#[derive(Default)]
struct Fields {
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
    expects_continue: bool,
    close: bool,
    keep_alive: bool,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Fields, Refusal> {
        let mut fields = Fields::default();
        for header in headers {
            let named = |name: &str| header.name.eq_ignore_ascii_case(name);
            if named("Host") {
                fields.hosts += 1;
            } else if named("Content-Length") {
                let length = self::length(header.value)?;
                if fields.length.is_some_and(|other| other != length) {
                    return refuse(Status::BAD_REQUEST, "There are two lengths.");
                }
                fields.length = Some(length);
            } else if named("Transfer-Encoding") {
                if fields.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                    return refuse(
                        Status::NOT_IMPLEMENTED,
                        "The only supported transfer coding is chunked, once.",
                    );
                }
                fields.chunked = true;
            } else if named("Expect") {
                if !header.value.eq_ignore_ascii_case(b"100-continue") {
                    return refuse(
                        Status::EXPECTATION_FAILED,
                        "The only supported expectation is 100-continue.",
                    );
                }
                fields.expects_continue = true;
            } else if named("Connection") {
                for token in header.value.split(|byte| *byte == b',') {
                    let token = token.trim_ascii();
                    fields.close |= token.eq_ignore_ascii_case(b"close");
                    fields.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                }
            }
        }
        Ok(fields)
    }
}

/// Reads a Content-Length, which is digits only.
pub fn length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return refuse(Status::BAD_REQUEST, "A Content-Length is a whole number.");
    }
    let digits = core::str::from_utf8(value).unwrap_or_default();
    digits.parse().or(refuse(Status::CONTENT_TOO_LARGE, "No body can be that long."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    fn status(text: &str) -> u16 {
        match parse(text.as_bytes(), false) {
            Err(refusal) => refusal.status.code(),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn get(lines: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n")
    }

    #[test]
    fn a_plain_request_is_parsed() {
        let text = "GET /a?b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\nrest";
        let request = Request {
            method: Method::Get,
            framing: Framing::Length(0),
            expects_continue: false,
            keep_alive: true,
        };
        assert_eq!(parse(text.as_bytes(), false), Ok(Some((text.len() - 4, "/a", request))));
    }

    #[test]
    fn every_prefix_of_a_request_is_incomplete() {
        let text = get("Content-Length: 3\r\nExpect: 100-continue\r\n");
        for end in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..end], false), Ok(None), "{end}");
        }
        let (_, _, request) = parse(text.as_bytes(), false).unwrap().unwrap();
        assert_eq!((request.framing, request.expects_continue), (Framing::Length(3), true));
    }

    #[test]
    fn version_and_header_decide_whether_the_connection_stays_open() {
        for (version, line, stays) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: foo, CLOSE\r\n", false),
            ("1.1", "Connection: upgrade\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let text = format!("GET / HTTP/{version}\r\nHost: x\r\n{line}\r\n");
            let (_, _, request) = parse(text.as_bytes(), false).unwrap().unwrap();
            assert_eq!(request.keep_alive, stays, "{text}");
        }
    }

    #[test]
    fn ambiguous_bodies_are_refused() {
        for (lines, code) in [
            ("Content-Length: 3\r\nContent-Length: 4\r\n", 400),
            ("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Content-Length: +3\r\n", 400),
            ("Content-Length: 3, 3\r\n", 400),
            ("Content-Length: abc\r\n", 400),
            ("Content-Length:\r\n", 400),
            ("Content-Length: 18446744073709551616\r\n", 413),
            ("Transfer-Encoding: gzip, chunked\r\n", 501),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
            ("Expect: a-miracle\r\n", 417),
            ("Host: y\r\n", 400),
            ("Name : value\r\n", 400),
            ("Name: value\r\n folded\r\n", 400),
            ("Name\r\n", 400),
        ] {
            assert_eq!(status(&get(lines)), code, "{lines}");
        }
        assert_eq!(status("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400);
        let same = get("Content-Length: 3\r\nContent-Length: 3\r\n");
        assert!(parse(same.as_bytes(), false).is_ok());
    }

    #[test]
    fn an_invalid_request_line_is_refused_at_once() {
        for (text, code) in [
            ("GARBAGE\r\n", 400),
            ("\x16\x03\x01\x02", 400),
            ("GET / HTTP/2.0\r\n", 505),
            ("GET / HTTP/0.9\r\n", 505),
            ("GET / FTP/1.1\r\n", 400),
            ("GET /\r\n", 400),
            ("BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 501),
            ("get / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
            ("GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        ] {
            assert_eq!(status(text), code, "{text:?}");
        }
    }

    #[test]
    fn all_four_forms_of_a_target_are_parsed() {
        for (target, expected) in [
            ("/x?y#z", "/x"),
            ("http://host/x?y", "/x"),
            ("HTTP://host", "/"),
            ("http://host?q", "/"),
            ("*", "*"),
            ("host:80", "*"),
        ] {
            assert_eq!(path(target), Ok(expected), "{target}");
        }
        assert!(path("?x").is_err());
        assert!(path("x").is_err());
    }

    #[test]
    fn long_heads_are_parsed_and_too_long_ones_refused() {
        let long = get(&format!("Name: {}\r\n", "x".repeat(2000)));
        assert!(matches!(parse(long.as_bytes(), false), Ok(Some(_))));
        let partial = &long.as_bytes()[..long.len() - 1];
        assert_eq!(parse(partial, false), Ok(None));
        assert_eq!(parse(partial, true).unwrap_err().status.code(), 431);
        let line = format!("GET /{}", "x".repeat(2000));
        assert_eq!(parse(line.as_bytes(), true).unwrap_err().status.code(), 414);
        let many: Vec<String> = (0..65).map(|n| format!("N{n}: v\r\n")).collect();
        assert_eq!(status(&get(&many.concat())), 431);
    }

    #[test]
    fn no_single_wrong_byte_breaks_the_parser() {
        let text = get("Content-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n");
        for at in 0..text.len() {
            for byte in 0..=255 {
                let mut bytes = Vec::from(text.as_bytes());
                bytes[at] = byte;
                for full in [false, true] {
                    if let Ok(Some((length, path, _))) = parse(&bytes, full) {
                        assert!(length <= bytes.len());
                        assert!(path.starts_with('/') || path == "*");
                    }
                }
            }
        }
    }
}
