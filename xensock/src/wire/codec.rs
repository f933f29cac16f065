//! Puts requests and responses into slots, and reads them from private copies of slots.
//!
//! In both dialects a request starts with its id (`u32`), its command (`u32`) and its socket
//! (`u64`), and a response with its id and its command. [`Format`](super::layout::Format) has the
//! differences.

use super::dialect::Dialect;
use super::draft1;
use super::extensions::{self, Extensions};
use super::field::{
    ADDR_SIZE, Family, addr_at, bytes, put, put_addr, put_u32, put_u64, u32_at, u64_at,
};
use super::layout::Slots;
use super::message::{
    Call, Command, Header, Malformed, Request, Response, RingGrants, RingOffer, Shutdown,
};
use super::options::SocketOption;
use super::protocol::Protocol;
use alloc::boxed::Box;
use core::net::IpAddr;
use core::slice;
use xen::{Errno, GrantRef, Port};
use xensock_stream::Group;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// Offset of a command's first field.
const FIELDS: usize = 16;
/// Offsets in a CONNECT: the address and its length come first.
const CONNECT_FLAGS: usize = FIELDS + ADDR_SIZE + 4;
const CONNECT_RING: usize = CONNECT_FLAGS + 4;
/// Offset of the interface in a JOIN and a LEAVE, behind the group's address and its length.
const INTERFACE: usize = CONNECT_FLAGS;
/// Offset in an ACCEPT.
const ACCEPT_RING: usize = FIELDS + 8;

/// Offset of the address in a response.
const RESPONSE_ADDR: usize = 24;
/// Bytes of a response with an address.
const LONG_RESPONSE: usize = RESPONSE_ADDR + ADDR_SIZE + 4;

impl Protocol {
    /// The slots of the command ring.
    pub fn slots(&self) -> Slots {
        let slots = self.dialect.format().slots;
        match self.has(Extensions::NAMES) {
            // A slot has room for the longer response, so the slots stay where they are.
            true => Slots { response: LONG_RESPONSE, ..slots },
            false => slots,
        }
    }

    /// Writes a request.
    ///
    /// If the extension is not in force: [`Errno::EAFNOSUPPORT`] for an IPv6 address,
    /// [`Errno::EOPNOTSUPP`] for a command. The latter also for a SOCKET that the dialect lacks.
    /// [`Errno::EINVAL`] for a ring of another dialect.
    pub fn encode_request(&self, request: &Request, slot: &mut [u8]) -> Result<(), Errno> {
        let Header { id, command, socket } = request.header();
        let is_agreed = match request.call {
            Call::Socket { .. } => self.has_sockets_of(SOCK_STREAM),
            Call::DatagramSocket { .. } => self.has_sockets_of(SOCK_DGRAM),
            _ => self.has_extension_of(command),
        };
        if !is_agreed {
            return Err(Errno::EOPNOTSUPP);
        }
        self.check_family(&request.call)?;
        slot.fill(0);
        put_u32(slot, 0, id);
        put_u32(slot, 4, self.number(command).ok_or(Errno::EINVAL)?);
        put_u64(slot, 8, socket);
        match &request.call {
            Call::Socket { family } => {
                put_u32(slot, FIELDS, family.number().into());
                put_u32(slot, FIELDS + 4, SOCK_STREAM);
            }
            Call::DatagramSocket { family } => {
                put_u32(slot, FIELDS, family.number().into());
                put_u32(slot, FIELDS + 4, SOCK_DGRAM);
            }
            Call::Open { peer, ring } => {
                put_addr(slot, FIELDS, *peer);
                self.put_ring(slot, CONNECT_RING, ring)?;
            }
            Call::Join(group) | Call::Leave(group) => {
                put_addr(slot, FIELDS, Some((group.addr(), 0).into()));
                match group {
                    Group::V4 { interface, .. } => put(slot, INTERFACE, interface.octets()),
                    Group::V6 { interface, .. } => put_u32(slot, INTERFACE, *interface),
                }
            }
            Call::Connect { addr, flags, ring } => {
                put_addr(slot, FIELDS, Some(*addr));
                put_u32(slot, CONNECT_FLAGS, *flags);
                self.put_ring(slot, CONNECT_RING, ring)?;
            }
            Call::Bind { addr } => put_addr(slot, FIELDS, Some(*addr)),
            Call::Release { reuse } if self.dialect.can_reuse_rings() => {
                slot[FIELDS] = (*reuse).into();
            }
            Call::Listen { backlog } if self.dialect == Dialect::PvCalls => {
                put_u32(slot, FIELDS, *backlog);
            }
            Call::Accept { new, ring } => {
                put_u64(slot, FIELDS, *new);
                self.put_ring(slot, ACCEPT_RING, ring)?;
            }
            Call::SetOption { option, value } => {
                put_u32(slot, FIELDS, option.number());
                put_u32(slot, FIELDS + 4, *value);
            }
            Call::GetOption { option } => put_u32(slot, FIELDS, option.number()),
            Call::Shutdown { how } => put_u32(slot, FIELDS, *how as u32),
            Call::Resize { grants } => self.put_grants(slot, FIELDS, grants)?,
            Call::Release { .. }
            | Call::Listen { .. }
            | Call::Poll
            | Call::LocalAddr
            | Call::PeerAddr => {}
        }
        Ok(())
    }

    /// Reads a request.
    pub fn decode_request(&self, slot: &[u8]) -> Result<Request, Malformed> {
        let (id, socket) = (u32_at(slot, 0), u64_at(slot, 8));
        let command = self.command(u32_at(slot, 4));
        self.decode_call(command, slot)
            .map(|call| Request { id, socket, call })
            .map_err(|error| Malformed { header: Header { id, command, socket }, error })
    }

    fn decode_call(&self, command: Command, slot: &[u8]) -> Result<Call, Errno> {
        if !self.has_extension_of(command) {
            return Err(Errno::ENOTSUP);
        }
        let option = || SocketOption::from_number(u32_at(slot, FIELDS));
        let call = match command {
            Command::Socket => {
                let [kind, protocol] = [4, 8].map(|at| u32_at(slot, FIELDS + at));
                if protocol != 0 || !self.has_sockets_of(kind) {
                    return Err(Errno::EAFNOSUPPORT);
                }
                let family = Family::from_number(u32_at(slot, FIELDS))?;
                match kind {
                    SOCK_DGRAM => Call::DatagramSocket { family },
                    _ => Call::Socket { family },
                }
            }
            Command::Open => Call::Open {
                peer: match u32_at(slot, FIELDS + ADDR_SIZE) {
                    0 => None,
                    _ => Some(addr_at(slot, FIELDS)?),
                },
                ring: self.ring_at(slot, CONNECT_RING)?,
            },
            Command::Join => Call::Join(group_at(slot)?),
            Command::Leave => Call::Leave(group_at(slot)?),
            Command::Connect => Call::Connect {
                addr: addr_at(slot, FIELDS)?,
                flags: u32_at(slot, CONNECT_FLAGS),
                ring: self.ring_at(slot, CONNECT_RING)?,
            },
            Command::Release => {
                Call::Release { reuse: self.dialect.can_reuse_rings() && slot[FIELDS] != 0 }
            }
            Command::Bind => Call::Bind { addr: addr_at(slot, FIELDS)? },
            Command::Listen => Call::Listen {
                backlog: match self.dialect {
                    Dialect::PvCalls => u32_at(slot, FIELDS),
                    Dialect::Draft1 => draft1::BACKLOG,
                },
            },
            Command::Accept => {
                Call::Accept { new: u64_at(slot, FIELDS), ring: self.ring_at(slot, ACCEPT_RING)? }
            }
            Command::Poll => Call::Poll,
            Command::SetOption => {
                let value = u32_at(slot, FIELDS + 4);
                if i32::try_from(value).is_err() {
                    return Err(Errno::EINVAL);
                }
                Call::SetOption { option: option()?, value }
            }
            Command::GetOption => Call::GetOption { option: option()? },
            Command::Shutdown => {
                Call::Shutdown { how: Shutdown::from_number(u32_at(slot, FIELDS))? }
            }
            Command::LocalAddr => Call::LocalAddr,
            Command::PeerAddr => Call::PeerAddr,
            Command::Resize => Call::Resize { grants: self.grants_at(slot, FIELDS)? },
            Command::Unknown(_) => return Err(Errno::ENOTSUP),
        };
        self.check_family(&call).map(|()| call)
    }

    /// Writes a response.
    pub fn encode_response(&self, response: &Response, slot: &mut [u8]) {
        let format = self.dialect.format();
        let ret = match response.result {
            Ok(value) => i32::try_from(value).unwrap_or(i32::MAX),
            Err(error) => error.negated(),
        };
        slot.fill(0);
        put_u32(slot, 0, response.id);
        put_u32(slot, 4, self.number(response.command).unwrap_or(u32::MAX));
        put_u32(slot, format.ret, ret as u32);
        put_u64(slot, format.socket, response.socket);
        if self.has(Extensions::NAMES) {
            put_addr(slot, RESPONSE_ADDR, response.addr);
        }
    }

    /// Reads a response. An address that is malformed counts as none.
    pub fn decode_response(&self, slot: &[u8]) -> Response {
        let format = self.dialect.format();
        let ret = u32_at(slot, format.ret) as i32;
        Response {
            id: u32_at(slot, 0),
            command: self.command(u32_at(slot, 4)),
            socket: u64_at(slot, format.socket),
            result: Errno::check(ret.into()).map(|value| value as u32),
            addr: match self.has(Extensions::NAMES) {
                true => addr_at(slot, RESPONSE_ADDR).ok(),
                false => None,
            },
        }
    }

    fn number(&self, command: Command) -> Option<u32> {
        if let Command::Unknown(number) = command {
            return Some(number);
        }
        self.commands().find(|(other, _)| *other == command).map(|(_, number)| number)
    }

    fn command(&self, number: u32) -> Command {
        let found = self.commands().find(|(_, other)| *other == number);
        found.map_or(Command::Unknown(number), |(command, _)| command)
    }

    fn commands(&self) -> impl Iterator<Item = (Command, u32)> {
        let extended = extensions::COMMANDS.iter().map(|&(command, number, _)| (command, number));
        self.dialect.format().commands.iter().copied().chain(extended)
    }

    /// Whether a command is part of the dialect, or of an extension that is in force.
    fn has_extension_of(&self, command: Command) -> bool {
        if command == Command::Socket {
            return self.has_sockets_of(SOCK_STREAM) || self.has_sockets_of(SOCK_DGRAM);
        }
        let found = extensions::COMMANDS.iter().find(|(other, ..)| *other == command);
        found.is_none_or(|(.., extension)| self.has(*extension))
    }

    /// Whether SOCKET creates sockets of this type.
    fn has_sockets_of(&self, kind: u32) -> bool {
        match kind {
            SOCK_STREAM => self.dialect.has_socket_command(),
            SOCK_DGRAM => self.has(Extensions::DATAGRAM),
            _ => false,
        }
    }

    fn check_family(&self, call: &Call) -> Result<(), Errno> {
        let family = match *call {
            Call::Socket { family } | Call::DatagramSocket { family } => family,
            Call::Connect { addr, .. } | Call::Bind { addr } => Family::of(addr),
            Call::Open { peer: Some(addr), .. } => Family::of(addr),
            Call::Join(Group::V6 { .. }) | Call::Leave(Group::V6 { .. }) => Family::V6,
            _ => Family::V4,
        };
        match family {
            Family::V6 if !self.has(Extensions::IPV6) => Err(Errno::EAFNOSUPPORT),
            _ => Ok(()),
        }
    }

    /// The port of a ring's event channel is behind its grant references.
    fn put_ring(&self, slot: &mut [u8], at: usize, ring: &RingOffer) -> Result<(), Errno> {
        self.put_grants(slot, at, &ring.grants)?;
        put_u32(slot, at + 4 * self.dialect.format().refs, ring.port.0);
        Ok(())
    }

    fn ring_at(&self, slot: &[u8], at: usize) -> Result<RingOffer, Errno> {
        let port = Port(u32_at(slot, at + 4 * self.dialect.format().refs));
        Ok(RingOffer { grants: self.grants_at(slot, at)?, port })
    }

    fn put_grants(&self, slot: &mut [u8], at: usize, grants: &RingGrants) -> Result<(), Errno> {
        let grants = match (self.dialect, grants) {
            (Dialect::PvCalls, RingGrants::Indexes(page)) => slice::from_ref(page),
            (Dialect::Draft1, RingGrants::Region(all)) => all,
            _ => return Err(Errno::EINVAL),
        };
        if grants.len() > self.dialect.format().refs {
            return Err(Errno::EINVAL);
        }
        for (at, grant) in (at..).step_by(4).zip(grants) {
            put_u32(slot, at, grant.0);
        }
        Ok(())
    }

    fn grants_at(&self, slot: &[u8], at: usize) -> Result<RingGrants, Errno> {
        let grant = |index| GrantRef(u32_at(slot, at + 4 * index));
        match self.dialect {
            Dialect::PvCalls => Ok(RingGrants::Indexes(grant(0))),
            Dialect::Draft1 => {
                // A smaller ring ends with reference 0, which Xen reserves.
                let grants: Box<[GrantRef]> = (0..self.dialect.format().refs)
                    .map(grant)
                    .take_while(|grant| grant.0 != 0)
                    .collect();
                if grants.is_empty() { Err(Errno::EINVAL) } else { Ok(RingGrants::Region(grants)) }
            }
        }
    }
}

/// Reads the group of a JOIN or a LEAVE. [`Errno::EINVAL`] if it is no multicast address.
fn group_at(slot: &[u8]) -> Result<Group, Errno> {
    let group = match addr_at(slot, FIELDS)?.ip() {
        IpAddr::V4(group) => Group::V4 { group, interface: bytes::<4>(slot, INTERFACE).into() },
        IpAddr::V6(group) => Group::V6 { group, interface: u32_at(slot, INTERFACE) },
    };
    if group.addr().is_multicast() { Ok(group) } else { Err(Errno::EINVAL) }
}
