//! XenSock draft 1 (2016), the predecessor of PV Calls.
//!
//! It has no command to create a socket, and LISTEN has no backlog. A data ring is one structure of
//! 64 pages, whose grant references the request itself carries. With
//! [`Extensions::RESIZE`](super::Extensions::RESIZE) it may have fewer pages, in the same
//! proportions.

use super::layout::{Direction, EventIndexes, Format, Layout, Slots};
use super::message::Command;
use xen::PAGE_SIZE;

/// `XENSOCK_DATARING_ORDER`.
pub(super) const ORDER: u32 = 6;
/// The smallest order with a page for each of `in`, `out` and the indexes.
pub(super) const MIN_ORDER: u32 = 2;

/// The backlog of every listening socket: LISTEN does not carry one.
pub(super) const BACKLOG: u32 = 128;

pub(super) const FORMAT: Format = Format {
    // C pads the response to 24 bytes where `u64` is aligned to 8. The padding is ignored.
    slots: Slots::in_a_page(312, 20),
    commands: &[
        (Command::Connect, 0),
        (Command::Release, 3),
        (Command::Bind, 4),
        (Command::Listen, 5),
        (Command::Accept, 6),
        (Command::Poll, 7),
        // With Extensions::DATAGRAM.
        (Command::Socket, 262),
    ],
    refs: 1 << ORDER,
    ret: 16,
    socket: 8,
};

/// The first quarter of the pages is `in`, the next two are `out`, then come the indexes.
pub(super) fn layout(order: u32) -> Layout {
    let pages = 1 << order;
    let quarter = pages / 4 * PAGE_SIZE;
    let events = |prod| Some(EventIndexes { prod, cons: prod + 4 });
    Layout {
        pages,
        indexes_page: pages / 4 * 3,
        data_page: 0,
        data_pages: pages / 4 * 3,
        input: Direction {
            cons: 0,
            prod: 4,
            error: 16,
            events: events(24),
            start: 0,
            size: quarter as u32,
        },
        output: Direction {
            cons: 8,
            prod: 12,
            error: 20,
            events: events(32),
            start: quarter,
            size: 2 * quarter as u32,
        },
        dropped: 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::field::put_u32;
    use crate::wire::*;
    use xen::{Errno, GrantRef, Port};

    const PLAIN: Protocol = Protocol { dialect: Dialect::Draft1, extensions: Extensions::empty() };

    fn offer() -> RingOffer {
        let grants = (100..164).map(GrantRef).collect();
        RingOffer { grants: RingGrants::Region(grants), port: Port(77) }
    }

    #[test]
    fn every_request_comes_out_as_it_went_in() {
        let addr = "192.0.2.1:80".parse().unwrap();
        let calls = [
            Call::Connect { addr, flags: 5, ring: offer() },
            Call::Release { reuse: false },
            Call::Bind { addr },
            Call::Listen { backlog: super::BACKLOG },
            Call::Accept { new: u64::MAX, ring: offer() },
            Call::Poll,
        ];
        for (id, call) in (9u32..).zip(calls) {
            let request = Request { id, socket: 0x0102_0304_0506_0708, call };
            let mut slot = [0xee; 312];
            PLAIN.encode_request(&request, &mut slot).unwrap();
            assert_eq!(PLAIN.decode_request(&slot), Ok(request));
        }
        let request = Request { id: 1, socket: 2, call: Call::Socket { family: Family::V4 } };
        assert_eq!(PLAIN.encode_request(&request, &mut [0; 312]), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn fields_are_where_the_draft_puts_them() {
        let addr = "10.0.0.1:258".parse().unwrap();
        let mut slot = [0; 312];
        let call = Call::Connect { addr, flags: 3, ring: offer() };
        PLAIN.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[..16], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slot[16..24], [2, 0, 1, 2, 10, 0, 0, 1]);
        assert_eq!(slot[44..56], [16, 0, 0, 0, 3, 0, 0, 0, 100, 0, 0, 0]);
        assert_eq!(slot[304..312], [163, 0, 0, 0, 77, 0, 0, 0]);
        let call = Call::Accept { new: 9, ring: offer() };
        PLAIN.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[4], 6);
        assert_eq!(slot[16..28], [9, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0]);
        assert_eq!(slot[276..288], [163, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((PLAIN.slots().count, PLAIN.slots().stride()), (8, 312));
    }

    #[test]
    fn a_response_is_where_the_draft_puts_it() {
        let response = Response {
            id: 7,
            command: Command::Accept,
            socket: 1 << 40,
            result: Err(Errno::ECONNREFUSED),
            addr: None,
        };
        let mut slot = [0xee; 20];
        PLAIN.encode_response(&response, &mut slot);
        assert_eq!(slot[..8], [7, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(slot[16..20], (-111i32).to_le_bytes());
        assert_eq!(PLAIN.decode_response(&slot), response);
    }

    #[test]
    fn a_ring_has_the_sizes_and_places_of_the_draft() {
        let layout = Dialect::Draft1.layout(6).unwrap();
        assert_eq!((layout.pages, layout.indexes_page * PAGE_SIZE), (64, 196_608));
        assert_eq!((layout.input.start, layout.input.size), (0, 65536));
        assert_eq!((layout.output.start, layout.output.size), (65536, 131_072));
        assert_eq!((layout.input.cons, layout.input.prod, layout.input.error), (0, 4, 16));
        assert_eq!((layout.output.cons, layout.output.prod, layout.output.error), (8, 12, 20));
    }

    #[test]
    fn only_who_can_resize_may_have_another_size() {
        assert!(PLAIN.layout(5).is_err() && PLAIN.layout(6).is_ok() && PLAIN.layout(7).is_err());
        let resizes = Protocol { extensions: Extensions::RESIZE, ..PLAIN };
        let least = resizes.layout(2).unwrap();
        assert_eq!((least.pages, least.indexes_page), (4, 3));
        assert_eq!((least.input.size, least.output.size, least.output.start), (4096, 8192, 4096));
        assert!(resizes.layout(1).is_err() && resizes.layout(7).is_err());

        let small = RingOffer {
            grants: RingGrants::Region((8..12).map(GrantRef).collect()),
            port: Port(1),
        };
        let call = Call::Accept { new: 1, ring: small };
        let request = Request { id: 1, socket: 2, call };
        let mut slot = [0; 312];
        PLAIN.encode_request(&request, &mut slot).unwrap();
        assert_eq!(PLAIN.decode_request(&slot), Ok(request));
    }

    #[test]
    fn a_request_that_makes_no_sense_can_still_be_answered() {
        let mut slot = [0; 312];
        for (number, error) in [
            (1, Errno::ENOTSUP),
            (2, Errno::ENOTSUP),
            (0, Errno::EINVAL),
            (4, Errno::EINVAL),
            (6, Errno::EINVAL),
        ] {
            put_u32(&mut slot, 4, number);
            assert_eq!(PLAIN.decode_request(&slot).unwrap_err().error, error);
        }
    }
}
