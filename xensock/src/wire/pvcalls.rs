//! PV Calls version 1 (`xen/include/public/io/pvcalls.h` and its specification).
//!
//! The two disagree about the offset of `ring_order`: 128 in the header and every implementation,
//! 76 in the specification's drawing. This module follows the header.

use super::field::u32_at;
use super::layout::{Direction, EventIndexes, Format, Layout, Slots};
use super::message::{Command, RingGrants};
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use xen::{GrantRef, PAGE_SIZE, Shared};

/// Offset of `ring_order` in the indexes page, and of `ref[]` behind it.
const RING_ORDER: usize = 128;
const REFS: usize = 132;
/// The largest order whose grant references fit into the indexes page.
pub(super) const MAX_ORDER: u32 = 9;
/// 32 KiB each way, the most that Linux's backend allows.
pub(super) const DEFAULT_ORDER: u32 = 4;

/// The bytes of an indexes page up to the end of its list of grants.
pub const RING_LIST: usize = REFS + (4 << MAX_ORDER);

const _: () = assert!(RING_LIST <= PAGE_SIZE);

pub(super) const FORMAT: Format = Format {
    slots: Slots::in_a_page(64, 24),
    commands: &[
        (Command::Socket, 0),
        (Command::Connect, 1),
        (Command::Release, 2),
        (Command::Bind, 3),
        (Command::Listen, 4),
        (Command::Accept, 5),
        (Command::Poll, 6),
    ],
    refs: 1,
    ret: 8,
    socket: 16,
};

/// The indexes page comes first; `in` is the first half of the data pages, `out` the second.
pub(super) fn layout(order: u32) -> Layout {
    let data_pages = 1 << order;
    let half = data_pages * PAGE_SIZE / 2;
    // The header's three words, then the event indexes in its padding.
    let direction = |at, start| {
        let events = Some(EventIndexes { prod: at + 12, cons: at + 16 });
        Direction { cons: at, prod: at + 4, error: at + 8, events, start, size: half as u32 }
    };
    Layout {
        pages: 1 + data_pages,
        indexes_page: 0,
        data_page: 1,
        data_pages,
        input: direction(0, 0),
        output: direction(64, half),
        dropped: 20,
    }
}

/// Writes the order and the grants of the data pages into the indexes page, the first of `grants`.
pub(super) fn offer_ring(indexes: Shared<'_>, order: u32, grants: &[GrantRef]) -> RingGrants {
    indexes.store_u32(RING_ORDER, order, Ordering::Relaxed);
    for (at, data) in (REFS..).step_by(4).zip(&grants[1..]) {
        indexes.store_u32(at, data.0, Ordering::Relaxed);
    }
    RingGrants::Indexes(grants[0])
}

/// Reads what [`offer_ring`] wrote, unless the order is 0 or larger than `max_order`.
pub(super) fn read_ring(indexes: &[u8; RING_LIST], max_order: u32) -> Option<(u32, Vec<GrantRef>)> {
    let order = u32_at(indexes, RING_ORDER);
    if order == 0 || order > max_order {
        return None;
    }
    let grant = |page| GrantRef(u32_at(indexes, REFS + 4 * page));
    Some((order, (0..1usize << order).map(grant).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::field::put_u32;
    use crate::wire::*;
    use xen::{Errno, Port};

    const PLAIN: Protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::empty() };

    fn offer() -> RingOffer {
        RingOffer { grants: RingGrants::Indexes(GrantRef(0x0a0b)), port: Port(77) }
    }

    #[test]
    fn every_request_comes_out_as_it_went_in() {
        let addr = "192.0.2.1:80".parse().unwrap();
        let calls = [
            Call::Socket { family: Family::V4 },
            Call::Connect { addr, flags: 5, ring: offer() },
            Call::Release { reuse: true },
            Call::Bind { addr },
            Call::Listen { backlog: 128 },
            Call::Accept { new: u64::MAX, ring: offer() },
            Call::Poll,
        ];
        for (id, call) in (9u32..).zip(calls) {
            let request = Request { id, socket: 0x0102_0304_0506_0708, call };
            let mut slot = [0xee; 64];
            PLAIN.encode_request(&request, &mut slot).unwrap();
            assert_eq!(PLAIN.decode_request(&slot), Ok(request));
        }
    }

    #[test]
    fn fields_are_where_the_header_puts_them() {
        let call = Call::Connect { addr: "10.0.0.1:258".parse().unwrap(), flags: 0, ring: offer() };
        let mut slot = [0; 64];
        PLAIN.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[..16], [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slot[16..24], [2, 0, 1, 2, 10, 0, 0, 1]);
        assert_eq!(slot[44..60], [16, 0, 0, 0, 0, 0, 0, 0, 0x0b, 0x0a, 0, 0, 77, 0, 0, 0]);
        assert_eq!(PLAIN.slots().count, 32);
        assert_eq!(PLAIN.slots().stride(), 64);
    }

    #[test]
    fn a_response_carries_its_error() {
        for result in [Ok(0), Ok(3), Err(Errno::ECONNREFUSED), Err(Errno(9999))] {
            let response =
                Response { id: 7, command: Command::Accept, socket: 1 << 40, result, addr: None };
            let mut slot = [0xee; 24];
            PLAIN.encode_response(&response, &mut slot);
            assert_eq!(PLAIN.decode_response(&slot), response);
        }
        let mut slot = [0; 24];
        put_u32(&mut slot, 8, i32::MIN as u32);
        assert_eq!(PLAIN.decode_response(&slot).result, Err(Errno(i32::MAX)));
    }

    #[test]
    fn a_request_that_makes_no_sense_can_still_be_answered() {
        let mut slot = [0; 64];
        put_u32(&mut slot, 0, 5);
        put_u32(&mut slot, 4, 99);
        put_u32(&mut slot, 8, 6);
        let error = PLAIN.decode_request(&slot).unwrap_err();
        assert_eq!(
            error,
            Malformed {
                header: Header { id: 5, command: Command::Unknown(99), socket: 6 },
                error: Errno::ENOTSUP
            }
        );
        let mut answer = [0; 24];
        PLAIN.encode_response(&error.answer(), &mut answer);
        assert_eq!(u32::from_le_bytes(answer[4..8].try_into().unwrap()), 99);
        assert_eq!(i32::from_le_bytes(answer[8..12].try_into().unwrap()), -524);

        for (number, error) in [(0, Errno::EAFNOSUPPORT), (1, Errno::EINVAL), (3, Errno::EINVAL)] {
            put_u32(&mut slot, 4, number);
            assert_eq!(PLAIN.decode_request(&slot).unwrap_err().error, error);
        }
    }

    #[test]
    fn a_ring_is_described_in_its_indexes_page() {
        let page = xen::testing::page();
        let grants: Vec<_> = (100..105).map(GrantRef).collect();
        assert_eq!(
            Dialect::PvCalls.offer_ring(page, 2, &grants),
            RingGrants::Indexes(GrantRef(100))
        );
        assert_eq!(page.load_u32(128, Ordering::Relaxed), 2);
        assert_eq!(page.load_u32(132, Ordering::Relaxed), 101);
        let mut list = [0; RING_LIST];
        page.read(0, &mut list);
        assert_eq!(Dialect::PvCalls.read_ring(&list, 4), Ok((2, grants[1..].to_vec())));
        assert_eq!(Dialect::PvCalls.read_ring(&list, 1), Err(Errno::EINVAL));
        for order in [0u32, 10, u32::MAX] {
            list[128..132].copy_from_slice(&order.to_le_bytes());
            assert_eq!(Dialect::PvCalls.read_ring(&list, u32::MAX), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn both_directions_share_the_data_pages_evenly() {
        let layout = Dialect::PvCalls.layout(4).unwrap();
        assert_eq!((layout.pages, layout.input.size, layout.output.start), (17, 32768, 32768));
        assert_eq!(Dialect::PvCalls.layout(0), Err(Errno::EINVAL));
        assert_eq!(Dialect::PvCalls.layout(10), Err(Errno::EINVAL));
    }
}
