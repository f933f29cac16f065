//! A connection: requests and their responses, one after the other.

use super::super::wire::{Wire, WireError};
use super::body::{Body, BodyError, Framing};
use super::request::{self, Method, Refusal, Request};
use super::response::{Head, Status};
use super::route::Route;
use super::{page, prometheus};
use crate::Context;
use alloc::string::String;
use core::fmt::Write as _;
use edge_nal::TcpShutdown;
use embassy_time::Duration;
use embedded_io_async::{Read, Write};
use sha2::{Digest, Sha256};

/// The capacity of the buffer for heads and short bodies between two requests.
const OUT: usize = 1 << 10;

/// The time limit of a head, from its first byte on.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// The most bytes of an unwanted body that are read and dropped.
const DRAIN_LIMIT: usize = 64 << 10;

/// Why a connection ends.
enum End {
    /// The client sent no further request.
    Quiet,
    /// The connection closes after this response.
    Refused(Refusal),
    /// The connection failed.
    Broken(WireError),
}

impl From<WireError> for End {
    fn from(error: WireError) -> End {
        End::Broken(error)
    }
}

impl From<BodyError> for End {
    fn from(error: BodyError) -> End {
        match error {
            BodyError::Wire(WireError::TimedOut) => SLOW,
            BodyError::Wire(error) => End::Broken(error),
            BodyError::Ended => End::Broken(WireError::io(error)),
            BodyError::Malformed(reason) => {
                End::Refused(Refusal { status: Status::BAD_REQUEST, reason })
            }
        }
    }
}

const SLOW: End = End::Refused(Refusal {
    status: Status::REQUEST_TIMEOUT,
    reason: "The request took too long to arrive.",
});

const TOO_LARGE: Refusal = Refusal {
    status: Status::CONTENT_TOO_LARGE,
    reason: "Only POST to /sum or /sink accepts a body this long.",
};

const NO_MEMORY: Refusal = Refusal {
    status: Status::SERVICE_UNAVAILABLE,
    reason: "There is not enough memory for this page now.",
};

/// An empty text for a page, if there is room for it.
fn page_text(context: &Context) -> Result<String, End> {
    let mut text = String::new();
    let has_room = context.has_room(page::CAPACITY);
    let fits = has_room && text.try_reserve_exact(page::CAPACITY).is_ok();
    if fits { Ok(text) } else { Err(End::Refused(NO_MEMORY)) }
}

/// One connection.
pub struct Conversation<'c, S> {
    wire: Wire<'c, S>,
    /// Heads and short bodies to be sent.
    out: String,
    context: &'c Context,
}

impl<'c, S> Conversation<'c, S>
where
    S: Read + Write + TcpShutdown,
{
    /// A connection before its first request.
    pub fn new(wire: Wire<'c, S>, context: &'c Context) -> Self {
        Conversation { wire, out: String::with_capacity(OUT), context }
    }

    /// Serves the connection until it ends.
    pub async fn serve(mut self) -> Result<(), WireError> {
        match self.run().await {
            Ok(()) | Err(End::Quiet) => self.wire.close().await,
            Err(End::Refused(refusal)) => self.refuse(refusal).await,
            Err(End::Broken(error)) => Err(error),
        }
    }

    async fn run(&mut self) -> Result<(), End> {
        loop {
            let (route, request) = self.next().await?;
            self.context.counters.requests.add(1);
            if !self.answer(route, request).await? {
                return Ok(());
            }
        }
    }

    /// Waits for a request.
    async fn next(&mut self) -> Result<(Route, Request), End> {
        self.wire.deadline.extend();
        let mut begun = false;
        loop {
            let is_blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            self.wire.consume(self.wire.buffered().iter().take_while(is_blank).count());
            if !begun && !self.wire.buffered().is_empty() {
                begun = true;
                self.wire.deadline.shorten(HEAD_LIMIT);
            }
            match request::parse(self.wire.buffered(), self.wire.is_full()) {
                Ok(Some((length, path, request))) => {
                    let route = Route::of(path);
                    self.wire.consume(length);
                    return Ok((route, request));
                }
                Ok(None) => {}
                Err(refusal) => return Err(End::Refused(refusal)),
            }
            match self.wire.fill().await {
                Ok(0) if !begun => return Err(End::Quiet),
                Ok(0) => return Err(WireError::io("the peer left in the middle of a head").into()),
                Ok(_) => {}
                Err(WireError::TimedOut) if !begun => return Err(End::Quiet),
                Err(WireError::TimedOut) => return Err(SLOW),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a response. Returns whether the connection stays open.
    async fn answer(&mut self, route: Route, request: Request) -> Result<bool, End> {
        let Request { method, framing, expects_continue, keep_alive } = request;
        if matches!(route, Route::Sum | Route::Sink) && method == Method::Post {
            return self.receive(route, request).await;
        }
        // A client that waits for `100 Continue` may or may not send the body after another
        // response, so the bytes that follow are ambiguous.
        let drained = !expects_continue && self.drain(framing).await?;
        let keep_alive = keep_alive && drained;
        if !drained {
            self.wire.leave_unread();
        }
        let takes = route.takes(method);
        if takes && !drained && !expects_continue {
            return Err(End::Refused(TOO_LARGE));
        }
        let head = Head::text(Status::OK, keep_alive);
        self.out.clear();
        match route {
            Route::Unknown => {
                let head = Head { status: Status::NOT_FOUND, ..head };
                self.short(head, method, "There is nothing here; see /.\n");
            }
            _ if !takes => {
                let allow = route.allow();
                let head = Head { status: Status::METHOD_NOT_ALLOWED, allow, ..head };
                self.short(head, method, "This path does not accept this method.\n");
            }
            Route::BadBytes => {
                let head = Head { status: Status::BAD_REQUEST, ..head };
                let text = "Write /bytes/N with a whole number N from 0 to 1099511627776.\n";
                self.short(head, method, text);
            }
            Route::Bytes(count) => {
                let content_type = "application/octet-stream";
                Head { content_type, length: count, ..head }.write(&mut self.out);
                self.send().await?;
                if method != Method::Head {
                    self.bytes(count).await?;
                }
                return Ok(keep_alive);
            }
            Route::Health => self.short(head, method, "ok\n"),
            Route::Metrics => {
                let mut text = page_text(self.context)?;
                prometheus::write(&mut text, self.context);
                let head = Head { content_type: prometheus::CONTENT_TYPE, ..head };
                self.long(head, method, &[&text]).await?;
                return Ok(keep_alive);
            }
            Route::Index | Route::Sum | Route::Sink => {
                let mut numbers = page_text(self.context)?;
                page::cards(&mut numbers, self.context);
                let (before, after) = page::frame();
                let content_type = page::CONTENT_TYPE;
                let head = Head { content_type, more: page::POLICY, ..head };
                self.long(head, method, &[before, &numbers, after]).await?;
                return Ok(keep_alive);
            }
        }
        self.send().await?;
        Ok(keep_alive)
    }

    /// Reads and drops a body. Returns false if it is too long.
    async fn drain(&mut self, framing: Framing) -> Result<bool, End> {
        if matches!(framing, Framing::Length(length) if length > DRAIN_LIMIT as u64) {
            return Ok(false);
        }
        let mut body = Body::new(framing);
        let mut drained = 0;
        while drained <= DRAIN_LIMIT {
            let read = body.next(&mut self.wire).await?;
            if read == 0 {
                return Ok(true);
            }
            self.wire.consume(read);
            drained += read;
        }
        Ok(false)
    }

    /// `/bytes/N`, after the head.
    async fn bytes(&mut self, count: u64) -> Result<(), WireError> {
        let mut offset = 0;
        while offset < count {
            let slice = self.context.pattern().slice(offset, count);
            self.wire.write_all(slice).await?;
            offset += slice.len() as u64;
        }
        Ok(())
    }

    /// `POST` to `/sum` or `/sink`.
    async fn receive(&mut self, route: Route, request: Request) -> Result<bool, End> {
        let empty = request.framing == Framing::Length(0);
        if request.expects_continue && !empty && self.wire.buffered().is_empty() {
            self.wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut sum = (route == Route::Sum).then(Sha256::new);
        let mut length = 0u64;
        let take = |piece: &[u8]| {
            length += piece.len() as u64;
            if let Some(sum) = &mut sum {
                sum.update(piece);
            }
        };
        Body::new(request.framing).read_all(&mut self.wire, take).await?;
        let mut text = String::with_capacity(65);
        // Writing to a `String` cannot fail.
        let _ = match sum {
            Some(sum) => sum.finalize().iter().try_for_each(|byte| write!(text, "{byte:02x}")),
            None => write!(text, "{length}"),
        };
        text.push('\n');
        self.out.clear();
        self.short(Head::text(Status::OK, request.keep_alive), request.method, &text);
        self.send().await?;
        Ok(request.keep_alive)
    }

    /// Appends a short response to `out`; a `HEAD` request gets no body.
    fn short(&mut self, head: Head, method: Method, body: &str) {
        Head { length: body.len() as u64, ..head }.write(&mut self.out);
        if method != Method::Head {
            self.out.push_str(body);
        }
    }

    /// Sends a response with all `parts`, without a copy of them in `out`; a `HEAD` request gets no
    /// body.
    async fn long(&mut self, head: Head, method: Method, parts: &[&str]) -> Result<(), WireError> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        Head { length, ..head }.write(&mut self.out);
        self.send().await?;
        if method != Method::Head {
            for part in parts {
                self.wire.write_all(part.as_bytes()).await?;
            }
        }
        Ok(())
    }

    /// Sends the contents of `out`.
    async fn send(&mut self) -> Result<(), WireError> {
        self.wire.write_all(self.out.as_bytes()).await?;
        self.out.clear();
        Ok(())
    }

    /// Sends the reason why the connection closes, and closes it.
    async fn refuse(mut self, refusal: Refusal) -> Result<(), WireError> {
        let Refusal { status, reason } = refusal;
        log::debug!("http: {}: {reason}", status.code());
        self.out.clear();
        let length = reason.len() as u64 + 1;
        Head { length, ..Head::text(status, false) }.write(&mut self.out);
        self.out.extend([reason, "\n"]);
        self.wire.deadline.extend();
        self.send().await?;
        self.wire.leave_unread();
        self.wire.close().await
    }
}
