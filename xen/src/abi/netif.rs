//! `io/netif.h`: the rings of a virtual network interface.
//!
//! Both rings begin with four indexes (`io/ring.h`: [`REQ_PROD`] and so on) and have [`RING_SLOTS`]
//! slots behind [`RING_HEADER`] bytes. A frame takes one request for each part of it, and one more
//! slot for each extra info, which stand behind the first request.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// As it stands in its slot.
    pub fn encode(&self) -> [u8; TX_SLOT] {
        let mut slot = [0; TX_SLOT];
        slot[0..4].copy_from_slice(&self.gref.to_le_bytes());
        slot[4..6].copy_from_slice(&self.offset.to_le_bytes());
        slot[6..8].copy_from_slice(&self.flags.to_le_bytes());
        slot[8..10].copy_from_slice(&self.id.to_le_bytes());
        slot[10..12].copy_from_slice(&self.size.to_le_bytes());
        slot
    }

    /// Out of its slot.
    pub fn decode(slot: &[u8; TX_SLOT]) -> TxRequest {
        let half = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        TxRequest {
            gref: u32::from(half(0)) | u32::from(half(2)) << 16,
            offset: half(4),
            flags: half(6),
            id: half(8),
            size: half(10),
        }
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
    /// As it stands in a slot of the transmit ring.
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
    /// Out of its slot.
    pub fn decode(slot: &[u8; TX_SLOT]) -> TxResponse {
        TxResponse {
            id: u16::from_le_bytes([slot[0], slot[1]]),
            status: i16::from_le_bytes([slot[2], slot[3]]),
        }
    }

    /// As it stands in its slot.
    pub fn encode(&self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.id.to_le_bytes(), self.status.to_le_bytes());
        [a, b, c, d]
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
    /// As it stands in its slot.
    pub fn encode(&self) -> [u8; RX_SLOT] {
        let mut slot = [0; RX_SLOT];
        slot[0..2].copy_from_slice(&self.id.to_le_bytes());
        slot[4..8].copy_from_slice(&self.gref.to_le_bytes());
        slot
    }

    /// Out of its slot.
    pub fn decode(slot: &[u8; RX_SLOT]) -> RxRequest {
        let id = u16::from_le_bytes([slot[0], slot[1]]);
        RxRequest { id, gref: u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]) }
    }
}

/// A part of a frame that was received (`struct netif_rx_response`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Out of its slot.
    pub fn decode(slot: &[u8; RX_SLOT]) -> RxResponse {
        let half = |at: usize| u16::from_le_bytes([slot[at], slot[at + 1]]);
        RxResponse { id: half(0), offset: half(2), flags: half(4), status: half(6) as i16 }
    }

    /// As it stands in its slot.
    pub fn encode(&self) -> [u8; RX_SLOT] {
        let mut slot = [0; RX_SLOT];
        slot[0..2].copy_from_slice(&self.id.to_le_bytes());
        slot[2..4].copy_from_slice(&self.offset.to_le_bytes());
        slot[4..6].copy_from_slice(&self.flags.to_le_bytes());
        slot[6..8].copy_from_slice(&self.status.to_le_bytes());
        slot
    }
}

const _: () = assert!(RING_HEADER + RING_SLOTS * TX_SLOT <= crate::PAGE_SIZE);
const _: () = assert!(RING_HEADER + RING_SLOTS * RX_SLOT <= crate::PAGE_SIZE);
