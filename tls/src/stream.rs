//! A connection over a socket.

use crate::failure::Failure;
use crate::settings::{Client, Server};
use alloc::boxed::Box;
use alloc::vec::Vec;
use edge_nal::{Close, TcpShutdown};
use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use thiserror::Error;

/// The size of the buffer that a connection needs: a record's head, text, and what encryption adds.
pub const BUFFER: usize = 5 + TEXT + 256;

/// The most bytes of text in a record.
const TEXT: usize = 16 << 10;

/// Why a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error<E> {
    /// The socket failed.
    #[error("{0}")]
    Socket(E),
    /// The peer, its certificate, or this side is not right.
    #[error("TLS: {0}")]
    Tls(Failure),
    /// The peer has ended the stream without saying so in TLS: anybody else may have ended it.
    #[error("TLS: the connection ended without the peer's word")]
    Cut,
    /// A message does not fit into the buffer.
    #[error("TLS: the peer's message is too long")]
    TooLong,
}

impl<E: embedded_io_async::Error> embedded_io_async::Error for Error<E> {
    fn kind(&self) -> ErrorKind {
        match self {
            Error::Socket(error) => error.kind(),
            Error::Tls(_) | Error::TooLong => ErrorKind::InvalidData,
            Error::Cut => ErrorKind::ConnectionAborted,
        }
    }
}

impl<E> From<Failure> for Error<E> {
    fn from(failure: Failure) -> Self {
        Error::Tls(failure)
    }
}

/// A TLS connection over a socket.
///
/// A future that is dropped loses nothing: the next call goes on where it was.
pub struct Stream<S> {
    socket: S,
    state: Box<State>,
}

/// The connection without its socket.
struct State {
    side: Side,
    /// Bytes from the socket, of which the first `filled` are there.
    incoming: Box<[u8]>,
    filled: usize,
    /// Text that the caller has not read yet, from `read` on.
    text: Vec<u8>,
    read: usize,
    /// Bytes for the socket, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// Whether the peer has said that nothing follows.
    ended: bool,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What can be done next.
#[derive(PartialEq, Eq)]
enum Next {
    /// Reading what is in `text`.
    Text,
    /// Receiving more, once `outgoing` is sent.
    Receive,
    /// Nothing more comes.
    End,
}

/// What to encrypt, if that is possible.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish<'t> {
    Nothing,
    Text(&'t [u8]),
    /// That nothing follows.
    End,
}

impl<S: Read + Write> Stream<S> {
    /// A connection to a server that is called `name`. `buffer` has at least [`BUFFER`] bytes, or
    /// the messages of the server must be short.
    pub fn client(
        socket: S,
        client: &Client,
        name: ServerName<'static>,
        buffer: Box<[u8]>,
    ) -> Result<Self, Error<S::Error>> {
        client.check_clock()?;
        let connection = UnbufferedClientConnection::new(client.config.clone(), name);
        let side = Side::Client(connection.map_err(Failure::new)?);
        Ok(Stream { socket, state: State::new(side, buffer) })
    }

    /// A connection from a client. `buffer` is as for [`client`](Self::client).
    pub fn server(socket: S, server: &Server, buffer: Box<[u8]>) -> Result<Self, Error<S::Error>> {
        let connection = UnbufferedServerConnection::new(server.config.clone());
        let side = Side::Server(connection.map_err(Failure::new)?);
        Ok(Stream { socket, state: State::new(side, buffer) })
    }

    /// Shakes hands. Reading and writing would do so, too.
    pub async fn handshake(&mut self) -> Result<(), Error<S::Error>> {
        while self.state.is_handshaking() {
            let (next, _) = self.work(Wish::Nothing).await?;
            // Nothing may follow the last message, and text may come with it.
            if !self.state.is_handshaking() {
                break;
            }
            match next {
                Next::Receive => self.receive().await?,
                Next::Text | Next::End => return Err(Error::Cut),
            }
        }
        self.send().await
    }

    /// Sends what is to be sent, and receives something.
    async fn receive(&mut self) -> Result<(), Error<S::Error>> {
        self.send().await?;
        let state = &mut *self.state;
        let room = &mut state.incoming[state.filled..];
        if room.is_empty() {
            return Err(Error::TooLong);
        }
        match self.socket.read(room).await.map_err(Error::Socket)? {
            0 => Err(Error::Cut),
            read => {
                state.filled += read.min(room.len());
                Ok(())
            }
        }
    }

    /// Works on what is there. The second result is whether the wish was granted.
    async fn work(&mut self, wish: Wish<'_>) -> Result<(Next, bool), Error<S::Error>> {
        match self.state.work(wish) {
            Ok(done) => Ok(done),
            Err(failure) => {
                // The peer gets an alert, if it still listens.
                let _ = self.send().await;
                Err(failure.into())
            }
        }
    }

    /// Sends what is in `outgoing`.
    async fn send(&mut self) -> Result<(), Error<S::Error>> {
        let state = &mut *self.state;
        if state.outgoing.is_empty() {
            return Ok(());
        }
        while let rest @ [_, ..] = &state.outgoing[state.sent..] {
            match self.socket.write(rest).await.map_err(Error::Socket)? {
                0 => return Err(Error::Cut),
                written => state.sent += written,
            }
        }
        // An idle connection keeps no buffer.
        (state.outgoing, state.sent) = (Vec::new(), 0);
        self.socket.flush().await.map_err(Error::Socket)
    }
}

impl State {
    fn new(side: Side, incoming: Box<[u8]>) -> Box<State> {
        Box::new(State {
            side,
            incoming,
            filled: 0,
            text: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            sent: 0,
            ended: false,
        })
    }

    fn is_handshaking(&self) -> bool {
        match &self.side {
            Side::Client(connection) => connection.is_handshaking(),
            Side::Server(connection) => connection.is_handshaking(),
        }
    }

    /// Has rustls work on what came in, until it needs the socket, or has text that nobody waits
    /// for.
    fn work(&mut self, mut wish: Wish<'_>) -> Result<(Next, bool), Failure> {
        loop {
            let waits = wish != Wish::Nothing;
            match self.act(&mut wish) {
                Ok(None) if waits && wish == Wish::Nothing => return Ok((Next::Receive, true)),
                Ok(None) => {}
                Ok(Some(Next::Text)) if waits => {}
                // The first end is the peer's, after which this side may still write.
                Ok(Some(Next::End)) if waits && !self.ended => self.ended = true,
                Ok(Some(next)) => {
                    self.ended |= next == Next::End;
                    return Ok((next, false));
                }
                Err(error) => {
                    // What rustls says to the peer comes before it looks at the bytes again.
                    let _ = self.act(&mut Wish::Nothing);
                    return Err(Failure::new(error));
                }
            }
        }
    }

    /// Takes one step.
    fn act(&mut self, wish: &mut Wish<'_>) -> Result<Option<Next>, rustls::Error> {
        let State { side, incoming, filled, text, outgoing, .. } = self;
        let bytes = &mut incoming[..*filled];
        let (discard, next) = match side {
            Side::Client(connection) => {
                handle(connection.process_tls_records(bytes), text, outgoing, wish)
            }
            Side::Server(connection) => {
                handle(connection.process_tls_records(bytes), text, outgoing, wish)
            }
        };
        let discard = discard.min(*filled);
        incoming.copy_within(discard..*filled, 0);
        *filled -= discard;
        next
    }
}

/// Handles a state of rustls. The results are how many bytes it needs no more, and what is next if
/// that is not another state.
fn handle<D>(
    status: UnbufferedStatus<'_, '_, D>,
    text: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    wish: &mut Wish<'_>,
) -> (usize, Result<Option<Next>, rustls::Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let next = || {
        Ok(match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    text.extend_from_slice(record.payload);
                    discard += record.discard;
                }
                Some(Next::Text)
            }
            ConnectionState::EncodeTlsData(mut data) => {
                append(outgoing, |to| data.encode(to))?;
                None
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                None
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                match core::mem::replace(wish, Wish::Nothing) {
                    Wish::Nothing => return Ok(Some(Next::Receive)),
                    Wish::Text(text) => append(outgoing, |to| traffic.encrypt(text, to))?,
                    Wish::End => append(outgoing, |to| traffic.queue_close_notify(to))?,
                }
                None
            }
            ConnectionState::BlockedHandshake => Some(Next::Receive),
            ConnectionState::PeerClosed | ConnectionState::Closed => Some(Next::End),
            _ => return Err(rustls::Error::General("early data".into())),
        })
    };
    let next = next();
    (discard, next)
}

/// Appends what `write` writes, which says how much room it needs if that is missing.
fn append<E: Into<Missing>>(
    outgoing: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), rustls::Error> {
    let start = outgoing.len();
    let size = match write(&mut []).map_err(Into::into) {
        Ok(_) => return Ok(()),
        Err(Missing(size)) => size.ok_or(rustls::Error::EncryptError)?,
    };
    outgoing.resize(start + size, 0);
    let written = write(&mut outgoing[start..]).map_err(|_| rustls::Error::EncryptError)?;
    outgoing.truncate(start + written);
    Ok(())
}

/// The room that is missing, if that is the reason.
struct Missing(Option<usize>);

impl From<EncodeError> for Missing {
    fn from(error: EncodeError) -> Missing {
        match error {
            EncodeError::InsufficientSize(size) => Missing(Some(size.required_size)),
            EncodeError::AlreadyEncoded => Missing(None),
        }
    }
}

impl From<EncryptError> for Missing {
    fn from(error: EncryptError) -> Missing {
        match error {
            EncryptError::InsufficientSize(size) => Missing(Some(size.required_size)),
            EncryptError::EncryptExhausted => Missing(None),
        }
    }
}

impl<S: ErrorType> ErrorType for Stream<S> {
    type Error = Error<S::Error>;
}

impl<S: Read + Write> Read for Stream<S> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Self::Error> {
        loop {
            let State { text, read, ended, .. } = &mut *self.state;
            let rest = &text[*read..];
            if !rest.is_empty() || to.is_empty() {
                let count = rest.len().min(to.len());
                to[..count].copy_from_slice(&rest[..count]);
                *read += count;
                if *read == text.len() {
                    // An idle connection keeps no buffer.
                    (*text, *read) = (Vec::new(), 0);
                }
                return Ok(count);
            }
            if *ended {
                return Ok(0);
            }
            if self.work(Wish::Nothing).await?.0 == Next::Receive {
                self.receive().await?;
            }
        }
    }
}

impl<S: Read + Write> Write for Stream<S> {
    /// Encrypts, and may keep the last record until [`flush`](Self::flush).
    async fn write(&mut self, from: &[u8]) -> Result<usize, Self::Error> {
        if from.is_empty() {
            return Ok(0);
        }
        self.handshake().await?;
        let text = &from[..from.len().min(TEXT)];
        match self.work(Wish::Text(text)).await? {
            (_, true) => Ok(text.len()),
            (_, false) => Err(Error::Cut),
        }
    }

    async fn flush(&mut self) -> Result<(), Self::Error> {
        self.send().await
    }
}

impl<S: Read + Write + TcpShutdown> TcpShutdown for Stream<S> {
    async fn close(&mut self, what: Close) -> Result<(), Self::Error> {
        if what != Close::Read && !self.state.is_handshaking() {
            self.send().await?;
            self.work(Wish::End).await?;
            self.send().await?;
        }
        self.socket.close(what).await.map_err(Error::Socket)
    }

    async fn abort(&mut self) -> Result<(), Self::Error> {
        self.socket.abort().await.map_err(Error::Socket)
    }
}
