//! DNS over TCP (RFC 1035, section 4.2.2), for stacks that have streams only.
//!
//! [`Resolver`] uses the socket traits alone, so it runs over any stack.
//! [`Stack`](crate::stack::Stack) has a resolver of its own, over UDP. Both fail with a
//! [`ResolveError`].

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use edge_nal::{AddrType, Dns, TcpConnect};
use embassy_time::{Duration, Instant, with_timeout};
use embedded_io_async::{Error, ErrorKind, Read, Write};
use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode, DnsRecord, DnsRecordData,
    DnsRepr,
};
use thiserror::Error;

/// The port of DNS servers.
const PORT: u16 = 53;

/// How long a server may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest accepted answer. Answers with addresses are much shorter.
const MAX_ANSWER: usize = 4096;

/// The longest name in a message, and the longest of its labels (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

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
    /// No server answers, or the name does not exist: smoltcp's client does not tell these apart.
    #[error("the DNS servers do not answer, or the name has no address")]
    NoAnswer,
    /// A server returns an error: its address and the response code.
    #[error("DNS server {0} returns error code {1}")]
    Refused(IpAddr, u8),
    /// A server cannot be reached or does not answer.
    #[error("DNS server {0}: {1}")]
    Server(IpAddr, String),
    /// A server's answer is malformed or does not match the query.
    #[error("DNS server {0} sends an invalid answer")]
    InvalidAnswer(IpAddr),
    /// Too many queries at once.
    #[error("too many DNS queries at once")]
    Busy,
    /// Reverse lookups are not supported.
    #[error("reverse DNS lookups are not supported")]
    Unsupported,
}

impl Error for ResolveError {
    fn kind(&self) -> ErrorKind {
        match self {
            ResolveError::NotAName => ErrorKind::InvalidInput,
            ResolveError::NotFound | ResolveError::NoAnswer => ErrorKind::NotFound,
            ResolveError::Unsupported => ErrorKind::Unsupported,
            ResolveError::InvalidAnswer(_) => ErrorKind::InvalidData,
            _ => ErrorKind::Other,
        }
    }
}

/// A DNS client over a stack's TCP. It queries the servers in order until one answers.
///
/// ```
/// use edge_nal::{AddrType, Dns, TcpConnect};
/// use netfront::{ResolveError, Resolver};
/// use std::net::{IpAddr, Ipv4Addr};
///
/// async fn look_up<S: TcpConnect>(stack: &S) -> Result<IpAddr, ResolveError> {
///     let servers = [IpAddr::from(Ipv4Addr::new(10, 0, 2, 3))];
///     Resolver::new(stack, &servers).get_host_by_name("www.example.org", AddrType::IPv4).await
/// }
/// ```
pub struct Resolver<'a, S> {
    stack: &'a S,
    servers: &'a [IpAddr],
}

impl<'a, S: TcpConnect> Resolver<'a, S> {
    /// A resolver that queries these servers.
    pub fn new(stack: &'a S, servers: &'a [IpAddr]) -> Self {
        Resolver { stack, servers }
    }

    async fn query(
        &self,
        server: IpAddr,
        name: &[u8],
        kind: DnsQueryType,
    ) -> Result<IpAddr, ResolveError> {
        let failed = |error: &dyn ToString| ResolveError::Server(server, error.to_string());
        let exchange = async {
            let connecting = self.stack.connect(SocketAddr::new(server, PORT));
            let mut stream = connecting.await.map_err(|error| failed(&error))?;
            // The connection serves one query, so the id need not be hard to guess.
            let id = Instant::now().as_ticks() as u16;
            let question = question(id, name, kind);
            stream.write_all(&question).await.map_err(|error| failed(&error))?;
            stream.flush().await.map_err(|error| failed(&error))?;
            let mut length = [0; 2];
            stream
                .read_exact(&mut length)
                .await
                .map_err(|_| failed(&"the connection was closed"))?;
            let mut answer = vec![0; MAX_ANSWER];
            let answer = answer
                .get_mut(..usize::from(u16::from_be_bytes(length)))
                .ok_or(ResolveError::InvalidAnswer(server))?;
            stream.read_exact(answer).await.map_err(|_| failed(&"the connection was closed"))?;
            address(answer, id, kind, server)
        };
        with_timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| failed(&"no answer"))?
    }
}

impl<S: TcpConnect> Dns for Resolver<'_, S> {
    type Error = ResolveError;

    async fn get_host_by_name(&self, host: &str, kind: AddrType) -> Result<IpAddr, ResolveError> {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        let name = encode(host).ok_or(ResolveError::NotAName)?;
        let kinds: &[DnsQueryType] = match kind {
            AddrType::IPv4 => &[DnsQueryType::A],
            AddrType::IPv6 => &[DnsQueryType::Aaaa],
            AddrType::Either => &[DnsQueryType::A, DnsQueryType::Aaaa],
        };
        let mut error = ResolveError::NoServer;
        for &server in self.servers {
            for &kind in kinds {
                match self.query(server, &name, kind).await {
                    Ok(address) => return Ok(address),
                    Err(other) => error = other,
                }
                if error != ResolveError::NotFound {
                    break;
                }
            }
            // Other servers would answer the same.
            if error == ResolveError::NotFound {
                break;
            }
        }
        Err(error)
    }

    /// Not supported.
    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, ResolveError> {
        Err(ResolveError::Unsupported)
    }
}

/// A name in a message's format: each label after its length, and an empty one for the root.
fn encode(host: &str) -> Option<Vec<u8>> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut name = Vec::with_capacity(host.len() + 2);
    for label in host.split('.') {
        if !(1..=MAX_LABEL).contains(&label.len()) || !label.is_ascii() {
            return None;
        }
        name.push(label.len() as u8);
        name.extend_from_slice(label.as_bytes());
    }
    name.push(0);
    (name.len() <= MAX_NAME).then_some(name)
}

/// A query, preceded by its length.
fn question(id: u16, name: &[u8], kind: DnsQueryType) -> Vec<u8> {
    let question = DnsRepr {
        transaction_id: id,
        opcode: DnsOpcode::Query,
        flags: DnsFlags::RECURSION_DESIRED,
        question: DnsQuestion { name, type_: kind },
    };
    let length = question.buffer_len();
    let mut bytes = vec![0; 2 + length];
    // The length fits: a name is short, and all other parts have fixed sizes.
    bytes[..2].copy_from_slice(&(length as u16).to_be_bytes());
    question.emit(&mut DnsPacket::new_unchecked(&mut bytes[2..]));
    bytes
}

/// The first address in an answer. The server has resolved the aliases.
fn address(
    answer: &[u8],
    id: u16,
    kind: DnsQueryType,
    server: IpAddr,
) -> Result<IpAddr, ResolveError> {
    let invalid = |_| ResolveError::InvalidAnswer(server);
    let packet = DnsPacket::new_checked(answer).map_err(invalid)?;
    if packet.transaction_id() != id || !packet.flags().contains(DnsFlags::RESPONSE) {
        return Err(ResolveError::InvalidAnswer(server));
    }
    match packet.rcode() {
        DnsRcode::NoError => {}
        DnsRcode::NXDomain => return Err(ResolveError::NotFound),
        code => return Err(ResolveError::Refused(server, code.into())),
    }
    let mut rest = packet.payload();
    for _ in 0..packet.question_count() {
        rest = DnsQuestion::parse(rest).map_err(invalid)?.0;
    }
    for _ in 0..packet.answer_record_count() {
        let (after, record) = DnsRecord::parse(rest).map_err(invalid)?;
        match (kind, record.data) {
            (DnsQueryType::A, DnsRecordData::A(address)) => return Ok(address.into()),
            (DnsQueryType::Aaaa, DnsRecordData::Aaaa(address)) => return Ok(address.into()),
            _ => rest = after,
        }
    }
    Err(ResolveError::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::LOCALHOST);

    fn read(answer: &[u8]) -> Result<IpAddr, ResolveError> {
        address(answer, 7, DnsQueryType::A, SERVER)
    }

    /// An alias, then the address 192.0.2.1 of its target.
    fn answer() -> Vec<u8> {
        let mut bytes = vec![0, 7, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
        bytes.extend(encode("www.example.org").unwrap());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 16]);
        bytes.extend([0xc0, 16, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
        bytes
    }

    #[test]
    fn an_answer_yields_the_address_behind_an_alias() {
        assert_eq!(read(&answer()), Ok([192, 0, 2, 1].into()));
        assert_eq!(address(&answer(), 7, DnsQueryType::Aaaa, SERVER), Err(ResolveError::NotFound));
    }

    #[test]
    fn malformed_and_truncated_answers_are_harmless() {
        let whole = answer();
        for length in 0..whole.len() {
            assert_eq!(
                read(&whole[..length]),
                Err(ResolveError::InvalidAnswer(SERVER)),
                "{length}"
            );
        }
        for at in 0..whole.len() {
            for byte in [0, 0x3f, 0x40, 0xc0, 0xff] {
                let mut malformed = whole.clone();
                malformed[at] = byte;
                let _ = read(&malformed);
            }
        }
    }

    #[test]
    fn a_server_may_know_no_such_name_or_refuse() {
        let mut bytes = answer();
        bytes[3] = 0x83;
        assert_eq!(read(&bytes), Err(ResolveError::NotFound));
        bytes[3] = 0x85;
        assert_eq!(read(&bytes), Err(ResolveError::Refused(SERVER, 5)));
        bytes[1] = 8;
        assert_eq!(read(&bytes), Err(ResolveError::InvalidAnswer(SERVER)));
    }

    #[test]
    fn a_label_has_one_to_sixty_three_characters() {
        assert_eq!(encode("a.bc.").unwrap(), b"\x01a\x02bc\0");
        let (long, many) = ("a".repeat(64), "abc.".repeat(64));
        for wrong in ["", ".", "a..b", ".a", "\u{e9}", &long, &many] {
            assert_eq!(encode(wrong), None, "{wrong}");
        }
    }
}
