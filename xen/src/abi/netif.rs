//! `io/netif.h`: the rings of a virtual network interface.
//!
//! Both rings begin with four indexes (`io/ring.h`: [`REQ_PROD`] and so on) and have [`RING_SLOTS`]
//! slots behind [`RING_HEADER`] bytes. A frame takes one request for each part of it, and one more
//! slot for each extra info, which stand behind the first request.

use zerocopy::{FromBytes, IntoBytes, transmute};

pub use super::ring::*;

/// The slots of either ring, the largest power of two that fits into a page.
pub const RING_SLOTS: usize = 256;

/// A transmit slot's bytes (`union netif_tx_sring_entry`).
pub const TX_SLOT: usize = 12;
/// A receive slot's bytes (`union netif_rx_sring_entry`).
pub const RX_SLOT: usize = 8;

/// Requests of one frame that every backend takes.
pub const XEN_NETIF_NR_SLOTS_MIN: usize = 18;
/// The most bytes of a frame that is transmitted.
pub const XEN_NETIF_MAX_TX_SIZE: usize = 0xffff;

/// The checksum field has the pseudo header's sum alone.
pub const NETTXF_CSUM_BLANK: u16 = 1 << 0;
/// Whoever receives the frame need not look at the checksum.
pub const NETTXF_DATA_VALIDATED: u16 = 1 << 1;
/// The frame goes on in the next request.
pub const NETTXF_MORE_DATA: u16 = 1 << 2;
/// An extra info follows.
pub const NETTXF_EXTRA_INFO: u16 = 1 << 3;

/// The checksum was looked at already.
pub const NETRXF_DATA_VALIDATED: u16 = 1 << 0;
/// The checksum field has the pseudo header's sum alone.
pub const NETRXF_CSUM_BLANK: u16 = 1 << 1;
/// The frame goes on in the next response.
pub const NETRXF_MORE_DATA: u16 = 1 << 2;
/// An extra info follows.
pub const NETRXF_EXTRA_INFO: u16 = 1 << 3;

/// The frame was dropped.
pub const NETIF_RSP_DROPPED: i16 = -2;
/// The request was wrong.
pub const NETIF_RSP_ERROR: i16 = -1;
/// The frame is on its way.
pub const NETIF_RSP_OKAY: i16 = 0;
/// The slot held no request, but an extra info.
pub const NETIF_RSP_NULL: i16 = 1;

/// An extra info about segmentation.
pub const XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1;
/// Another extra info follows.
pub const XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1;
/// The frame is to be cut into TCP segments over IPv4.
pub const XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1;
/// The frame is to be cut into TCP segments over IPv6.
pub const XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2;

/// A part of a frame to transmit (`struct netif_tx_request`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct TxRequest {
    /// The page that it is in.
    pub gref: u32,
    /// Where in the page.
    pub offset: u16,
    /// `NETTXF_*`.
    pub flags: u16,
    /// Comes back in the response.
    pub id: u16,
    /// The part's bytes; in a frame's first request, the whole frame's.
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

/// How a frame is to be cut (`struct netif_extra_info` of [`XEN_NETIF_EXTRA_TYPE_GSO`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// The payload of each segment.
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

/// What became of a part of a frame that was transmitted (`struct netif_tx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxResponse {
    /// The request's.
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
    /// Comes back in the response.
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

/// A part of a frame that was received (`struct netif_rx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes)]
#[repr(C)]
pub struct RxResponse {
    /// The request's.
    pub id: u16,
    /// Where in the page the part is.
    pub offset: u16,
    /// `NETRXF_*`.
    pub flags: u16,
    /// The part's bytes, or, below zero, `NETIF_RSP_*`.
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
