//! XenSock draft 1 (2016), the protocol that PV Calls came from.
//!
//! There is no command to create a socket: CONNECT and BIND do, and so does SETSOCKOPT where there is
//! one. LISTEN has no backlog. A data ring is one structure over 64 pages, whose references the request
//! itself carries; where the ends have agreed on
//! [`Extensions::RESIZE`](super::Extensions::RESIZE), it may have fewer, in the same proportions.

use super::address::{addr_of, put_addr};
use super::dialect::{Dialect, Offer, Slots};
use super::extensions;
use super::layout::{EventIndexes, Layout, Way};
use super::slot::{bytes, put, u32_at, u64_at};
use super::{Call, Command, Malformed, Request, Response, RingGrants, RingOffer};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use xen::{Errno, GrantRef, PAGE_SIZE, Port, Shared};

/// The dialect.
pub static XENSOCK: &dyn Dialect = &XenSock;

#[derive(Debug)]
struct XenSock;

const REQUEST: usize = 312;
const RESPONSE: usize = 20;

/// `XENSOCK_DATARING_ORDER`.
const ORDER: u32 = 6;
/// The least order with a page for each of `in`, `out` and the indexes.
const MIN_ORDER: u32 = 2;
/// References in a request.
const REFS: usize = 1 << ORDER;

/// How many connections may wait to be accepted: what LISTEN does not say.
const BACKLOG: u32 = 128;

/// Offsets of the request's fields.
const CONNECT_FLAGS: usize = 48;
const CONNECT_REFS: usize = 52;
const CONNECT_PORT: usize = 308;
const ACCEPT_NEW: usize = 16;
const ACCEPT_REFS: usize = 24;
const ACCEPT_PORT: usize = 280;

const _: () = assert!(CONNECT_REFS + 4 * REFS == CONNECT_PORT && CONNECT_PORT + 4 == REQUEST);
const _: () = assert!(ACCEPT_REFS + 4 * REFS == ACCEPT_PORT);

fn number(command: Command) -> u32 {
    match command {
        Command::Connect => 0,
        Command::Release => 3,
        Command::Bind => 4,
        Command::Listen => 5,
        Command::Accept => 6,
        Command::Poll => 7,
        // A frontend never sends it, and nothing answers it.
        Command::Socket => u32::MAX,
        other => extensions::number(other).unwrap_or(u32::MAX),
    }
}

fn command(number: u32) -> Command {
    match number {
        0 => Command::Connect,
        3 => Command::Release,
        4 => Command::Bind,
        5 => Command::Listen,
        6 => Command::Accept,
        7 => Command::Poll,
        _ => extensions::command(number),
    }
}

fn decode_call(command: Command, slot: &[u8]) -> Result<Call, Errno> {
    let ring = |refs, port| -> Result<RingOffer, Errno> {
        Ok(RingOffer { grants: XenSock.grants_at(slot, refs)?, port: Port(u32_at(slot, port)) })
    };
    Ok(match command {
        Command::Connect => Call::Connect {
            addr: addr_of(slot)?,
            flags: u32_at(slot, CONNECT_FLAGS),
            ring: ring(CONNECT_REFS, CONNECT_PORT)?,
        },
        Command::Release => Call::Release { reuse: false },
        Command::Bind => Call::Bind { addr: addr_of(slot)? },
        Command::Listen => Call::Listen { backlog: BACKLOG },
        Command::Accept => {
            Call::Accept { new: u64_at(slot, ACCEPT_NEW), ring: ring(ACCEPT_REFS, ACCEPT_PORT)? }
        }
        Command::Poll => Call::Poll,
        _ => return Err(Errno::ENOTSUP),
    })
}

impl Dialect for XenSock {
    fn device(&self) -> &'static str {
        "xensock"
    }

    fn slots(&self) -> Slots {
        // The response has a size of 24 where u64 is aligned to 8 bytes; its last four say nothing.
        const { Slots::in_a_page(REQUEST, RESPONSE) }
    }

    fn has_socket_command(&self) -> bool {
        false
    }

    fn can_reuse_rings(&self) -> bool {
        false
    }

    fn orders(&self, resizable: bool) -> RangeInclusive<u32> {
        if resizable { MIN_ORDER..=ORDER } else { ORDER..=ORDER }
    }

    fn default_order(&self) -> u32 {
        ORDER
    }

    fn layout(&self, order: u32) -> Result<Layout, Errno> {
        if !(MIN_ORDER..=ORDER).contains(&order) {
            return Err(Errno::EINVAL);
        }
        let pages = 1 << order;
        let quarter = pages / 4 * PAGE_SIZE;
        let events = |prod| Some(EventIndexes { prod, cons: prod + 4 });
        let input =
            Way { cons: 0, prod: 4, error: 16, events: events(24), start: 0, size: quarter as u32 };
        let output = Way {
            cons: 8,
            prod: 12,
            error: 20,
            events: events(32),
            start: quarter,
            size: 2 * quarter as u32,
        };
        Ok(Layout {
            pages,
            indexes_page: pages / 4 * 3,
            data_page: 0,
            data_pages: pages / 4 * 3,
            input,
            output,
        })
    }

    fn encode_request(&self, request: &Request, slot: &mut [u8]) -> Result<(), Errno> {
        slot.fill(0);
        put(slot, 0, request.id.to_le_bytes());
        put(slot, 4, number(request.call.command()).to_le_bytes());
        put(slot, 8, request.socket.to_le_bytes());
        match &request.call {
            Call::Socket { .. } => return Err(Errno::EINVAL),
            Call::Connect { addr, flags, ring } => {
                put_addr(slot, *addr);
                put(slot, CONNECT_FLAGS, flags.to_le_bytes());
                self.put_grants(slot, CONNECT_REFS, &ring.grants)?;
                put(slot, CONNECT_PORT, ring.port.0.to_le_bytes());
            }
            Call::Bind { addr } => put_addr(slot, *addr),
            Call::Accept { new, ring } => {
                put(slot, ACCEPT_NEW, new.to_le_bytes());
                self.put_grants(slot, ACCEPT_REFS, &ring.grants)?;
                put(slot, ACCEPT_PORT, ring.port.0.to_le_bytes());
            }
            _ => {}
        }
        Ok(())
    }

    fn decode_request(&self, slot: &[u8]) -> Result<Request, Malformed> {
        let (id, command, socket) = (u32_at(slot, 0), command(u32_at(slot, 4)), u64_at(slot, 8));
        decode_call(command, slot)
            .map(|call| Request { id, socket, call })
            .map_err(|error| Malformed { id, command, socket, error })
    }

    fn encode_response(&self, response: &Response, slot: &mut [u8]) {
        slot.fill(0);
        put(slot, 0, response.id.to_le_bytes());
        put(slot, 4, number(response.command).to_le_bytes());
        put(slot, 8, response.socket.to_le_bytes());
        put(slot, 16, response.ret().to_le_bytes());
    }

    fn decode_response(&self, slot: &[u8]) -> Response {
        Response {
            id: u32_at(slot, 0),
            command: command(u32_at(slot, 4)),
            socket: u64_at(slot, 8),
            result: Response::result_of(i32::from_le_bytes(bytes(slot, 16))),
            name: None,
        }
    }

    fn put_grants(&self, slot: &mut [u8], at: usize, grants: &RingGrants) -> Result<(), Errno> {
        let RingGrants::Region(grants) = grants else { return Err(Errno::EINVAL) };
        if grants.len() > REFS {
            return Err(Errno::EINVAL);
        }
        for (field, grant) in (at..).step_by(4).zip(grants) {
            put(slot, field, grant.0.to_le_bytes());
        }
        Ok(())
    }

    /// Reference 0, which Xen keeps for itself, is behind the last one of a ring of fewer pages.
    fn grants_at(&self, slot: &[u8], at: usize) -> Result<RingGrants, Errno> {
        let grants: Box<[GrantRef]> = (0..REFS)
            .map(|index| GrantRef(u32_at(slot, at + 4 * index)))
            .take_while(|grant| grant.0 != 0)
            .collect();
        if grants.is_empty() { Err(Errno::EINVAL) } else { Ok(RingGrants::Region(grants)) }
    }

    fn offer_ring(&self, _: Shared<'_>, _: u32, grants: &[GrantRef]) -> RingGrants {
        RingGrants::Region(grants.into())
    }

    fn read_ring(&self, _: Shared<'_>, _: u32) -> Result<(u32, Vec<GrantRef>), Errno> {
        // No request of this dialect names an indexes page.
        Err(Errno::EINVAL)
    }

    fn backend_nodes(&self, _: u32) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn frontend_nodes(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn wanted_of_backend(&self) -> &'static [&'static str] {
        &[]
    }

    fn check_backend(&self, _: &[Option<String>]) -> Result<Offer, String> {
        Ok(Offer { min_order: ORDER, default_order: ORDER, max_order: ORDER })
    }

    fn wanted_of_frontend(&self) -> &'static [&'static str] {
        &[]
    }

    fn check_frontend(&self, _: &[Option<String>]) -> Result<(), String> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Extensions, Protocol};

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
            Call::Listen { backlog: BACKLOG },
            Call::Accept { new: u64::MAX, ring: offer() },
            Call::Poll,
        ];
        for (id, call) in (9u32..).zip(calls) {
            let request = Request { id, socket: 0x0102_0304_0506_0708, call };
            let mut slot = [0xee; REQUEST];
            XENSOCK.encode_request(&request, &mut slot).unwrap();
            assert_eq!(XENSOCK.decode_request(&slot), Ok(request));
        }
        let request =
            Request { id: 1, socket: 2, call: Call::Socket { family: crate::wire::Family::V4 } };
        assert_eq!(XENSOCK.encode_request(&request, &mut [0; REQUEST]), Err(Errno::EINVAL));
    }

    #[test]
    fn fields_are_where_the_draft_puts_them() {
        let addr = "10.0.0.1:258".parse().unwrap();
        let mut slot = [0; REQUEST];
        let call = Call::Connect { addr, flags: 3, ring: offer() };
        XENSOCK.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[..16], [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slot[16..24], [2, 0, 1, 2, 10, 0, 0, 1]);
        assert_eq!(slot[44..56], [16, 0, 0, 0, 3, 0, 0, 0, 100, 0, 0, 0]);
        assert_eq!(slot[304..312], [163, 0, 0, 0, 77, 0, 0, 0]);
        let call = Call::Accept { new: 9, ring: offer() };
        XENSOCK.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[4], 6);
        assert_eq!(slot[16..28], [9, 0, 0, 0, 0, 0, 0, 0, 100, 0, 0, 0]);
        assert_eq!(slot[276..288], [163, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((XENSOCK.slots().count, XENSOCK.slots().stride()), (8, 312));
    }

    #[test]
    fn a_response_is_where_the_draft_puts_it() {
        let response = Response {
            id: 7,
            command: Command::Accept,
            socket: 1 << 40,
            result: Err(Errno::ECONNREFUSED),
            name: None,
        };
        let mut slot = [0xee; RESPONSE];
        XENSOCK.encode_response(&response, &mut slot);
        assert_eq!(slot[..8], [7, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(slot[16..20], (-111i32).to_le_bytes());
        assert_eq!(XENSOCK.decode_response(&slot), response);
    }

    #[test]
    fn a_ring_has_the_sizes_and_places_of_the_draft() {
        let layout = XENSOCK.layout(6).unwrap();
        assert_eq!((layout.pages, layout.indexes_page * PAGE_SIZE), (64, 196_608));
        assert_eq!((layout.input.start, layout.input.size), (0, 65536));
        assert_eq!((layout.output.start, layout.output.size), (65536, 131_072));
        assert_eq!((layout.input.cons, layout.input.prod, layout.input.error), (0, 4, 16));
        assert_eq!((layout.output.cons, layout.output.prod, layout.output.error), (8, 12, 20));
    }

    #[test]
    fn only_who_can_resize_may_have_another_size() {
        let plain = Protocol::from(XENSOCK);
        assert!(plain.layout(5).is_err() && plain.layout(6).is_ok() && plain.layout(7).is_err());
        let resizes = Protocol { extensions: Extensions::RESIZE, ..plain };
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
        let mut slot = [0; REQUEST];
        XENSOCK.encode_request(&request, &mut slot).unwrap();
        assert_eq!(XENSOCK.decode_request(&slot), Ok(request));
    }

    #[test]
    fn a_request_that_makes_no_sense_can_still_be_answered() {
        let mut slot = [0; REQUEST];
        for (number, error) in [
            (1, Errno::ENOTSUP),
            (2, Errno::ENOTSUP),
            (0, Errno::EINVAL),
            (4, Errno::EINVAL),
            (6, Errno::EINVAL),
        ] {
            put(&mut slot, 4, u32::to_le_bytes(number));
            assert_eq!(XENSOCK.decode_request(&slot).unwrap_err().error, error);
        }
    }
}
