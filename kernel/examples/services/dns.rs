//! A DNS server with a few names.

use crate::{Named, any, failed};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;
use core::net::IpAddr;
use domain::base::iana::{Class, Rcode};
use domain::base::name::{FromStrError, Name};
use domain::base::{Message, MessageBuilder, Rtype, ToName, Ttl};
use domain::rdata::{A, Aaaa};
use edge_nal::{UdpBind, UdpReceive, UdpSend};

/// The longest query without extensions (RFC 1035, section 4.2.1). Others are not answered.
const LONGEST: usize = 512;

const TTL: Ttl = Ttl::from_secs(60);

/// Answers queries. An error of one datagram concerns no other one.
pub async fn serve<S: UdpBind>(stack: &S, port: u16, zone: Vec<Named<IpAddr>>) -> Result<(), String>
where
    S::Error: Display,
{
    let owners = zone.iter().map(|entry| entry.name.parse().map(|name| (name, entry.address)));
    let zone = owners.collect::<Result<Zone, _>>();
    let zone = zone.map_err(failed::<FromStrError>("a name"))?;
    let mut socket = stack.bind(any(port)).await.map_err(failed("bind"))?;
    log::info!("DNS: serving on port {port}");
    let mut query = [0; LONGEST];
    loop {
        let (length, peer) = socket.receive(&mut query).await.map_err(failed("receive"))?;
        if let Some(reply) = query.get(..length).and_then(|query| answer(query, &zone))
            && let Err(error) = socket.send(peer, &reply).await
        {
            log::warn!("DNS: {peer}: {error}");
        }
    }
}

type Zone = Vec<(Name<Vec<u8>>, IpAddr)>;

fn answer(query: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let query = Message::from_octets(query).ok()?;
    // An answer to an answer could go round for ever.
    let question = query.first_question().filter(|_| !query.header().qr())?;
    let here = || zone.iter().filter(|(name, _)| name.name_eq(question.qname()));
    let found = if here().next().is_some() { Rcode::NOERROR } else { Rcode::NXDOMAIN };
    let mut reply = MessageBuilder::new_vec().start_answer(&query, found).ok()?;
    reply.header_mut().set_aa(true);
    for (name, address) in here() {
        let pushed = match (address, question.qtype()) {
            (IpAddr::V4(four), Rtype::A) => reply.push((name, Class::IN, TTL, A::new(*four))),
            (IpAddr::V6(six), Rtype::AAAA) => reply.push((name, Class::IN, TTL, Aaaa::new(*six))),
            _ => continue,
        };
        pushed.ok()?;
    }
    Some(reply.finish())
}
