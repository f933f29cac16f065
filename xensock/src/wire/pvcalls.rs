//! PV Calls version 1 (`xen/include/public/io/pvcalls.h` and its specification).
//!
//! Where the two disagree about the place of `ring_order`, the header and every implementation are
//! right: 128.

use super::address::{addr_of, put_addr};
use super::dialect::{Dialect, Offer, Slots};
use super::extensions;
use super::layout::{EventIndexes, Layout, Way};
use super::slot::{bytes, put, u32_at, u64_at};
use super::{Call, Command, Family, Malformed, Request, Response, RingGrants, RingOffer};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use core::sync::atomic::Ordering;
use xen::{Errno, GrantRef, PAGE_SIZE, Port, Shared};

/// The dialect.
pub static PVCALLS: &dyn Dialect = &PvCalls;

#[derive(Debug)]
struct PvCalls;

const REQUEST: usize = 64;
const RESPONSE: usize = 24;

const SOCK_STREAM: u32 = 1;

/// Offset of `ring_order` in the indexes page, and of `ref[]` behind it.
const RING_ORDER: usize = 128;
const REFS: usize = 132;
/// At most so many pages' references fit into the indexes page.
const MAX_ORDER: u32 = 9;
/// 32 KiB each way, as Linux's backend allows at most.
const DEFAULT_ORDER: u32 = 4;

const _: () = assert!(REFS + (4 << MAX_ORDER) <= PAGE_SIZE);

fn number(command: Command) -> u32 {
    match command {
        Command::Socket => 0,
        Command::Connect => 1,
        Command::Release => 2,
        Command::Bind => 3,
        Command::Listen => 4,
        Command::Accept => 5,
        Command::Poll => 6,
        other => extensions::number(other).unwrap_or(u32::MAX),
    }
}

fn command(number: u32) -> Command {
    match number {
        0 => Command::Socket,
        1 => Command::Connect,
        2 => Command::Release,
        3 => Command::Bind,
        4 => Command::Listen,
        5 => Command::Accept,
        6 => Command::Poll,
        _ => extensions::command(number),
    }
}

/// A direction whose words are at `at`: the header's three, then the event indexes, in the padding.
fn way(at: usize, start: usize, size: u32) -> Way {
    let events = Some(EventIndexes { prod: at + 12, cons: at + 16 });
    Way { cons: at, prod: at + 4, error: at + 8, events, start, size }
}

fn put_ring(slot: &mut [u8], at: usize, ring: &RingOffer) -> Result<(), Errno> {
    PvCalls.put_grants(slot, at, &ring.grants)?;
    put(slot, at + 4, ring.port.0.to_le_bytes());
    Ok(())
}

fn ring_at(slot: &[u8], at: usize) -> Result<RingOffer, Errno> {
    Ok(RingOffer { grants: PvCalls.grants_at(slot, at)?, port: Port(u32_at(slot, at + 4)) })
}

fn decode_call(command: Command, slot: &[u8]) -> Result<Call, Errno> {
    Ok(match command {
        Command::Socket => {
            if [u32_at(slot, 20), u32_at(slot, 24)] != [SOCK_STREAM, 0] {
                return Err(Errno::EAFNOSUPPORT);
            }
            Call::Socket { family: Family::from_number(u32_at(slot, 16))? }
        }
        Command::Connect => Call::Connect {
            addr: addr_of(slot)?,
            flags: u32_at(slot, 48),
            ring: ring_at(slot, 52)?,
        },
        Command::Release => Call::Release { reuse: slot[16] != 0 },
        Command::Bind => Call::Bind { addr: addr_of(slot)? },
        Command::Listen => Call::Listen { backlog: u32_at(slot, 16) },
        Command::Accept => Call::Accept { new: u64_at(slot, 16), ring: ring_at(slot, 24)? },
        Command::Poll => Call::Poll,
        _ => return Err(Errno::ENOTSUP),
    })
}

impl Dialect for PvCalls {
    fn device(&self) -> &'static str {
        "pvcalls"
    }

    fn slots(&self) -> Slots {
        const { Slots::in_a_page(REQUEST, RESPONSE) }
    }

    fn has_socket_command(&self) -> bool {
        true
    }

    fn can_reuse_rings(&self) -> bool {
        true
    }

    fn orders(&self, _: bool) -> RangeInclusive<u32> {
        1..=MAX_ORDER
    }

    fn default_order(&self) -> u32 {
        DEFAULT_ORDER
    }

    fn layout(&self, order: u32) -> Result<Layout, Errno> {
        if !(1..=MAX_ORDER).contains(&order) {
            return Err(Errno::EINVAL);
        }
        let data_pages = 1 << order;
        let half = data_pages * PAGE_SIZE / 2;
        let size = half as u32;
        Ok(Layout {
            pages: 1 + data_pages,
            indexes_page: 0,
            data_page: 1,
            data_pages,
            input: way(0, 0, size),
            output: way(64, half, size),
        })
    }

    fn encode_request(&self, request: &Request, slot: &mut [u8]) -> Result<(), Errno> {
        slot.fill(0);
        put(slot, 0, request.id.to_le_bytes());
        put(slot, 4, number(request.call.command()).to_le_bytes());
        put(slot, 8, request.socket.to_le_bytes());
        match &request.call {
            Call::Socket { family } => {
                put(slot, 16, u32::from(family.number()).to_le_bytes());
                put(slot, 20, SOCK_STREAM.to_le_bytes());
            }
            Call::Connect { addr, flags, ring } => {
                put_addr(slot, *addr);
                put(slot, 48, flags.to_le_bytes());
                put_ring(slot, 52, ring)?;
            }
            Call::Release { reuse } => slot[16] = u8::from(*reuse),
            Call::Bind { addr } => put_addr(slot, *addr),
            Call::Listen { backlog } => put(slot, 16, backlog.to_le_bytes()),
            Call::Accept { new, ring } => {
                put(slot, 16, new.to_le_bytes());
                put_ring(slot, 24, ring)?;
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
        put(slot, 8, response.ret().to_le_bytes());
        put(slot, 16, response.socket.to_le_bytes());
    }

    fn decode_response(&self, slot: &[u8]) -> Response {
        Response {
            id: u32_at(slot, 0),
            command: command(u32_at(slot, 4)),
            socket: u64_at(slot, 16),
            result: Response::result_of(i32::from_le_bytes(bytes(slot, 8))),
            name: None,
        }
    }

    fn put_grants(&self, slot: &mut [u8], at: usize, grants: &RingGrants) -> Result<(), Errno> {
        let RingGrants::Indexes(page) = grants else { return Err(Errno::EINVAL) };
        put(slot, at, page.0.to_le_bytes());
        Ok(())
    }

    fn grants_at(&self, slot: &[u8], at: usize) -> Result<RingGrants, Errno> {
        Ok(RingGrants::Indexes(GrantRef(u32_at(slot, at))))
    }

    fn offer_ring(&self, indexes: Shared<'_>, order: u32, grants: &[GrantRef]) -> RingGrants {
        indexes.store_u32(RING_ORDER, order, Ordering::Relaxed);
        for (slot, data) in grants[1..].iter().enumerate() {
            indexes.store_u32(REFS + 4 * slot, data.0, Ordering::Relaxed);
        }
        RingGrants::Indexes(grants[0])
    }

    fn read_ring(
        &self,
        indexes: Shared<'_>,
        max_order: u32,
    ) -> Result<(u32, Vec<GrantRef>), Errno> {
        let order = indexes.load_u32(RING_ORDER, Ordering::Acquire);
        if order > max_order {
            return Err(Errno::EINVAL);
        }
        let pages = self.layout(order)?.data_pages;
        let grant = |slot| GrantRef(indexes.load_u32(REFS + 4 * slot, Ordering::Relaxed));
        Ok((order, (0..pages).map(grant).collect()))
    }

    fn backend_nodes(&self, max_order: u32) -> Vec<(&'static str, String)> {
        vec![
            ("versions", "1".to_string()),
            ("max-page-order", max_order.min(MAX_ORDER).to_string()),
            ("function-calls", "1".to_string()),
        ]
    }

    fn frontend_nodes(&self) -> Vec<(&'static str, String)> {
        vec![("version", "1".to_string())]
    }

    fn wanted_of_backend(&self) -> &'static [&'static str] {
        &["versions", "max-page-order", "function-calls"]
    }

    fn check_backend(&self, nodes: &[Option<String>]) -> Result<Offer, String> {
        let [versions, max_order, calls] = nodes else {
            return Err("the backend's nodes were not read".to_string());
        };
        let versions = versions.as_deref().unwrap_or("");
        if !versions.split(',').any(|version| version.trim() == "1") {
            return Err(format!(
                "the backend's node `versions` is `{versions}`, and this frontend speaks version 1: \
                 use a backend that offers it"
            ));
        }
        let calls = calls.as_deref().unwrap_or("");
        if calls.trim() != "1" {
            return Err(format!(
                "the backend's node `function-calls` is `{calls}`, not `1`: use a backend that \
                 supports all seven commands"
            ));
        }
        let max_order = max_order.as_deref().unwrap_or("");
        match max_order.trim().parse::<u32>() {
            Ok(order) if order >= 1 => {
                let max_order = order.min(MAX_ORDER);
                let default_order = DEFAULT_ORDER.min(max_order);
                Ok(Offer { min_order: 1, default_order, max_order })
            }
            _ => Err(format!(
                "the backend's node `max-page-order` is `{max_order}`, not a number from 1 on: \
                 the backend must map rings of order 1 at least"
            )),
        }
    }

    fn wanted_of_frontend(&self) -> &'static [&'static str] {
        &["version"]
    }

    fn check_frontend(&self, nodes: &[Option<String>]) -> Result<(), String> {
        match nodes.first().and_then(|node| node.as_deref()).map(str::trim) {
            Some("1") => Ok(()),
            Some(_) => Err("the frontend's node `version` is not `1`, and this backend speaks \
                            version 1"
                .to_string()),
            None => Err("the frontend has no node `version`".to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let mut slot = [0xee; REQUEST];
            PVCALLS.encode_request(&request, &mut slot).unwrap();
            assert_eq!(PVCALLS.decode_request(&slot), Ok(request));
        }
    }

    #[test]
    fn fields_are_where_the_header_puts_them() {
        let call = Call::Connect { addr: "10.0.0.1:258".parse().unwrap(), flags: 0, ring: offer() };
        let mut slot = [0; REQUEST];
        PVCALLS.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[..16], [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slot[16..24], [2, 0, 1, 2, 10, 0, 0, 1]);
        assert_eq!(slot[44..60], [16, 0, 0, 0, 0, 0, 0, 0, 0x0b, 0x0a, 0, 0, 77, 0, 0, 0]);
        assert_eq!(PVCALLS.slots().count, 32);
        assert_eq!(PVCALLS.slots().stride(), 64);
    }

    #[test]
    fn a_response_carries_its_error() {
        for result in [Ok(0), Ok(3), Err(Errno::ECONNREFUSED), Err(Errno(9999))] {
            let response =
                Response { id: 7, command: Command::Accept, socket: 1 << 40, result, name: None };
            let mut slot = [0xee; RESPONSE];
            PVCALLS.encode_response(&response, &mut slot);
            assert_eq!(PVCALLS.decode_response(&slot), response);
        }
        let mut slot = [0; RESPONSE];
        put(&mut slot, 8, i32::MIN.to_le_bytes());
        assert_eq!(PVCALLS.decode_response(&slot).result, Err(Errno(i32::MAX)));
    }

    #[test]
    fn a_request_that_makes_no_sense_can_still_be_answered() {
        let mut slot = [0; REQUEST];
        put(&mut slot, 0, 5u32.to_le_bytes());
        put(&mut slot, 4, 99u32.to_le_bytes());
        put(&mut slot, 8, 6u64.to_le_bytes());
        let error = PVCALLS.decode_request(&slot).unwrap_err();
        assert_eq!(
            error,
            Malformed { id: 5, command: Command::Unknown(99), socket: 6, error: Errno::ENOTSUP }
        );
        let mut answer = [0; RESPONSE];
        PVCALLS.encode_response(&error.answer(), &mut answer);
        assert_eq!(u32_at(&answer, 4), 99);
        assert_eq!(i32::from_le_bytes(bytes(&answer, 8)), -524);

        for (number, error) in [(0, Errno::EAFNOSUPPORT), (1, Errno::EINVAL), (3, Errno::EINVAL)] {
            put(&mut slot, 4, u32::to_le_bytes(number));
            assert_eq!(PVCALLS.decode_request(&slot).unwrap_err().error, error);
        }
    }

    #[test]
    fn a_ring_is_described_in_its_indexes_page() {
        let page = xen::testing::page();
        let grants: Vec<_> = (100..105).map(GrantRef).collect();
        assert_eq!(PVCALLS.offer_ring(page, 2, &grants), RingGrants::Indexes(GrantRef(100)));
        assert_eq!(page.load_u32(128, Ordering::Relaxed), 2);
        assert_eq!(page.load_u32(132, Ordering::Relaxed), 101);
        assert_eq!(PVCALLS.read_ring(page, 4), Ok((2, grants[1..].to_vec())));
        assert_eq!(PVCALLS.read_ring(page, 1), Err(Errno::EINVAL));
        for order in [0, 10, u32::MAX] {
            page.store_u32(128, order, Ordering::Relaxed);
            assert_eq!(PVCALLS.read_ring(page, u32::MAX), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn both_directions_share_the_data_pages_evenly() {
        let layout = PVCALLS.layout(4).unwrap();
        assert_eq!((layout.pages, layout.input.size, layout.output.start), (17, 32768, 32768));
        assert_eq!(PVCALLS.layout(0), Err(Errno::EINVAL));
        assert_eq!(PVCALLS.layout(10), Err(Errno::EINVAL));
    }

    #[test]
    fn a_backend_of_another_version_is_refused_with_its_node_named() {
        let nodes = |versions: &str, order: &str, calls: &str| {
            PVCALLS.check_backend(&[versions, order, calls].map(|node| Some(node.to_string())))
        };
        let orders = |max_order| Ok(Offer { min_order: 1, default_order: 4, max_order });
        assert_eq!(nodes("1,2", "4", "1"), orders(4));
        assert_eq!(nodes("1", "20", "1"), orders(9));
        assert!(nodes("2", "4", "1").unwrap_err().contains("`versions` is `2`"));
        assert!(nodes("1", "0", "1").unwrap_err().contains("`max-page-order` is `0`"));
        assert!(nodes("1", "4", "").unwrap_err().contains("`function-calls`"));
        assert!(PVCALLS.check_backend(&[None, None, None]).is_err());
        assert!(PVCALLS.check_frontend(&[Some("1".into())]).is_ok());
        assert!(PVCALLS.check_frontend(&[None]).is_err());
    }
}
