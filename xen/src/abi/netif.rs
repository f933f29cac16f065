//! `io/netif.h`: the rings of a virtual network interface.
//!
//! Both rings begin with four indexes (`io/ring.h`: [`REQ_PROD`] and so on) and have [`RING_SLOTS`]
//! slots after [`RING_HEADER`] bytes. A frame has one request for each of its parts, and after the
//! first request one slot for each extra info.

use zerocopy::{FromBytes, IntoBytes, transmute};

pub use super::ring::*;

/// The number of slots of a ring: the largest power of two that fits into a page.
pub const RING_SLOTS: usize = 256;

/// The size of a transmit slot in bytes (`union netif_tx_sring_entry`).
pub const TX_SLOT: usize = 12;
/// The size of a receive slot in bytes (`union netif_rx_sring_entry`).
pub const RX_SLOT: usize = 8;

/// The number of requests for one frame that every backend accepts.
pub const XEN_NETIF_NR_SLOTS_MIN: usize = 18;

/// The checksum field has only the sum of the pseudo header.
pub const NETTXF_CSUM_BLANK: u16 = 1 << 0;
/// The receiver need not verify the checksum.
pub const NETTXF_DATA_VALIDATED: u16 = 1 << 1;
/// The frame continues in the next request.
pub const NETTXF_MORE_DATA: u16 = 1 << 2;
/// An extra info follows.
pub const NETTXF_EXTRA_INFO: u16 = 1 << 3;

/// The checksum was verified.
pub const NETRXF_DATA_VALIDATED: u16 = 1 << 0;
/// The checksum field has only the sum of the pseudo header.
pub const NETRXF_CSUM_BLANK: u16 = 1 << 1;
/// The frame continues in the next response.
pub const NETRXF_MORE_DATA: u16 = 1 << 2;
/// An extra info follows.
pub const NETRXF_EXTRA_INFO: u16 = 1 << 3;

/// The frame was dropped.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// The frame was sent.
pub const NETIF_RSP_OKAY: i16 = 0;
/// The slot had an extra info, not a request.
pub const NETIF_RSP_NULL: i16 = 1;

/// The type of extra info about segmentation.
pub const XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1;
/// Another extra info follows.
pub const XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1;
/// Segment the frame as TCP over IPv4.
pub const XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1;
/// Segment the frame as TCP over IPv6.
pub const XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2;

/// A part of a frame to transmit (`struct netif_tx_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct TxRequest {
    /// The page of the part.
    pub gref: u32,
    /// Its offset in the page.
    pub offset: u16,
    /// `NETTXF_*`.
    pub flags: u16,
    /// Copied to the response.
    pub id: u16,
    /// The size of the part in bytes; in a frame's first request, that of the whole frame.
    pub size: u16,
}

impl TxRequest {
    /// The bytes of its slot.
    pub fn encode(&self) -> [u8; TX_SLOT] {
        transmute!(*self)
    }

    /// Reads a slot.
    pub fn decode(slot: &[u8; TX_SLOT]) -> TxRequest {
        transmute!(*slot)
    }
}

/// How to segment a frame (`struct netif_extra_info` of [`XEN_NETIF_EXTRA_TYPE_GSO`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The size of each segment's payload, in bytes.
    pub size: u16,
    /// `XEN_NETIF_GSO_TYPE_*`.
    pub kind: u8,
}

impl Gso {
    /// The bytes of its slot, in the transmit ring.
    pub fn encode(&self) -> [u8; TX_SLOT] {
        let [low, high] = self.size.to_le_bytes();
        [XEN_NETIF_EXTRA_TYPE_GSO, 0, low, high, self.kind, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// The result for a part of a transmitted frame (`struct netif_tx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxResponse {
    /// The id of the request.
    pub id: u16,
    /// `NETIF_RSP_*`.
    pub status: i16,
}

impl TxResponse {
    /// Reads a slot.
    pub fn decode(slot: &[u8; TX_SLOT]) -> TxResponse {
        let [id, status, ..]: [u16; 6] = transmute!(*slot);
        TxResponse { id, status: status.cast_signed() }
    }

    /// The bytes at the beginning of its slot.
    pub fn encode(&self) -> [u8; 4] {
        transmute!([self.id, self.status.cast_unsigned()])
    }
}

/// A page to receive into (`struct netif_rx_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RxRequest {
    /// Copied to the response.
    pub id: u16,
    /// The page.
    pub gref: u32,
}

impl RxRequest {
    /// The bytes of its slot.
    pub fn encode(&self) -> [u8; RX_SLOT] {
        transmute!([u32::from(self.id), self.gref])
    }

    /// Reads a slot.
    pub fn decode(slot: &[u8; RX_SLOT]) -> RxRequest {
        let [id, gref]: [u32; 2] = transmute!(*slot);
        RxRequest { id: id as u16, gref }
    }
}

/// A part of a received frame (`struct netif_rx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct RxResponse {
    /// The id of the request.
    pub id: u16,
    /// The offset of the part in the page.
    pub offset: u16,
    /// `NETRXF_*`.
    pub flags: u16,
    /// The size of the part in bytes, or, if negative, `NETIF_RSP_*`.
    pub status: i16,
}

impl RxResponse {
    /// Reads a slot.
    pub fn decode(slot: &[u8; RX_SLOT]) -> RxResponse {
        transmute!(*slot)
    }

    /// The bytes of its slot.
    pub fn encode(&self) -> [u8; RX_SLOT] {
        transmute!(*self)
    }
}

const _: () = assert!(RING_HEADER + RING_SLOTS * TX_SLOT <= crate::PAGE_SIZE);
const _: () = assert!(RING_HEADER + RING_SLOTS * RX_SLOT <= crate::PAGE_SIZE);
