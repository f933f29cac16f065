//! Host names: DNS over UDP, and over TCP where UDP does not suffice (RFC 1035).
//!
//! [`Resolver`] uses the socket traits alone, so it runs over any stack. It keeps answers for as
//! long as they are true.

mod cache;
mod message;
mod tcp_only;

pub use tcp_only::TcpOnly;

use crate::stack::Stack;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use cache::Cache;
use core::cell::RefCell;
use core::mem;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use edge_nal::{AddrType, Dns, TcpConnect, UdpConnect, UdpReceive, UdpSend};
use embassy_time::{Duration, Instant, with_timeout};
use embedded_io_async::{Error, ErrorKind, Read, Write};
use message::{Answer, Kind, Question};
use thiserror::Error;

/// The port of DNS servers.
const PORT: u16 = 53;

/// The rounds over all servers: how long each may take to answer a datagram. In the last one, they
/// are queried by TCP.
const ROUNDS: [Option<Duration>; 4] = [
    Some(Duration::from_secs(1)),
    Some(Duration::from_secs(2)),
    Some(Duration::from_secs(4)),
    None,
];

/// How long a server may take to answer over TCP.
const TCP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a question may take.
const LIMIT: Duration = Duration::from_secs(40);

/// The longest accepted datagram. Without EDNS(0), servers send at most 512 bytes.
const MAX_DATAGRAM: usize = 512;

/// The longest accepted answer over TCP. Answers with addresses are much shorter.
const MAX_ANSWER: usize = 4096;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// The text is not a valid host name.
    #[error("not a valid host name")]
    NotAName,
    /// No DNS server is known.
    #[error("no DNS server is known; set dns=ADDRESS")]
    NoServer,
    /// The name does not exist, or has no address of the requested kind.
    #[error("the name has no address")]
    NotFound,
    /// A server returns an error: its address and the response code.
    #[error("DNS server {0} returns error code {1}")]
    Refused(IpAddr, u8),
    /// A server cannot be reached or does not answer.
    #[error("DNS server {0}: {1}")]
    Server(IpAddr, String),
    /// A server's answer is malformed or does not match the query.
    #[error("DNS server {0} sends an invalid answer")]
    InvalidAnswer(IpAddr),
    /// Reverse lookups are not supported.
    #[error("reverse DNS lookups are not supported")]
    Unsupported,
}

impl Error for ResolveError {
    fn kind(&self) -> ErrorKind {
        match self {
            ResolveError::NotAName => ErrorKind::InvalidInput,
            ResolveError::NotFound => ErrorKind::NotFound,
            ResolveError::Unsupported => ErrorKind::Unsupported,
            ResolveError::InvalidAnswer(_) => ErrorKind::InvalidData,
            _ => ErrorKind::Other,
        }
    }
}

/// The source of a resolver's DNS servers.
pub trait NameServers {
    /// The servers, in the order in which to query them.
    fn name_servers(&self) -> impl Future<Output = Vec<IpAddr>>;
}

impl NameServers for Vec<IpAddr> {
    async fn name_servers(&self) -> Vec<IpAddr> {
        self.clone()
    }
}

/// The servers of the configuration or of the DHCP server, as soon as the interface has an address.
impl NameServers for Stack {
    async fn name_servers(&self) -> Vec<IpAddr> {
        self.configured().await;
        self.dns_servers()
    }
}

/// A DNS client over a stack. It queries the servers in order until one answers: by UDP in three
/// rounds, then by TCP. An answer that is truncated is fetched by TCP at once.
///
/// Answers are kept for their time to live, but at most a day, and those that a name has no address
/// for the time that the zone's SOA record allows, but at most an hour; 64 of both kinds.
///
/// ```
/// use edge_nal::{AddrType, Dns, TcpConnect, UdpConnect};
/// use netfront::{ResolveError, Resolver};
/// use std::net::{IpAddr, Ipv4Addr};
///
/// async fn look_up<S: TcpConnect + UdpConnect>(
///     stack: &S,
///     random: impl Fn() -> u16,
/// ) -> Result<IpAddr, ResolveError> {
///     let servers = vec![IpAddr::from(Ipv4Addr::new(10, 0, 2, 3))];
///     let names = Resolver::new(stack, servers, random);
///     names.get_host_by_name("www.example.org", AddrType::IPv4).await
/// }
/// ```
pub struct Resolver<S, N, R> {
    stack: S,
    servers: N,
    random: R,
    cache: RefCell<Cache>,
}

impl<S, N, R> Resolver<S, N, R>
where
    S: TcpConnect + UdpConnect,
    N: NameServers,
    R: Fn() -> u16,
{
    /// A resolver that queries these servers. `random` makes the numbers of queries: who can guess
    /// them, and the ports that the stack chooses, can forge answers.
    pub fn new(stack: S, servers: N, random: R) -> Self {
        Resolver { stack, servers, random, cache: RefCell::default() }
    }

    /// The address that a question asks for, if it is known already or a server knows it.
    async fn resolve(&self, question: &Question) -> Result<IpAddr, ResolveError> {
        let known = self.cache.borrow().get(question, Instant::now());
        if let Some(address) = known {
            return address.ok_or(ResolveError::NotFound);
        }
        let servers = self.servers.name_servers().await;
        let first = *servers.first().ok_or(ResolveError::NoServer)?;
        let answer = with_timeout(LIMIT, self.ask(&servers, question)).await;
        let answer =
            answer.unwrap_or_else(|_| Err(ResolveError::Server(first, "no answer".into())))?;
        self.cache.borrow_mut().put(question.clone(), answer, Instant::now());
        match answer {
            Answer::Address(address, _) => Ok(address),
            _ => Err(ResolveError::NotFound),
        }
    }

    /// The first usable answer of a server: an address, or that there is none.
    async fn ask(&self, servers: &[IpAddr], question: &Question) -> Result<Answer, ResolveError> {
        let mut error = ResolveError::NoServer;
        // The servers that have not answered at all.
        let mut left = servers.to_vec();
        // Whether a server was silent in the last round.
        let mut is_silent = true;
        for round in ROUNDS {
            // What has failed at once would do so again.
            if !mem::take(&mut is_silent) && round.is_some() {
                continue;
            }
            for server in mem::take(&mut left) {
                let by_udp = match round {
                    Some(time) => self.ask_by_udp(server, question, time).await,
                    None => Ok(Answer::Truncated),
                };
                let answer = match by_udp {
                    Ok(Answer::Truncated) => self.ask_by_tcp(server, question).await,
                    Ok(answer) => Ok(answer),
                    Err(failed) => {
                        is_silent |= failed == Failed::Silent;
                        left.push(server);
                        continue;
                    }
                };
                match usable(server, answer) {
                    Ok(answer) => return Ok(answer),
                    Err(other) => error = other,
                }
            }
        }
        Err(error)
    }

    async fn ask_by_udp(
        &self,
        server: IpAddr,
        question: &Question,
        time: Duration,
    ) -> Result<Answer, Failed> {
        let id = (self.random)();
        let local: IpAddr = match server {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let server = SocketAddr::new(server, PORT);
        let exchange = async {
            // The stack chooses a port, another one for each query.
            let connecting = UdpConnect::connect(&self.stack, (local, 0).into(), server);
            let mut socket = connecting.await?;
            socket.send(server, &question.query(id)).await?;
            let mut data = [0; MAX_DATAGRAM];
            loop {
                let (length, sender) = socket.receive(&mut data).await?;
                // Everything else is forged or late.
                if let Some(whole) = data.get(..length)
                    && sender == server
                    && let Ok(answer) = question.answer(id, whole)
                {
                    return Ok(answer);
                }
            }
        };
        with_timeout(time, exchange).await.unwrap_or(Err(Failed::Silent))
    }

    async fn ask_by_tcp(
        &self,
        server: IpAddr,
        question: &Question,
    ) -> Result<Answer, ResolveError> {
        let failed = |error: &dyn ToString| ResolveError::Server(server, error.to_string());
        let exchange = async {
            let connecting = TcpConnect::connect(&self.stack, SocketAddr::new(server, PORT));
            let mut stream = connecting.await.map_err(|error| failed(&error))?;
            let id = (self.random)();
            let query = question.query(id);
            // The length fits: a name is short, and all other parts have fixed sizes.
            let message = [&(query.len() as u16).to_be_bytes(), &query[..]].concat();
            stream.write_all(&message).await.map_err(|error| failed(&error))?;
            stream.flush().await.map_err(|error| failed(&error))?;
            let closed = |_| failed(&"the connection was closed");
            let mut length = [0; 2];
            stream.read_exact(&mut length).await.map_err(closed)?;
            let length = usize::from(u16::from_be_bytes(length));
            if length > MAX_ANSWER {
                return Err(ResolveError::InvalidAnswer(server));
            }
            let mut answer = vec![0; length];
            stream.read_exact(&mut answer).await.map_err(closed)?;
            question.answer(id, &answer).map_err(|_| ResolveError::InvalidAnswer(server))
        };
        with_timeout(TCP_TIMEOUT, exchange).await.map_err(|_| failed(&"no answer"))?
    }
}

/// Why there is no answer to a datagram.
#[derive(PartialEq, Eq)]
enum Failed {
    /// The stack has no datagrams, the server is not reached, or it refuses them.
    AtOnce,
    Silent,
}

impl<E: Error> From<E> for Failed {
    fn from(_: E) -> Failed {
        Failed::AtOnce
    }
}

/// An answer that no other server would give differently.
fn usable(server: IpAddr, answer: Result<Answer, ResolveError>) -> Result<Answer, ResolveError> {
    match answer? {
        Answer::Refused(code) => Err(ResolveError::Refused(server, code)),
        Answer::Truncated => Err(ResolveError::InvalidAnswer(server)),
        answer => Ok(answer),
    }
}

impl<S, N, R> Dns for Resolver<S, N, R>
where
    S: TcpConnect + UdpConnect,
    N: NameServers,
    R: Fn() -> u16,
{
    type Error = ResolveError;

    /// An IPv4 address is preferred if both kinds will do.
    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        let kinds: &[Kind] = match kind {
            AddrType::IPv4 => &[Kind::V4],
            AddrType::IPv6 => &[Kind::V6],
            AddrType::Either => &[Kind::V4, Kind::V6],
        };
        let mut result = Err(ResolveError::NotFound);
        for &kind in kinds {
            let question = Question::new(host, kind).ok_or(ResolveError::NotAName)?;
            result = self.resolve(&question).await;
            if result != Err(ResolveError::NotFound) {
                break;
            }
        }
        result
    }

    /// Not supported.
    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, ResolveError> {
        Err(ResolveError::Unsupported)
    }
}
