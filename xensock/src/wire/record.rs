//! Records: datagrams on the data ring of a datagram socket.
//!
//! A record is a header of [`RECORD_HEADER`] bytes, a payload, and unused bytes up to the next
//! record. The header's fields are the record's size (`u32`), the payload's length (`u32`), an
//! address as in a request but without a length (28 bytes), and a negated error number (`i32`).

use super::field::{ADDR_SIZE, Family, bytes, put, put_sockaddr, put_u32, sockaddr, u32_at};
use core::net::SocketAddr;
use xen::frontend::{copy_in, copy_out, len, split_at};
use xen::{Errno, Shared};

/// The bytes of a record's header.
pub const RECORD_HEADER: usize = ERROR + 4;

const LEN: usize = 4;
const ADDR: usize = 8;
const ERROR: usize = ADDR + ADDR_SIZE;

/// Records begin at multiples of this many bytes.
const ALIGN: usize = 8;

/// The most bytes in a datagram of UDP, whose headers and payload have a length of 16 bits. IPv4
/// counts its own header, too.
pub const fn longest_payload(family: Family) -> usize {
    match family {
        Family::V4 => u16::MAX as usize - 20 - 8,
        Family::V6 => u16::MAX as usize - 8,
    }
}

/// The header of a record.
///
/// ```
/// use xensock::wire::Record;
///
/// let to = "192.0.2.1:53".parse().unwrap();
/// let record = Record::new(12, Some(to));
/// assert_eq!((record.size, record.len), (56, 12));
/// assert_eq!(Record::decode(&record.encode(), 56), Ok(record));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Bytes from the start of this record to the start of the next one, a multiple of 8.
    pub size: u32,
    /// Bytes of the payload.
    pub len: u32,
    /// The sender in `in`, the destination in `out`. A connected socket needs none in `out`.
    pub addr: Option<SocketAddr>,
    /// In `in`: the record is no datagram but the error of an earlier one in `out`, which was for
    /// this address.
    pub error: Option<Errno>,
}

impl Record {
    /// A datagram's record.
    pub fn new(len: usize, addr: Option<SocketAddr>) -> Self {
        Record { size: Record::space(len) as u32, len: len as u32, addr, error: None }
    }

    /// The record of an error.
    pub fn error(error: Errno, addr: Option<SocketAddr>) -> Self {
        Record { error: Some(error), ..Record::new(0, addr) }
    }

    /// The least bytes of a record with a payload of so many.
    pub const fn space(payload: usize) -> usize {
        (RECORD_HEADER + payload).next_multiple_of(ALIGN)
    }

    /// The longest payload in a ring, one of whose directions has `size` bytes.
    pub const fn longest(size: u32) -> usize {
        size as usize - RECORD_HEADER
    }

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; RECORD_HEADER] {
        let mut header = [0; RECORD_HEADER];
        put_u32(&mut header, 0, self.size);
        put_u32(&mut header, LEN, self.len);
        put_sockaddr(&mut header[ADDR..ERROR], self.addr);
        put(&mut header, ERROR, self.error.map_or(0, Errno::negated).to_le_bytes());
        header
    }

    /// Reads a header, in front of which there are `ready` bytes. [`Errno::EPROTO`] if the record
    /// is malformed or not complete.
    pub fn decode(header: &[u8; RECORD_HEADER], ready: usize) -> Result<Record, Errno> {
        let (size, len) = (u32_at(header, 0), u32_at(header, LEN));
        let fits =
            (len as usize).checked_add(RECORD_HEADER).is_some_and(|end| end <= size as usize);
        if !fits || size as usize > ready || !size.is_multiple_of(ALIGN as u32) {
            return Err(Errno::EPROTO);
        }
        let addr = match bytes(header, ADDR) {
            [0, 0] => None,
            _ => Some(sockaddr(&header[ADDR..ERROR], ADDR_SIZE as u32).or(Err(Errno::EPROTO))?),
        };
        let error = Errno::check(i64::from(i32::from_le_bytes(bytes(header, ERROR)))).err();
        Ok(Record { size, len, addr, error })
    }

    /// Writes the header at the start of the room.
    ///
    /// # Panics
    /// If there is too little room.
    pub fn put(&self, room: &[Shared<'_>; 2]) {
        assert_eq!(copy_in(room, &self.encode()), RECORD_HEADER, "no room for a record's header");
    }

    /// Takes apart what is ready in a ring: the first record's header, read once, its payload, and
    /// what comes after it. `None` if nothing is ready. Errors are those of [`Record::decode`].
    pub fn next(data: [Shared<'_>; 2]) -> Result<Option<Next<'_>>, Errno> {
        if len(&data) == 0 {
            return Ok(None);
        }
        let mut header = [0; RECORD_HEADER];
        if copy_out(&data, &mut header) < RECORD_HEADER {
            return Err(Errno::EPROTO);
        }
        let record = Record::decode(&header, len(&data))?;
        let (whole, rest) = split_at(data, record.size as usize);
        let (_, body) = split_at(whole, RECORD_HEADER);
        let (payload, _) = split_at(body, record.len as usize);
        Ok(Some(Next { record, payload, rest }))
    }
}

/// A record at the start of what is ready in a ring.
#[derive(Clone, Copy)]
pub struct Next<'a> {
    /// Its header.
    pub record: Record,
    /// Its payload, which the other end may still change.
    pub payload: [Shared<'a>; 2],
    /// What comes after it.
    pub rest: [Shared<'a>; 2],
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Consumer, NotifyPolicy, Producer};
    use crate::wire::{Dialect, Extensions, Layout, Protocol, Region};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::cell::UnsafeCell;
    use std::collections::VecDeque;
    use std::sync::atomic::Ordering::Relaxed;

    /// A ring of the smallest order, one page each way.
    fn layout() -> Layout {
        let extensions = Extensions::EVENT_INDEX | Extensions::DATAGRAM;
        Protocol { dialect: Dialect::PvCalls, extensions }.layout(1).unwrap()
    }

    /// Both ends of `out`, behind the first `start` bytes.
    fn ends(region: Region<'_>, start: u32) -> (Producer, Consumer) {
        let output = layout().output;
        for index in [output.prod, output.cons] {
            region.indexes.store_u32(index, start, Relaxed);
        }
        let consumer = Consumer::at(output, NotifyPolicy::FullOrEmpty, start);
        (Producer::at(output, start), consumer)
    }

    fn with_region(test: impl FnOnce(Region<'_>)) {
        let memory: Vec<_> = (0..3 * 4096).map(|_| UnsafeCell::new(0)).collect();
        test(layout().split(Shared::from_cells(&memory)));
    }

    fn addr() -> impl Strategy<Value = Option<SocketAddr>> {
        let (v4, v6) = (any::<([u8; 4], u16)>(), any::<([u8; 16], u16)>());
        prop_oneof![
            Just(None),
            v4.prop_map(|addr| Some(addr.into())),
            v6.prop_map(|addr| Some(addr.into()))
        ]
    }

    proptest! {
        #[test]
        fn records_come_out_whole_and_in_order(
            start in any::<u32>().prop_map(|start| start & !7),
            steps in vec((any::<bool>(), addr(), 0usize..=Record::longest(4096), 0usize..4), 1..60),
        ) {
            with_region(|region| {
                let (mut producer, mut consumer) = ends(region, start);
                let (mut sent, mut seed) = (VecDeque::new(), 0u8);
                for (sends, addr, len, slack) in steps {
                    if sends {
                        let room = producer.room(region).unwrap();
                        let least = Record::new(len, addr);
                        let record = Record { size: least.size + 8 * slack as u32, ..least };
                        if crate::ring::len(&room) < record.size as usize {
                            continue;
                        }
                        let payload: Vec<_> = (0..len).map(|at| (at as u8) ^ seed).collect();
                        seed += 1;
                        record.put(&room);
                        copy_in(&split_at(room, RECORD_HEADER).1, &payload);
                        let _ = producer.advance(region, record.size as usize);
                        sent.push_back((record, payload));
                    } else if let Some((record, payload)) = sent.pop_front() {
                        let next = Record::next(consumer.data(region).unwrap()).unwrap().unwrap();
                        assert_eq!(next.record, record);
                        let mut copy = vec![0; payload.len()];
                        assert_eq!(copy_out(&next.payload, &mut copy), payload.len());
                        assert_eq!(copy, payload);
                        let _ = consumer.advance(region, record.size as usize);
                    } else {
                        assert!(Record::next(consumer.data(region).unwrap()).unwrap().is_none());
                    }
                }
            });
        }

        #[test]
        fn whatever_is_in_a_ring_its_records_stay_within_it(
            bytes in vec(any::<u8>(), 0..400),
            start in any::<u32>(),
        ) {
            with_region(|region| {
                let (mut producer, mut consumer) = ends(region, start);
                copy_in(&producer.room(region).unwrap(), &bytes);
                let _ = producer.advance(region, bytes.len());
                let mut data = consumer.data(region).unwrap();
                while let Ok(Some(next)) = Record::next(data) {
                    assert_eq!(len(&next.payload), next.record.len as usize);
                    assert_eq!(len(&next.rest) + next.record.size as usize, len(&data));
                    data = next.rest;
                }
            });
        }
    }

    #[test]
    fn a_record_is_where_the_specification_puts_it() {
        let header = Record::new(1, "1.2.3.4:258".parse().ok()).encode();
        assert_eq!(header[..16], [48, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 2, 1, 2, 3, 4]);
        assert_eq!(header[16..], [0; 24]);
        let header = Record::error(Errno::ECONNREFUSED, None).encode();
        assert_eq!(header[..8], [40, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(header[36..], (-111i32).to_le_bytes());
        assert_eq!((Record::longest(65536), Record::space(Record::longest(4096))), (65496, 4096));
    }

    #[test]
    fn a_malformed_record_is_refused() {
        let good = Record::new(16, "1.2.3.4:5".parse().ok()).encode();
        assert!(Record::decode(&good, 56).is_ok());
        assert_eq!(Record::decode(&good, 55), Err(Errno::EPROTO), "it is not complete");
        for (at, value) in [(0, 48), (0, 57), (0, 0), (4, 17), (7, 0xff), (8, 1)] {
            let mut wrong = good;
            wrong[at] = value;
            assert_eq!(Record::decode(&wrong, 4096), Err(Errno::EPROTO), "{at}: {value}");
        }
    }
}
