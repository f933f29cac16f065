//! A response's head.

use alloc::string::String;
use core::fmt::Write;

/// A status code and its reason phrase (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(u16, &'static str);

impl Status {
    pub const OK: Status = Status(200, "OK");
    pub const BAD_REQUEST: Status = Status(400, "Bad Request");
    pub const NOT_FOUND: Status = Status(404, "Not Found");
    pub const METHOD_NOT_ALLOWED: Status = Status(405, "Method Not Allowed");
    pub const REQUEST_TIMEOUT: Status = Status(408, "Request Timeout");
    pub const CONTENT_TOO_LARGE: Status = Status(413, "Content Too Large");
    pub const URI_TOO_LONG: Status = Status(414, "URI Too Long");
    pub const EXPECTATION_FAILED: Status = Status(417, "Expectation Failed");
    pub const HEADERS_TOO_LARGE: Status = Status(431, "Request Header Fields Too Large");
    pub const NOT_IMPLEMENTED: Status = Status(501, "Not Implemented");
    pub const SERVICE_UNAVAILABLE: Status = Status(503, "Service Unavailable");
    pub const VERSION_NOT_SUPPORTED: Status = Status(505, "HTTP Version Not Supported");

    pub fn code(self) -> u16 {
        self.0
    }
}

/// A response without its body.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub status: Status,
    pub content_type: &'static str,
    /// The body's length, in bytes.
    pub length: u64,
    /// The methods that the path accepts, if the request's was refused.
    pub allow: Option<&'static str>,
    /// Other header lines, each with its line end.
    pub more: &'static str,
    /// Whether the connection stays open.
    pub keep_alive: bool,
}

impl Head {
    /// The head of a plain text.
    pub fn text(status: Status, keep_alive: bool) -> Head {
        let content_type = "text/plain; charset=utf-8";
        Head { status, content_type, length: 0, allow: None, more: "", keep_alive }
    }

    /// Appends the head to `out`, including the empty line.
    pub fn write(&self, out: &mut String) {
        let Status(code, reason) = self.status;
        let connection = if self.keep_alive { "keep-alive" } else { "close" };
        let allow = self.allow.map_or(("", "", ""), |allow| ("Allow: ", allow, "\r\n"));
        // Writing to a `String` cannot fail.
        let _ = write!(
            out,
            "HTTP/1.1 {code} {reason}\r\n\
             Server: xensock\r\n\
             Content-Type: {}\r\n\
             Content-Length: {}\r\n\
             Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\
             {}{}{}{}\
             Connection: {connection}\r\n\r\n",
            self.content_type, self.length, allow.0, allow.1, allow.2, self.more
        );
    }
}
