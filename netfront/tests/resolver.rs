//! Names, resolved over two stacks that are joined by a cable.

mod testing;

use edge_nal::{AddrType, Dns, UdpReceive, UdpSend};
use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{Either, join, select};
use netfront::stack::{Datagrams, Listener, Stack};
use netfront::{ResolveError, Resolver, TcpOnly};
use std::cell::Cell;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use testing::cable::{self, Faults, with_stacks};

const NAME: &str = "www.example.org";
const FOUND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

/// The bytes of a query: the header, the name, the type and the class.
const QUERY: usize = 12 + NAME.len() + 2 + 4;

/// A DNS server that a test plays.
struct Server {
    udp: Datagrams,
    tcp: Listener,
}

/// A query.
struct Query {
    from: SocketAddr,
    message: Vec<u8>,
}

impl Server {
    async fn new(stack: &Stack, address: impl Into<IpAddr>) -> Server {
        let address = SocketAddr::new(address.into(), 53);
        let udp = stack.bind_udp(address).await.unwrap();
        Server { udp, tcp: stack.bind(address).await.unwrap() }
    }

    async fn query(&mut self) -> Query {
        let mut message = vec![0; 512];
        let (length, from) = self.udp.receive(&mut message).await.unwrap();
        message.truncate(length);
        Query { from, message }
    }

    async fn send(&mut self, query: &Query, answer: Vec<u8>) {
        self.udp.send(query.from, &answer).await.unwrap();
    }

    /// Answers the next query.
    async fn answer(&mut self, answer: impl Fn(&Query) -> Vec<u8>) {
        let query = self.query().await;
        self.send(&query, answer(&query)).await;
    }

    /// Answers a query over TCP.
    async fn answer_by_tcp(&mut self, answer: impl Fn(&Query) -> Vec<u8>) {
        let mut stream = self.tcp.accept().await.unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).await.unwrap();
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut message).await.unwrap();
        let answer = answer(&Query { from: stream.peer_addr().unwrap(), message });
        stream.write_all(&(answer.len() as u16).to_be_bytes()).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }

    /// Answers all queries, however many.
    async fn answer_all(&mut self, answer: impl Fn(&Query) -> Vec<u8>) -> Infallible {
        loop {
            self.answer(&answer).await;
        }
    }

    /// Checks that no query comes for a while.
    async fn is_idle(&mut self) {
        let query = with_timeout(Duration::from_millis(50), self.query()).await;
        assert!(query.is_err(), "the server is asked");
    }
}

impl Query {
    /// An answer without records.
    fn empty(&self, code: u8) -> Vec<u8> {
        let mut answer = self.message.clone();
        answer[2..4].copy_from_slice(&[0x81, 0x80 | code]);
        answer
    }

    /// An answer with the address, for some seconds.
    fn found(&self, seconds: u8) -> Vec<u8> {
        let mut answer = self.empty(0);
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, seconds, 0, 4, 192, 0, 2, 9]);
        answer
    }

    /// There is no such name, for some seconds.
    fn unknown(&self, seconds: u8) -> Vec<u8> {
        let mut answer = self.empty(3);
        answer[9] = 1;
        answer.extend([0xc0, 12, 0, 6, 0, 1, 0, 0, 1, 0, 0, 22, 0, 0]);
        answer.extend([0; 19]);
        answer.push(seconds);
        answer
    }

    fn truncated(&self) -> Vec<u8> {
        let mut answer = self.empty(0);
        answer[2] |= 2;
        answer
    }
}

/// Numbers that follow each other.
fn numbers() -> impl Fn() -> u16 {
    let next = Cell::new(0x1234);
    move || next.replace(next.get() + 1)
}

/// What the look-up finds while a server answers.
async fn while_answering<T>(look_up: impl Future<Output = T>, answering: impl Future) -> T {
    match select(pin!(look_up), pin!(answering)).await {
        Either::Left((found, _)) => found,
        Either::Right(_) => unreachable!("the server answers for ever"),
    }
}

fn right() -> Vec<IpAddr> {
    vec![cable::RIGHT.into()]
}

#[test]
fn an_answer_is_kept_for_its_time_to_live() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = || names.get_host_by_name(NAME, AddrType::IPv4);
        let (found, ()) = join(look_up(), server.answer(|query| query.found(1))).await;
        assert_eq!(found, Ok(FOUND));
        let (found, ()) = join(look_up(), server.is_idle()).await;
        assert_eq!(found, Ok(FOUND));
        // Another kind is another question.
        let six = names.get_host_by_name(NAME, AddrType::IPv6);
        let (found, ()) = join(six, server.answer(|query| query.empty(0))).await;
        assert_eq!(found, Err(ResolveError::NotFound));
        Timer::after_millis(1100).await;
        let (found, ()) = join(look_up(), server.answer(|query| query.found(0))).await;
        assert_eq!(found, Ok(FOUND));
        let (found, ()) = join(look_up(), server.answer(|query| query.unknown(0))).await;
        assert_eq!(found, Err(ResolveError::NotFound));
    });
}

#[test]
fn an_unknown_name_is_remembered_too() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = || names.get_host_by_name(NAME, AddrType::IPv4);
        let (found, ()) = join(look_up(), server.answer(|query| query.unknown(1))).await;
        assert_eq!(found, Err(ResolveError::NotFound));
        let (found, ()) = join(look_up(), server.is_idle()).await;
        assert_eq!(found, Err(ResolveError::NotFound));
        Timer::after_millis(1100).await;
        let (found, ()) = join(look_up(), server.answer(|query| query.found(9))).await;
        assert_eq!(found, Ok(FOUND));
    });
}

#[test]
fn each_query_has_another_number_and_port() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(&left, self::right(), numbers());
        let asked = async {
            let first = server.query().await;
            assert_eq!((first.message.len(), &first.message[..2]), (QUERY, &[0x12, 0x34][..]));
            let second = server.query().await;
            assert_eq!(second.message[..2], [0x12, 0x35]);
            assert_ne!(first.from, second.from);
            let answer = second.found(9);
            server.send(&second, answer).await;
        };
        // The first one is not answered.
        let (found, ()) = join(names.get_host_by_name(NAME, AddrType::IPv4), asked).await;
        assert_eq!(found, Ok(FOUND));
    });
}

#[test]
fn answers_that_nobody_asked_for_are_ignored() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let mut forger = right.bind_udp((cable::RIGHT, 5353).into()).await.unwrap();
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = names.get_host_by_name(NAME, AddrType::IPv4);
        let forging = async {
            let query = server.query().await;
            let mut forged = query.found(9);
            let last = forged.len() - 1;
            forged[last] = 66;
            forger.send(query.from, &forged).await.unwrap();
            // Another number, another name, a question instead of an answer, and no message.
            for (at, by) in [(1, 1), (14, 1), (2, 0x80)] {
                let mut wrong = forged.clone();
                wrong[at] ^= by;
                server.send(&query, wrong).await;
            }
            server.send(&query, vec![]).await;
            let mut long = forged.clone();
            long.resize(600, 0);
            server.send(&query, long).await;
            server.send(&query, query.found(9)).await;
        };
        let (found, ()) = join(look_up, forging).await;
        assert_eq!(found, Ok(FOUND));
    });
}

#[test]
fn a_truncated_answer_is_fetched_by_tcp() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = names.get_host_by_name(NAME, AddrType::IPv4);
        let answering = async {
            server.answer(Query::truncated).await;
            server.answer_by_tcp(|query| query.found(9)).await;
            server.is_idle().await;
        };
        let (found, ()) = join(look_up, answering).await;
        assert_eq!(found, Ok(FOUND));
    });
}

#[test]
fn a_server_or_stack_without_datagrams_is_used_by_tcp() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(TcpOnly(&left), self::right(), numbers());
        let look_up = || names.get_host_by_name(NAME, AddrType::IPv4);
        let (found, ()) = join(look_up(), server.answer_by_tcp(|query| query.found(0))).await;
        assert_eq!(found, Ok(FOUND));
        let (found, ()) = join(look_up(), server.answer_by_tcp(|query| query.empty(3))).await;
        assert_eq!(found, Err(ResolveError::NotFound));
        let (found, ()) = join(look_up(), server.answer_by_tcp(Query::truncated)).await;
        assert_eq!(found, Err(ResolveError::InvalidAnswer(cable::RIGHT.into())));
        let hangs_up = async { drop(server.tcp.accept().await.unwrap()) };
        let (found, ()) = join(look_up(), hangs_up).await;
        assert!(matches!(found, Err(ResolveError::Server(..))), "{found:?}");
        // The port of UDP is closed, which ICMP reports.
        server.udp = right.bind_udp((cable::RIGHT, 54).into()).await.unwrap();
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = names.get_host_by_name(NAME, AddrType::IPv4);
        let (found, ()) = join(look_up, server.answer_by_tcp(|query| query.found(9))).await;
        assert_eq!(found, Ok(FOUND));
    });
}

#[test]
fn a_server_that_answers_no_datagram_is_asked_by_tcp() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = names.get_host_by_name(NAME, AddrType::IPv4);
        let (found, ()) = join(look_up, server.answer_by_tcp(|query| query.found(9))).await;
        assert_eq!(found, Ok(FOUND));
    });
}

#[test]
fn the_next_server_is_asked_if_one_is_unreachable_silent_or_refuses() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut first = Server::new(&right, cable::RIGHT).await;
        let mut second = Server::new(&right, cable::RIGHT_V6).await;
        let unreachable = IpAddr::from([192, 0, 2, 1]);
        let servers = vec![unreachable, cable::RIGHT.into(), cable::RIGHT_V6.into()];
        let names = Resolver::new(&left, servers, numbers());
        let look_up = || names.get_host_by_name(NAME, AddrType::IPv4);
        // The first one receives the query, but does not answer. A query to the second one may come
        // too late, as it is a neighbour that the stack does not know yet.
        let found = while_answering(look_up(), second.answer_all(|query| query.found(0))).await;
        assert_eq!(found, Ok(FOUND));
        first.query().await;
        // Without the queries of the first look-up.
        drop(first);
        let mut first = Server::new(&right, cable::RIGHT).await;
        let refused = Cell::new(0);
        let refuse = |query: &Query| {
            refused.set(refused.get() + 1);
            query.empty(5)
        };
        let answering = join(first.answer_all(refuse), second.answer_all(|query| query.found(0)));
        let found = while_answering(look_up(), answering).await;
        assert_eq!(found, Ok(FOUND));
        assert!(refused.get() > 0);
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = names.get_host_by_name(NAME, AddrType::IPv4);
        let found = while_answering(look_up, first.answer_all(refuse)).await;
        assert_eq!(found, Err(ResolveError::Refused(cable::RIGHT.into(), 5)));
    });
}

#[test]
fn addresses_need_no_server_and_names_do() {
    with_stacks(Faults::default(), |left, _, _| async move {
        let names = Resolver::new(&left, vec![], numbers());
        let look_up = async |host| names.get_host_by_name(host, AddrType::Either).await;
        assert_eq!(look_up("192.0.2.9").await, Ok(FOUND));
        assert_eq!(look_up(NAME).await, Err(ResolveError::NoServer));
        assert_eq!(look_up("a..b").await, Err(ResolveError::NotAName));
    });
}

#[test]
fn a_name_may_have_an_ipv6_address_alone() {
    with_stacks(Faults::default(), |left, right, _| async move {
        let mut server = Server::new(&right, cable::RIGHT).await;
        let names = Resolver::new(&left, self::right(), numbers());
        let look_up = names.get_host_by_name(NAME, AddrType::Either);
        let answering = async {
            server.answer(|query| query.empty(0)).await;
            server
                .answer(|query| {
                    let mut answer = query.empty(0);
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 9, 0, 16]);
                    answer.extend(cable::RIGHT_V6.octets());
                    answer
                })
                .await;
        };
        let (found, ()) = join(look_up, answering).await;
        assert_eq!(found, Ok(cable::RIGHT_V6.into()));
    });
}
