//! A dialect with the extensions that both ends have agreed on.

use super::dialect::{Dialect, Offer, Slots};
use super::extensions::{self, Extensions, FIELDS, NAMED_RESPONSE};
use super::slot::{u32_at, u64_at};
use super::{Call, Family, Layout, Malformed, Request, Response};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use xen::{Errno, GrantRef, Shared};

/// What two ends speak while they are connected.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    /// The dialect.
    pub dialect: &'static dyn Dialect,
    /// What goes beyond it.
    pub extensions: Extensions,
}

impl From<&'static dyn Dialect> for Protocol {
    /// The plain dialect.
    fn from(dialect: &'static dyn Dialect) -> Self {
        Protocol { dialect, extensions: Extensions::empty() }
    }
}

/// The backend's nodes about the orders of rings, where these can be chosen.
const ORDERS: [&str; 3] = ["min-page-order", "default-page-order", "max-page-order"];

impl Protocol {
    /// Whether both ends have agreed on an extension.
    pub fn has(&self, extension: Extensions) -> bool {
        self.extensions.contains(extension)
    }

    /// The slots of the command ring.
    pub fn slots(&self) -> Slots {
        let slots = self.dialect.slots();
        match self.has(Extensions::NAMES) {
            // The response has room in the slot, so the slots stay where they are.
            true => Slots { response: NAMED_RESPONSE, ..slots },
            false => slots,
        }
    }

    /// The orders that a data ring may have.
    pub fn orders(&self) -> RangeInclusive<u32> {
        self.dialect.orders(self.has(Extensions::RESIZE))
    }

    /// The places in a data ring of this order. [`Errno::EINVAL`] if there is no such order.
    pub fn layout(&self, order: u32) -> Result<Layout, Errno> {
        if !self.orders().contains(&order) {
            return Err(Errno::EINVAL);
        }
        let mut layout = self.dialect.layout(order)?;
        if !self.has(Extensions::EVENT_INDEX) {
            layout.input.events = None;
            layout.output.events = None;
        }
        Ok(layout)
    }

    /// Reads, once, the order and the data pages' grants from an indexes page, see
    /// [`Dialect::read_ring`].
    pub fn read_ring(
        &self,
        indexes: Shared<'_>,
        max_order: u32,
    ) -> Result<(u32, Vec<GrantRef>), Errno> {
        self.dialect.read_ring(indexes, max_order)
    }

    /// Writes a request. [`Errno::EAFNOSUPPORT`] if it cannot carry the address,
    /// [`Errno::EOPNOTSUPP`] if the command is part of an extension that was not agreed on.
    pub fn encode_request(&self, request: &Request, slot: &mut [u8]) -> Result<(), Errno> {
        self.carries(&request.call)?;
        self.dialect.encode_request(request, slot)?;
        extensions::encode_fields(&request.call, slot);
        if let Call::Resize { grants } = &request.call {
            self.dialect.put_grants(slot, FIELDS, grants)?;
        }
        Ok(())
    }

    /// Reads a request.
    pub fn decode_request(&self, slot: &[u8]) -> Result<Request, Malformed> {
        let command = extensions::command(u32_at(slot, 4));
        let malformed = |command, error| Malformed {
            id: u32_at(slot, 0),
            command,
            socket: u64_at(slot, 8),
            error,
        };
        let call = match extensions::extension_of(command) {
            None => {
                let request = self.dialect.decode_request(slot)?;
                return match self.carries(&request.call) {
                    Ok(()) => Ok(request),
                    Err(error) => Err(malformed(request.call.command(), error)),
                };
            }
            Some(extension) if !self.has(extension) => Err(Errno::ENOTSUP),
            Some(Extensions::RESIZE) => {
                self.dialect.grants_at(slot, FIELDS).map(|grants| Call::Resize { grants })
            }
            Some(_) => extensions::decode_fields(command, slot),
        };
        call.map(|call| Request { id: u32_at(slot, 0), socket: u64_at(slot, 8), call })
            .map_err(|error| malformed(command, error))
    }

    /// Writes a response.
    pub fn encode_response(&self, response: &Response, slot: &mut [u8]) {
        self.dialect.encode_response(response, slot);
        if self.has(Extensions::NAMES) {
            extensions::put_name(slot, response.name);
        }
    }

    /// Reads a response.
    pub fn decode_response(&self, slot: &[u8]) -> Response {
        let name = self.has(Extensions::NAMES).then(|| extensions::name_at(slot)).flatten();
        Response { name, ..self.dialect.decode_response(slot) }
    }

    /// Whether a call can be made with what was agreed on.
    fn carries(&self, call: &Call) -> Result<(), Errno> {
        let family = match *call {
            Call::Socket { family } => family,
            Call::Connect { addr, .. } | Call::Bind { addr } => Family::of(addr),
            _ => Family::V4,
        };
        if family == Family::V6 && !self.has(Extensions::IPV6) {
            return Err(Errno::EAFNOSUPPORT);
        }
        match extensions::extension_of(call.command()) {
            Some(extension) if !self.has(extension) => Err(Errno::EOPNOTSUPP),
            _ => Ok(()),
        }
    }

    /// The nodes that a backend publishes, and their values: its extensions, and rings up to
    /// `max_order`.
    pub fn backend_nodes(&self, max_order: u32) -> Vec<(&'static str, String)> {
        let mut nodes = self.dialect.backend_nodes(max_order);
        if self.has(Extensions::RESIZE) {
            let orders = self.orders();
            let max = max_order.clamp(*orders.start(), *orders.end());
            let default = self.dialect.default_order().min(max);
            nodes.retain(|(name, _)| !ORDERS.contains(name));
            let values = [*orders.start(), default, max].map(|order| order.to_string());
            nodes.extend(ORDERS.into_iter().zip(values));
        }
        nodes.extend(self.extensions.nodes());
        nodes
    }

    /// The names of the backend's nodes that [`with_backend`](Protocol::with_backend) wants to see.
    pub fn wanted_of_backend(&self) -> Vec<&'static str> {
        let own = self.dialect.wanted_of_backend().iter().copied();
        own.chain(ORDERS).chain(Extensions::node_names()).collect()
    }

    /// What a frontend that speaks this will speak with a backend of these nodes, in the order of
    /// [`wanted_of_backend`](Protocol::wanted_of_backend). An error names the node and what to do.
    pub fn with_backend(&self, nodes: &[Option<String>]) -> Result<(Protocol, Offer), String> {
        let own = self.dialect.wanted_of_backend().len();
        if nodes.len() != own + ORDERS.len() + Extensions::node_names().count() {
            return Err("the backend's nodes were not read".to_string());
        }
        let (own, rest) = nodes.split_at(own);
        let (orders, features) = rest.split_at(ORDERS.len());
        let plain = self.dialect.check_backend(own)?;
        let theirs =
            Extensions::read(features).map_err(|reason| format!("of the backend, {reason}"))?;
        let protocol = Protocol { extensions: self.extensions & theirs, ..*self };
        if !protocol.has(Extensions::RESIZE) {
            let possible = protocol.orders();
            let clamp = |order: u32| order.clamp(*possible.start(), *possible.end());
            let max = clamp(plain.max_order);
            let (min, default) = (*possible.start(), plain.default_order.min(max));
            let offer = Offer { min_order: min, default_order: clamp(default), max_order: max };
            return Ok((protocol, offer));
        }
        let mut numbers = [0; ORDERS.len()];
        for ((number, name), value) in numbers.iter_mut().zip(ORDERS).zip(orders) {
            let value = value.as_deref().unwrap_or("").trim();
            *number = value.parse::<u32>().map_err(|_| {
                format!(
                    "the backend's node `{name}` is `{value}`, not a number of ring pages' order"
                )
            })?;
        }
        let possible = protocol.orders();
        let [min, default, max] = numbers;
        let (min, max) = (min.max(*possible.start()), max.min(*possible.end()));
        if min > max || !(min..=max).contains(&default) {
            return Err(format!(
                "the backend's nodes `min-page-order`, `default-page-order` and `max-page-order` are \
                 {}, {} and {}, of which none is left",
                numbers[0], numbers[1], numbers[2]
            ));
        }
        Ok((protocol, Offer { min_order: min, default_order: default, max_order: max }))
    }

    /// The nodes that a frontend publishes beside `port` and `ring-ref`, and their values.
    pub fn frontend_nodes(&self) -> Vec<(&'static str, String)> {
        let mut nodes = self.dialect.frontend_nodes();
        nodes.extend(self.extensions.nodes());
        nodes
    }

    /// The names of the frontend's nodes that [`with_frontend`](Protocol::with_frontend) wants to see.
    pub fn wanted_of_frontend(&self) -> Vec<&'static str> {
        let own = self.dialect.wanted_of_frontend().iter().copied();
        own.chain(Extensions::node_names()).collect()
    }

    /// What a backend that offers this will speak with a frontend of these nodes, likewise.
    pub fn with_frontend(&self, nodes: &[Option<String>]) -> Result<Protocol, String> {
        let own = self.dialect.wanted_of_frontend().len();
        if nodes.len() < own {
            return Err("the frontend's nodes were not read".to_string());
        }
        let (own, features) = nodes.split_at(own);
        self.dialect.check_frontend(own)?;
        let theirs =
            Extensions::read(features).map_err(|reason| format!("of the frontend, {reason}"))?;
        Ok(Protocol { extensions: self.extensions & theirs, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Command, How, PVCALLS, RingGrants, SocketOption, XENSOCK, dialects};

    fn all(dialect: &'static dyn Dialect) -> Protocol {
        Protocol { dialect, extensions: Extensions::all() }
    }

    fn grants(protocol: Protocol) -> RingGrants {
        match protocol.dialect.has_socket_command() {
            true => RingGrants::Indexes(GrantRef(9)),
            false => RingGrants::Region((8..16).map(GrantRef).collect()),
        }
    }

    fn calls(protocol: Protocol) -> [Call; 7] {
        [
            Call::SetOption { option: SocketOption::BusyPoll, value: 50 },
            Call::GetOption { option: SocketOption::KeepAlive },
            Call::Shutdown { how: How::Write },
            Call::LocalName,
            Call::PeerName,
            Call::Resize { grants: grants(protocol) },
            Call::Bind { addr: "[2001:db8::1]:80".parse().unwrap() },
        ]
    }

    #[test]
    fn extended_requests_are_the_same_in_every_dialect_and_come_out_as_they_went_in() {
        let mut slots = Vec::new();
        for dialect in dialects() {
            let protocol = all(dialect);
            for call in calls(protocol) {
                let request = Request { id: 5, socket: 6, call };
                let mut slot = vec![0xee; protocol.slots().request];
                protocol.encode_request(&request, &mut slot).unwrap();
                slots.push((request.call.command(), slot[..52].to_vec()));
                assert_eq!(protocol.decode_request(&slot), Ok(request));
            }
        }
        let (one, other) = slots.split_at(slots.len() / 2);
        for (one, other) in one.iter().zip(other) {
            if !matches!(one.0, Command::Resize | Command::Bind) {
                assert_eq!(one, other);
            }
        }
    }

    #[test]
    fn fields_of_extensions_are_where_the_specification_puts_them() {
        let mut slot = [0; 64];
        let mut encoded = |call| {
            let request = Request { id: 1, socket: 2, call };
            all(PVCALLS).encode_request(&request, &mut slot).unwrap();
            slot
        };
        let set = encoded(Call::SetOption { option: SocketOption::KeepIdle, value: 258 });
        assert_eq!(set[4..8], 256u32.to_le_bytes());
        assert_eq!(set[16..24], [5, 0, 0, 0, 2, 1, 0, 0]);
        let shut = encoded(Call::Shutdown { how: How::Write });
        assert_eq!((&shut[4..8], shut[16]), (&258u32.to_le_bytes()[..], 1));
        let resize = encoded(Call::Resize { grants: RingGrants::Indexes(GrantRef(0x0102)) });
        assert_eq!(
            (&resize[4..8], &resize[16..20]),
            (&261u32.to_le_bytes()[..], &[2, 1, 0, 0][..])
        );
    }

    #[test]
    fn what_was_not_agreed_on_is_refused_at_both_ends() {
        for dialect in dialects() {
            let (rich, plain) = (all(dialect), Protocol::from(dialect));
            for call in calls(rich) {
                let request = Request { id: 5, socket: 6, call };
                let mut slot = vec![0; plain.slots().request];
                let six = matches!(request.call, Call::Bind { .. });
                let (sent, got) = match six {
                    true => (Errno::EAFNOSUPPORT, Errno::EAFNOSUPPORT),
                    false => (Errno::EOPNOTSUPP, Errno::ENOTSUP),
                };
                assert_eq!(plain.encode_request(&request, &mut slot), Err(sent));
                rich.encode_request(&request, &mut slot).unwrap();
                let refused = plain.decode_request(&slot).unwrap_err();
                assert_eq!((refused.id, refused.socket, refused.error), (5, 6, got));
            }
        }
    }

    #[test]
    fn a_response_has_its_name_where_names_were_agreed_on() {
        for dialect in dialects() {
            for name in [None, Some("10.1.2.3:4".parse().unwrap()), "[::1]:5".parse().ok()] {
                let response =
                    Response { id: 1, command: Command::Accept, socket: 3, result: Ok(0), name };
                let protocol = all(dialect);
                assert_eq!(protocol.slots().stride(), dialect.slots().stride());
                let mut slot = vec![0xee; protocol.slots().response];
                protocol.encode_response(&response, &mut slot);
                assert_eq!(protocol.decode_response(&slot), response);
                let plain = Protocol::from(dialect).decode_response(&slot);
                assert_eq!(plain, Response { name: None, ..response });
            }
        }
    }

    fn values(protocol: Protocol, nodes: &[(&str, String)]) -> Vec<Option<String>> {
        let value = |name| nodes.iter().find(|node| node.0 == name).map(|node| node.1.clone());
        protocol.wanted_of_backend().into_iter().map(value).collect()
    }

    #[test]
    fn two_ends_agree_on_what_both_have() {
        for dialect in dialects() {
            let back = Protocol { extensions: Extensions::all() - Extensions::IPV6, dialect };
            let front = Protocol { extensions: Extensions::all() - Extensions::OPTIONS, dialect };
            let nodes = values(front, &back.backend_nodes(5));
            let (agreed, offer) = front.with_backend(&nodes).unwrap();
            assert_eq!(agreed.extensions, back.extensions & front.extensions);
            let orders = dialect.orders(true);
            assert_eq!((offer.min_order, offer.max_order), (*orders.start(), 5));
            let said = agreed.frontend_nodes();
            let value = |name| said.iter().find(|node| node.0 == name).map(|node| node.1.clone());
            let nodes: Vec<_> = back.wanted_of_frontend().into_iter().map(value).collect();
            assert_eq!(back.with_frontend(&nodes).unwrap().extensions, agreed.extensions);
        }
    }

    #[test]
    fn a_backend_without_nodes_of_extensions_is_plain() {
        let front = all(PVCALLS);
        let nodes = values(front, &PVCALLS.backend_nodes(3));
        let (agreed, offer) = front.with_backend(&nodes).unwrap();
        assert_eq!(agreed.extensions, Extensions::empty());
        assert_eq!(offer, Offer { min_order: 1, default_order: 3, max_order: 3 });
        let front = all(XENSOCK);
        let (agreed, offer) = front.with_backend(&values(front, &[])).unwrap();
        assert_eq!(agreed.extensions, Extensions::empty());
        assert_eq!(offer, Offer { min_order: 6, default_order: 6, max_order: 6 });
    }

    #[test]
    fn orders_that_cannot_be_are_refused_with_their_node_named() {
        let front = all(PVCALLS);
        let with = |name, value: &str| {
            let mut nodes = all(PVCALLS).backend_nodes(4);
            nodes.iter_mut().filter(|node| node.0 == name).for_each(|node| node.1 = value.into());
            front.with_backend(&values(front, &nodes))
        };
        assert!(with("min-page-order", "x").unwrap_err().contains("`min-page-order` is `x`"));
        assert!(with("min-page-order", "5").unwrap_err().contains("5, 4 and 4"));
        assert!(with("default-page-order", "7").unwrap_err().contains("1, 7 and 4"));
        assert!(with("feature-names", "2").unwrap_err().contains("`feature-names` is `2`"));
        assert!(front.with_backend(&[]).is_err() && front.with_frontend(&[]).is_err());
    }
}
