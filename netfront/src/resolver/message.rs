//! Messages of DNS (RFC 1035, section 4), in smoltcp's wire formats.

use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;
use embassy_time::Duration;
use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode, DnsRecord, DnsRecordData,
    DnsRepr,
};

/// The longest name in a message, and the longest of its labels (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

/// The fixed end of an SOA record: five numbers, of which the last is the minimum (section 3.3.13).
const SOA_NUMBERS: usize = 20;

/// The addresses that a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    V4,
    V6,
}

/// A question, without the number that identifies the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    /// The name in a message's format, in lower case.
    name: Vec<u8>,
    kind: Kind,
}

/// What a server answers, and for how long that is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Address(IpAddr, Duration),
    /// The name does not exist, or has no address of this kind.
    Nothing(Duration),
    /// The answer is too long for a datagram.
    Truncated,
    /// The server returns this error code.
    Refused(u8),
}

/// The answer is malformed, or not that to the question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid;

impl Kind {
    fn number(self) -> DnsQueryType {
        match self {
            Kind::V4 => DnsQueryType::A,
            Kind::V6 => DnsQueryType::Aaaa,
        }
    }
}

impl Question {
    /// A question for a host's address. `None` if the text is no name.
    pub(super) fn new(host: &str, kind: Kind) -> Option<Question> {
        let host = host.strip_suffix('.').unwrap_or(host);
        let mut name = Vec::with_capacity(host.len() + 2);
        for label in host.split('.') {
            if !(1..=MAX_LABEL).contains(&label.len()) || !label.is_ascii() {
                return None;
            }
            name.push(label.len() as u8);
            name.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        name.push(0);
        (name.len() <= MAX_NAME).then_some(Question { name, kind })
    }

    /// The query.
    pub(super) fn query(&self, id: u16) -> Vec<u8> {
        let query = DnsRepr {
            transaction_id: id,
            opcode: DnsOpcode::Query,
            flags: DnsFlags::RECURSION_DESIRED,
            question: DnsQuestion { name: &self.name, type_: self.kind.number() },
        };
        let mut bytes = vec![0; query.buffer_len()];
        query.emit(&mut DnsPacket::new_unchecked(&mut bytes[..]));
        bytes
    }

    /// Reads the answer to a query. The server has resolved aliases.
    pub(super) fn answer(&self, id: u16, message: &[u8]) -> Result<Answer, Invalid> {
        let packet = DnsPacket::new_checked(message).map_err(|_| Invalid)?;
        if packet.transaction_id() != id
            || packet.opcode() != DnsOpcode::Query
            || !packet.flags().contains(DnsFlags::RESPONSE)
            || packet.question_count() != 1
        {
            return Err(Invalid);
        }
        let (mut rest, asked) = DnsQuestion::parse(packet.payload()).map_err(|_| Invalid)?;
        if !asked.name.eq_ignore_ascii_case(&self.name) || asked.type_ != self.kind.number() {
            return Err(Invalid);
        }
        if packet.flags().contains(DnsFlags::TRUNCATED) {
            return Ok(Answer::Truncated);
        }
        match packet.rcode() {
            DnsRcode::NoError | DnsRcode::NXDomain => {}
            code => return Ok(Answer::Refused(code.into())),
        }
        let mut record = || {
            let (after, record) = DnsRecord::parse(rest).map_err(|_| Invalid)?;
            rest = after;
            Ok((record.data, lifetime(record.ttl)))
        };
        let mut valid = Duration::MAX;
        for _ in 0..packet.answer_record_count() {
            let (data, time) = record()?;
            valid = valid.min(time);
            match (self.kind, data) {
                (Kind::V4, DnsRecordData::A(ip)) => return Ok(Answer::Address(ip.into(), valid)),
                (Kind::V6, DnsRecordData::Aaaa(ip)) => {
                    return Ok(Answer::Address(ip.into(), valid));
                }
                _ => {}
            }
        }
        for _ in 0..packet.authority_record_count() {
            let (data, time) = record()?;
            if let DnsRecordData::Other(DnsQueryType::Soa, data) = data {
                // RFC 2308, section 5.
                return Ok(Answer::Nothing(valid.min(time).min(minimum(data).ok_or(Invalid)?)));
            }
        }
        Ok(Answer::Nothing(Duration::from_ticks(0)))
    }
}

/// A record's time to live. The highest bit makes it 0 (RFC 2181, section 8).
fn lifetime(seconds: u32) -> Duration {
    Duration::from_secs(if seconds > i32::MAX as u32 { 0 } else { seconds.into() })
}

/// The time for which a zone's names that do not exist may be remembered.
fn minimum(soa: &[u8]) -> Option<Duration> {
    let (names, last) = soa.split_last_chunk()?;
    // Both names have at least one byte.
    (names.len() >= SOA_NUMBERS - 4 + 2).then(|| lifetime(u32::from_be_bytes(*last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));

    fn question(kind: Kind) -> Question {
        Question::new("www.Example.org", kind).unwrap()
    }

    fn read(answer: &[u8]) -> Result<Answer, Invalid> {
        question(Kind::V4).answer(7, answer)
    }

    /// The start of an answer to the query: the code, and the number of answers and authorities.
    fn start(code: u8, answers: u8, authorities: u8) -> Vec<u8> {
        let mut bytes = question(Kind::V4).query(7);
        bytes[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, answers, 0, authorities, 0, 0]);
        bytes
    }

    /// An alias for 300 seconds, then its target's address for 60.
    fn found() -> Vec<u8> {
        let mut bytes = start(0, 2, 0);
        bytes.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 1, 44, 0, 2, 0xc0, 16]);
        bytes.extend([0xc0, 16, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        bytes
    }

    /// No answer; the zone's SOA is valid for 300 seconds, and its minimum is 30.
    fn unknown(code: u8) -> Vec<u8> {
        let mut bytes = start(code, 0, 1);
        bytes.extend([0xc0, 16, 0, 6, 0, 1, 0, 0, 1, 44, 0, 22, 0, 0]);
        bytes.extend([[0; 4], [0; 4], [0; 4], [0; 4], [0, 0, 0, 30]].concat());
        bytes
    }

    #[test]
    fn an_answer_yields_the_address_behind_an_alias_and_its_time_to_live() {
        assert_eq!(read(&found()), Ok(Answer::Address(ADDRESS, Duration::from_secs(60))));
        let mut short = found();
        // The alias's time.
        short[12 + 17 + 4 + 8..][..2].copy_from_slice(&[0, 5]);
        assert_eq!(read(&short), Ok(Answer::Address(ADDRESS, Duration::from_secs(5))));
        short[12 + 17 + 4 + 6] = 0x80;
        assert_eq!(read(&short), Ok(Answer::Address(ADDRESS, Duration::from_secs(0))));
    }

    #[test]
    fn a_name_without_an_address_is_unknown_for_the_minimum_of_its_zone() {
        let nothing = |seconds| Ok(Answer::Nothing(Duration::from_secs(seconds)));
        assert_eq!(read(&unknown(0)), nothing(30));
        assert_eq!(read(&unknown(3)), nothing(30));
        assert_eq!(read(&start(3, 0, 0)), nothing(0));
    }

    #[test]
    fn answers_may_be_truncated_or_refused() {
        let mut bytes = start(5, 0, 0);
        assert_eq!(read(&bytes), Ok(Answer::Refused(5)));
        bytes[2] |= 2;
        assert_eq!(read(&bytes), Ok(Answer::Truncated));
    }

    #[test]
    fn an_answer_to_another_query_is_invalid() {
        let changed = |at: usize, by: u8| {
            let mut bytes = found();
            bytes[at] ^= by;
            bytes
        };
        // The id, that it is an answer, the operation, the number of questions, the name, the type.
        for (at, by) in [(0, 1), (1, 1), (2, 0x80), (2, 0x10), (5, 3), (14, 1), (30, 29)] {
            assert_eq!(read(&changed(at, by)), Err(Invalid), "{at}");
        }
        // A server may change the case of the name.
        assert_eq!(read(&changed(14, 0x20)), read(&found()));
        assert_eq!(question(Kind::V6).answer(7, &found()), Err(Invalid));
    }

    #[test]
    fn malformed_and_cut_answers_are_harmless() {
        for whole in [found(), unknown(3)] {
            for length in 0..whole.len() {
                assert_eq!(read(&whole[..length]), Err(Invalid), "{length}");
            }
            for at in 0..whole.len() {
                for byte in [0, 0x3f, 0x40, 0xc0, 0xff] {
                    let mut malformed = whole.clone();
                    malformed[at] = byte;
                    let _ = read(&malformed);
                }
            }
        }
    }

    #[test]
    fn a_label_has_one_to_sixty_three_characters() {
        let name = |host| Question::new(host, Kind::V4).map(|question| question.name);
        assert_eq!(name("a.bC.").unwrap(), b"\x01a\x02bc\0");
        let (long, many) = ("a".repeat(64), "abc.".repeat(64));
        for wrong in ["", ".", "a..b", ".a", "\u{e9}", &long, &many] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
    }
}
