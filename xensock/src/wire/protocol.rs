//! A dialect with the extensions that both ends agreed on, and the negotiation in xenstore.

use super::dialect::Dialect;
use super::extensions::Extensions;
use super::layout::Layout;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use xen::Errno;
use xen::xenstore::wire::shown;

/// The protocol between two connected ends; before that, the protocol that one end supports.
///
/// The ends negotiate by reading each other's nodes in xenstore:
///
/// ```
/// use xensock::wire::{Dialect, Extensions, Protocol};
///
/// # futures_executor::block_on(async {
/// let back = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::NAMES };
/// let front = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::all() };
/// let nodes = back.backend_nodes(4);
/// let node = async |name: &str| {
///     nodes.iter().find(|node| node.0 == name).map(|node| node.1.clone())
/// };
/// let (agreed, orders) = front.with_backend(node).await?;
/// assert_eq!(agreed, back);
/// assert_eq!((orders.min, orders.default, orders.max), (1, 4, 4));
/// # Ok::<(), String>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The dialect.
    pub dialect: Dialect,
    /// The extensions in force.
    pub extensions: Extensions,
}

impl From<Dialect> for Protocol {
    /// The plain dialect.
    fn from(dialect: Dialect) -> Self {
        Protocol { dialect, extensions: Extensions::empty() }
    }
}

/// The orders of data rings that a backend maps. A ring has two to the power of its order pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orders {
    /// The smallest.
    pub min: u32,
    /// The order that a frontend uses unless it requests another.
    pub default: u32,
    /// The largest.
    pub max: u32,
}

/// The backend's nodes for [`Orders`].
const MIN_ORDER: &str = "min-page-order";
const DEFAULT_ORDER: &str = "default-page-order";
const MAX_ORDER: &str = "max-page-order";

impl Protocol {
    /// Whether an extension is in force.
    pub fn has(&self, extension: Extensions) -> bool {
        self.extensions.contains(extension)
    }

    /// The possible orders of a data ring.
    pub fn orders(&self) -> RangeInclusive<u32> {
        self.dialect.orders(self.has(Extensions::RESIZE))
    }

    /// The largest order of a data ring that a backend with this limit maps. The protocol's
    /// smallest order is always mapped, so plain draft 1 is exempt from the limit.
    pub fn max_order(&self, limit: u32) -> u32 {
        let (start, end) = self.orders().into_inner();
        limit.clamp(start, end)
    }

    /// The layout of a data ring of this order. [`Errno::EINVAL`] if there is no such order.
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

    /// The nodes that a backend publishes, and their values. For `limit` see
    /// [`max_order`](Protocol::max_order).
    pub fn backend_nodes(&self, limit: u32) -> Vec<(&'static str, String)> {
        let max = self.max_order(limit);
        let mut nodes = Vec::new();
        if self.dialect == Dialect::PvCalls {
            nodes.extend([("versions", "1".to_string()), ("function-calls", "1".to_string())]);
        }
        if self.dialect == Dialect::PvCalls || self.has(Extensions::RESIZE) {
            nodes.push((MAX_ORDER, max.to_string()));
        }
        if self.has(Extensions::RESIZE) {
            let default = self.dialect.default_order().min(max);
            let min = *self.orders().start();
            nodes.extend([(MIN_ORDER, min.to_string()), (DEFAULT_ORDER, default.to_string())]);
        }
        nodes.extend(self.extensions.nodes());
        nodes
    }

    /// Negotiates as a frontend that supports this protocol. `node` reads one of the backend's
    /// nodes. An error names the node.
    pub async fn with_backend(
        &self,
        node: impl AsyncFn(&str) -> Option<String>,
    ) -> Result<(Protocol, Orders), String> {
        if self.dialect == Dialect::PvCalls {
            let versions = node("versions").await.unwrap_or_default();
            if !versions.split(',').any(|version| version.trim() == "1") {
                let versions = shown(&versions);
                return Err(format!(
                    "the backend's node `versions` is `{versions}`, and this frontend supports \
                     version 1: use a backend that offers it"
                ));
            }
            let calls = node("function-calls").await.unwrap_or_default();
            if calls.trim() != "1" {
                let calls = shown(&calls);
                return Err(format!(
                    "the backend's node `function-calls` is `{calls}`, not `1`: use a backend that \
                     supports all seven commands"
                ));
            }
        }
        let theirs =
            Extensions::read(&node).await.map_err(|reason| format!("the backend's {reason}"))?;
        let protocol = self.agreed(theirs);
        let orders = protocol.read_orders(&node).await?;
        Ok((protocol, orders))
    }

    /// The protocol with the extensions that both ends support.
    fn agreed(&self, theirs: Extensions) -> Protocol {
        let mut extensions = self.extensions & theirs;
        if !extensions.contains(Extensions::EVENT_INDEX) {
            extensions -= Extensions::DATAGRAM;
        }
        Protocol { extensions, ..*self }
    }

    async fn read_orders(
        &self,
        node: &impl AsyncFn(&str) -> Option<String>,
    ) -> Result<Orders, String> {
        let order = async |name, least: u32| -> Result<u32, String> {
            let value = node(name).await.unwrap_or_default();
            match value.trim().parse() {
                Ok(order) if order >= least => Ok(order),
                _ => Err(format!(
                    "the backend's node `{name}` is `{}`, not the order of a data ring, which is \
                     at least {least}",
                    shown(&value)
                )),
            }
        };
        let (start, end) = self.orders().into_inner();
        if self.has(Extensions::RESIZE) {
            let [min, default, max] = [
                order(MIN_ORDER, 0).await?,
                order(DEFAULT_ORDER, 0).await?,
                order(MAX_ORDER, 0).await?,
            ];
            let orders = Orders { min: min.max(start), default, max: max.min(end) };
            if !(orders.min..=orders.max).contains(&default) {
                return Err(format!(
                    "the backend's nodes `{MIN_ORDER}`, `{DEFAULT_ORDER}` and `{MAX_ORDER}` are \
                     {min}, {default} and {max}: no order of a data ring satisfies them"
                ));
            }
            return Ok(orders);
        }
        let max = match self.dialect {
            Dialect::PvCalls => order(MAX_ORDER, start).await?.min(end),
            Dialect::Draft1 => end,
        };
        Ok(Orders { min: start, default: self.dialect.default_order().min(max), max })
    }

    /// The nodes that a frontend publishes beside `port` and `ring-ref`, and their values.
    pub fn frontend_nodes(&self) -> Vec<(&'static str, String)> {
        let version = (self.dialect == Dialect::PvCalls).then(|| ("version", "1".to_string()));
        version.into_iter().chain(self.extensions.nodes()).collect()
    }

    /// Negotiates as a backend that supports this protocol. `node` reads one of the frontend's
    /// nodes. An error names the node.
    pub async fn with_frontend(
        &self,
        node: impl AsyncFn(&str) -> Option<String>,
    ) -> Result<Protocol, String> {
        if self.dialect == Dialect::PvCalls {
            let version = node("version").await;
            let version = version.as_deref().ok_or("the frontend has no node `version`")?;
            if version.trim() != "1" {
                return Err("the frontend's node `version` is not `1`, and this backend supports \
                            version 1"
                    .to_string());
            }
        }
        let theirs =
            Extensions::read(&node).await.map_err(|reason| format!("the frontend's {reason}"))?;
        Ok(self.agreed(theirs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::*;
    use core::net::Ipv4Addr;
    use futures_util::FutureExt;
    use xen::{GrantRef, Port};

    fn all(dialect: Dialect) -> Protocol {
        Protocol { dialect, extensions: Extensions::all() }
    }

    fn grants(protocol: Protocol) -> RingGrants {
        match protocol.dialect.has_socket_command() {
            true => RingGrants::Indexes(GrantRef(9)),
            false => RingGrants::Region((8..16).map(GrantRef).collect()),
        }
    }

    fn offer(protocol: Protocol) -> RingOffer {
        RingOffer { grants: grants(protocol), port: Port(3) }
    }

    fn calls(protocol: Protocol) -> [Call; 13] {
        let group = Group::V6 { group: "ff02::fb".parse().unwrap(), interface: 2 };
        [
            Call::SetOption { option: SocketOption::BusyPoll, value: 50 },
            Call::GetOption { option: SocketOption::KeepAlive },
            Call::Shutdown { how: Shutdown::Write },
            Call::LocalAddr,
            Call::PeerAddr,
            Call::Resize { grants: grants(protocol) },
            Call::Bind { addr: "[2001:db8::1]:80".parse().unwrap() },
            Call::DatagramSocket { family: Family::V4 },
            Call::Open { peer: None, ring: offer(protocol) },
            Call::Open { peer: "192.0.2.1:53".parse().ok(), ring: offer(protocol) },
            Call::Join(Group::V4 {
                group: Ipv4Addr::new(224, 0, 0, 251),
                interface: Ipv4Addr::new(192, 0, 2, 7),
            }),
            Call::Join(group),
            Call::Leave(group),
        ]
    }

    #[test]
    fn extended_requests_are_the_same_in_every_dialect_and_come_out_as_they_went_in() {
        let mut slots = Vec::new();
        for dialect in Dialect::ALL {
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
            let differs = [Command::Resize, Command::Open, Command::Socket, Command::Bind];
            if !differs.contains(&one.0) {
                assert_eq!(one, other);
            }
        }
    }

    #[test]
    fn fields_of_extensions_are_where_the_specification_puts_them() {
        let mut slot = [0; 64];
        let mut encoded = |call| {
            let request = Request { id: 1, socket: 2, call };
            all(Dialect::PvCalls).encode_request(&request, &mut slot).unwrap();
            slot
        };
        let set = encoded(Call::SetOption { option: SocketOption::KeepIdle, value: 258 });
        assert_eq!(set[4..8], 256u32.to_le_bytes());
        assert_eq!(set[16..24], [5, 0, 0, 0, 2, 1, 0, 0]);
        let shut = encoded(Call::Shutdown { how: Shutdown::Write });
        assert_eq!((&shut[4..8], shut[16]), (&258u32.to_le_bytes()[..], 1));
        let socket = encoded(Call::DatagramSocket { family: Family::V6 });
        assert_eq!((socket[4], &socket[16..24]), (0, &[10, 0, 0, 0, 2, 0, 0, 0][..]));
        let open = encoded(Call::Open { peer: None, ring: offer(all(Dialect::PvCalls)) });
        assert_eq!((&open[4..8], open[44]), (&263u32.to_le_bytes()[..], 0));
        assert_eq!(open[52..60], [9, 0, 0, 0, 3, 0, 0, 0]);
        let (group, interface) = (Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::new(192, 0, 2, 7));
        let leave = encoded(Call::Leave(Group::V4 { group, interface }));
        assert_eq!((&leave[4..8], leave[44]), (&265u32.to_le_bytes()[..], 16));
        assert_eq!(
            (&leave[16..24], &leave[48..52]),
            (&[2, 0, 0, 0, 224, 0, 0, 251][..], &[192, 0, 2, 7][..])
        );
        let resize = encoded(Call::Resize { grants: RingGrants::Indexes(GrantRef(0x0102)) });
        assert_eq!(
            (&resize[4..8], &resize[16..20]),
            (&261u32.to_le_bytes()[..], &[2, 1, 0, 0][..])
        );
    }

    #[test]
    fn what_was_not_agreed_on_is_refused_at_both_ends() {
        for dialect in Dialect::ALL {
            let (rich, plain) = (all(dialect), Protocol::from(dialect));
            for call in calls(rich) {
                let request = Request { id: 5, socket: 6, call };
                let mut slot = vec![0; plain.slots().request];
                let six = matches!(request.call, Call::Bind { .. });
                let socket = request.call.command() == Command::Socket;
                let (sent, got) = match (six, dialect) {
                    (true, _) => (Errno::EAFNOSUPPORT, Errno::EAFNOSUPPORT),
                    (_, Dialect::PvCalls) if socket => (Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT),
                    _ => (Errno::EOPNOTSUPP, Errno::ENOTSUP),
                };
                assert_eq!(plain.encode_request(&request, &mut slot), Err(sent));
                rich.encode_request(&request, &mut slot).unwrap();
                let refused = plain.decode_request(&slot).unwrap_err();
                assert_eq!((refused.header.id, refused.header.socket, refused.error), (5, 6, got));
            }
        }
    }

    #[test]
    fn a_socket_command_of_draft_1_is_for_datagrams() {
        let draft = all(Dialect::Draft1);
        let mut slot = vec![0; draft.slots().request];
        let call = Call::DatagramSocket { family: Family::V4 };
        draft.encode_request(&Request { id: 1, socket: 2, call }, &mut slot).unwrap();
        assert_eq!(slot[4..8], 262u32.to_le_bytes());
        slot[20] = 1;
        assert_eq!(draft.decode_request(&slot).unwrap_err().error, Errno::EAFNOSUPPORT);
        let stream = Request { id: 1, socket: 2, call: Call::Socket { family: Family::V4 } };
        assert_eq!(draft.encode_request(&stream, &mut slot), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn only_a_multicast_address_is_a_group() {
        let protocol = all(Dialect::PvCalls);
        let group = Group::V4 { group: [192, 0, 2, 1].into(), interface: [0; 4].into() };
        let mut slot = vec![0; protocol.slots().request];
        let request = Request { id: 1, socket: 2, call: Call::Join(group) };
        protocol.encode_request(&request, &mut slot).unwrap();
        assert_eq!(protocol.decode_request(&slot).unwrap_err().error, Errno::EINVAL);
    }

    #[test]
    fn a_response_has_its_address_where_names_were_agreed_on() {
        for dialect in Dialect::ALL {
            for addr in [None, Some("10.1.2.3:4".parse().unwrap()), "[::1]:5".parse().ok()] {
                let response =
                    Response { id: 1, command: Command::Accept, socket: 3, result: Ok(0), addr };
                let protocol = all(dialect);
                assert_eq!(protocol.slots().stride(), Protocol::from(dialect).slots().stride());
                let mut slot = vec![0xee; protocol.slots().response];
                protocol.encode_response(&response, &mut slot);
                assert_eq!(protocol.decode_response(&slot), response);
                let plain = Protocol::from(dialect).decode_response(&slot);
                assert_eq!(plain, Response { addr: None, ..response });
            }
        }
    }

    type Nodes = Vec<(&'static str, String)>;

    async fn value(nodes: &Nodes, name: &str) -> Option<String> {
        nodes.iter().find(|node| node.0 == name).map(|node| node.1.clone())
    }

    fn with_backend(front: Protocol, nodes: &Nodes) -> Result<(Protocol, Orders), String> {
        let agreed = front.with_backend(async |name: &str| value(nodes, name).await).now_or_never();
        agreed.expect("no node is waited for")
    }

    fn with_frontend(back: Protocol, nodes: &Nodes) -> Result<Protocol, String> {
        let agreed = back.with_frontend(async |name: &str| value(nodes, name).await).now_or_never();
        agreed.expect("no node is waited for")
    }

    #[test]
    fn two_ends_agree_on_what_both_have() {
        for dialect in Dialect::ALL {
            let back = Protocol { extensions: Extensions::all() - Extensions::IPV6, dialect };
            let front = Protocol { extensions: Extensions::all() - Extensions::OPTIONS, dialect };
            let (agreed, orders) = with_backend(front, &back.backend_nodes(5)).unwrap();
            assert_eq!(agreed.extensions, back.extensions & front.extensions);
            assert_eq!((orders.min, orders.max), (*dialect.orders(true).start(), 5));
            let theirs = with_frontend(back, &agreed.frontend_nodes()).unwrap();
            assert_eq!(theirs.extensions, agreed.extensions);
        }
    }

    #[test]
    fn datagram_sockets_need_event_indexes() {
        let back = all(Dialect::PvCalls);
        let front = Protocol { extensions: Extensions::DATAGRAM | Extensions::NAMES, ..back };
        let (agreed, _) = with_backend(front, &back.backend_nodes(4)).unwrap();
        assert_eq!(agreed.extensions, Extensions::NAMES);
        assert_eq!(with_frontend(back, &front.frontend_nodes()), Ok(agreed));
    }

    #[test]
    fn a_backend_without_nodes_of_extensions_is_plain() {
        let back = Protocol::from(Dialect::PvCalls);
        let (agreed, orders) = with_backend(all(back.dialect), &back.backend_nodes(3)).unwrap();
        assert_eq!(agreed.extensions, Extensions::empty());
        assert_eq!(orders, Orders { min: 1, default: 3, max: 3 });
        let (agreed, orders) = with_backend(all(Dialect::Draft1), &Vec::new()).unwrap();
        assert_eq!(agreed.extensions, Extensions::empty());
        assert_eq!(orders, Orders { min: 6, default: 6, max: 6 });
    }

    #[test]
    fn impossible_orders_are_refused_with_their_node_named() {
        let front = all(Dialect::PvCalls);
        let with = |name, value: &str| {
            let mut nodes = front.backend_nodes(4);
            nodes.iter_mut().filter(|node| node.0 == name).for_each(|node| node.1 = value.into());
            with_backend(front, &nodes)
        };
        assert!(with("min-page-order", "x").unwrap_err().contains("`min-page-order` is `x`"));
        assert!(with("min-page-order", "5").unwrap_err().contains("5, 4 and 4"));
        assert!(with("default-page-order", "7").unwrap_err().contains("1, 7 and 4"));
        assert!(with("feature-names", "2").unwrap_err().contains("`feature-names` is `2`"));
        assert!(with_backend(front, &Vec::new()).is_err());
        assert!(with_frontend(front, &Vec::new()).is_err());
    }

    #[test]
    fn a_value_of_the_other_end_makes_no_long_line() {
        let plain = Protocol::from(Dialect::PvCalls);
        let nodes = [("version", "1".to_string()), ("feature-names", "\u{1}".repeat(4096))];
        let reason = with_frontend(plain, &nodes.to_vec()).unwrap_err();
        assert!(reason.len() < 300, "{reason}");
        let nodes = vec![("versions", format!("2\n{}", "x".repeat(4000)))];
        let reason = with_backend(plain, &nodes).unwrap_err();
        assert!(reason.len() < 300 && !reason.contains('\n'), "{reason}");
    }

    #[test]
    fn another_version_is_refused_with_its_node_named() {
        let plain = Protocol::from(Dialect::PvCalls);
        let offer = |versions: &str, order: &str, calls: &str| {
            let values =
                [("versions", versions), ("max-page-order", order), ("function-calls", calls)];
            let nodes = values.map(|(name, value)| (name, value.to_string()));
            with_backend(plain, &nodes.to_vec()).map(|(_, orders)| orders)
        };
        let orders = |max| Ok(Orders { min: 1, default: 4, max });
        assert_eq!(offer("1,2", "4", "1"), orders(4));
        assert_eq!(offer("1", "20", "1"), orders(9));
        assert!(offer("2", "4", "1").unwrap_err().contains("`versions` is `2`"));
        assert!(offer("1", "0", "1").unwrap_err().contains("`max-page-order` is `0`"));
        assert!(offer("1", "4", "").unwrap_err().contains("`function-calls`"));
        assert!(with_frontend(plain, &vec![("version", "1".to_string())]).is_ok());
        assert!(with_frontend(plain, &vec![("version", "2".to_string())]).is_err());
    }
}
