//! The two rings of a session, and the frames in them.
//!
//! Pages are granted for the whole session, and frames are copied between them and private memory.
//! So a frame needs no grant and no allocation, and the backend cannot change what the stack reads.
//! The price is one more copy than with a grant for each frame.

use super::checksum::{self, Filled};
use super::config::{Config, Statistics};
use super::features::{ETHERNET_HEADER, Features, is_ipv6};
use alloc::sync::Arc;
use alloc::vec::Vec;
use xen::abi::netif::*;
use xen::frontend::{GrantedPages, Notify, PagePool, Ring};
use xen::{DomId, Errno, Machine, PAGE_SIZE, Port, Signal};

/// The most parts of a received frame: twice the pages of 64 KiB and the extra infos.
const MOST_PARTS: usize = 36;

/// How the backend broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("an index of its ring is impossible")]
    Index,
    #[error("response {id} is to no open request")]
    Id { id: u16 },
    #[error("a part of {len} bytes at {offset} is not within its page")]
    Part { offset: u16, len: usize },
    #[error("a frame has more than {0} parts")]
    Endless(usize),
}

impl From<Errno> for Violation {
    fn from(_: Errno) -> Self {
        Violation::Index
    }
}

/// Both rings and their event channels, which may be one.
pub(super) struct Queue {
    pub(super) tx: Transmit,
    pub(super) rx: Receive,
    pub(super) tx_port: Port,
    pub(super) rx_port: Port,
}

impl Queue {
    /// Shares the pages, and opens the event channels.
    pub(super) fn open<M: Machine>(
        pool: &PagePool<M>,
        peer: DomId,
        features: &Features,
        config: &Config,
        signal: &Arc<Signal>,
    ) -> Result<Queue, Errno> {
        let mut pages = Vec::new();
        let ports = (0..2 + config.transmit_pages + config.receive_pages)
            .try_for_each(|_| pool.share(peer, 1).map(|page| pages.push(page)))
            .and_then(|()| open_ports(pool.machine(), peer, features.split_events, signal));
        let (tx_port, rx_port) = match ports {
            Ok(ports) => ports,
            Err(error) => {
                pages.into_iter().for_each(|page| pool.withdraw(page));
                return Err(error);
            }
        };
        let mut rx_pages = pages.split_off(1 + config.transmit_pages);
        let (tx_ring, rx_ring) = (pages.remove(0), rx_pages.remove(0));
        let tx = Transmit::new(tx_ring, pages, features);
        Ok(Queue { tx, rx: Receive::new(rx_ring, rx_pages), tx_port, rx_port })
    }

    /// The event channels: one or two.
    pub(super) fn ports(&self) -> [Option<Port>; 2] {
        [Some(self.rx_port), Some(self.tx_port).filter(|&port| port != self.rx_port)]
    }

    /// Closes the event channels and withdraws all pages.
    pub(super) fn close<M: Machine>(self, pool: &PagePool<M>) {
        self.ports().into_iter().flatten().for_each(|port| pool.machine().close_port(port));
        let Queue { tx, rx, .. } = self;
        for page in tx.pages.into_iter().chain(rx.pages).chain([tx.shared, rx.shared]) {
            pool.withdraw(page);
        }
    }
}

fn open_ports<M: Machine>(
    machine: &M,
    peer: DomId,
    split: bool,
    signal: &Arc<Signal>,
) -> Result<(Port, Port), Errno> {
    let tx = machine.open_port(peer, signal.clone())?;
    if !split {
        return Ok((tx, tx));
    }
    match machine.open_port(peer, signal.clone()) {
        Ok(rx) => Ok((tx, rx)),
        Err(error) => {
            machine.close_port(tx);
            Err(error)
        }
    }
}

/// The ring of transmitted frames.
pub(super) struct Transmit {
    shared: GrantedPages,
    ring: Ring,
    pages: Vec<GrantedPages>,
    /// Whether the page is in use by the backend.
    busy: Vec<bool>,
    free: Vec<u16>,
    /// Extra infos that the backend has not answered yet.
    extras: u32,
    /// The pages of the longest frame.
    longest: usize,
    leave_v4: bool,
    leave_v6: bool,
}

impl Transmit {
    fn new(shared: GrantedPages, pages: Vec<GrantedPages>, features: &Features) -> Self {
        let ring = Ring::front(shared.shared(), RING_SLOTS as u32, TX_SLOT);
        Transmit {
            ring,
            busy: pages.iter().map(|_| false).collect(),
            free: (0..pages.len() as u16).rev().collect(),
            extras: 0,
            longest: features.longest_frame().div_ceil(PAGE_SIZE),
            leave_v4: features.checksum_v4,
            leave_v6: features.checksum_v6,
            shared,
            pages,
        }
    }

    pub(super) fn grant(&self) -> u32 {
        self.shared.grants()[0].0
    }

    /// Changes the longest frame, for which there must be room, to that of these features.
    pub(super) fn make_room_for(&mut self, features: &Features) {
        self.longest = features.longest_frame().div_ceil(PAGE_SIZE);
    }

    /// Whether there is room for any frame, after taking the backend's responses if necessary.
    pub(super) fn has_room(&mut self, statistics: &mut Statistics) -> Result<bool, Violation> {
        if !self.fits() {
            self.reclaim(statistics)?;
        }
        Ok(self.fits())
    }

    fn fits(&self) -> bool {
        self.free.len() >= self.longest && self.ring.room() as usize > self.longest
    }

    fn reclaim(&mut self, statistics: &mut Statistics) -> Result<(), Violation> {
        for _ in 0..self.ring.ready(self.shared.shared())? {
            let mut slot = [0; TX_SLOT];
            self.ring.pop(self.shared.shared(), &mut slot);
            let TxResponse { id, status } = TxResponse::decode(&slot);
            if status == NETIF_RSP_NULL {
                self.extras = self.extras.checked_sub(1).ok_or(Violation::Id { id })?;
                continue;
            }
            match self.busy.get_mut(usize::from(id)) {
                Some(busy) if *busy => *busy = false,
                _ => return Err(Violation::Id { id }),
            }
            self.free.push(id);
            if status != NETIF_RSP_OKAY {
                statistics.transmit_dropped += 1;
            }
        }
        Ok(())
    }

    /// Asks for an event when there is room. Returns whether there is room already.
    pub(super) fn arm(&mut self, statistics: &mut Statistics) -> Result<bool, Violation> {
        // The responses that have arrived may not be enough. The event is requested for those after
        // them.
        while self.ring.final_check(self.shared.shared()) {
            if self.has_room(statistics)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Queues a frame, for which there must be room. With `segment`, the largest payload of a TCP
    /// segment, the backend or a device behind it segments the frame.
    pub(super) fn send(&mut self, frame: &mut [u8], segment: Option<u16>) {
        let flags = match checksum::fill(frame, self.leave_v4, self.leave_v6) {
            Filled::Blank => NETTXF_CSUM_BLANK | NETTXF_DATA_VALIDATED,
            Filled::Whole => 0,
        };
        let kind = if is_ipv6(frame) { XEN_NETIF_GSO_TYPE_TCPV6 } else { XEN_NETIF_GSO_TYPE_TCPV4 };
        let count = frame.len().div_ceil(PAGE_SIZE);
        for (index, part) in frame.chunks(PAGE_SIZE).enumerate() {
            let Some(id) = self.free.pop() else { return };
            let page = &self.pages[usize::from(id)];
            page.shared().write(0, part);
            self.busy[usize::from(id)] = true;
            let more = if index + 1 < count { NETTXF_MORE_DATA } else { 0 };
            let gref = page.grants()[0].0;
            let (flags, size) = match (index, segment) {
                (0, None) => (flags | more, frame.len()),
                (0, Some(_)) => (flags | more | NETTXF_EXTRA_INFO, frame.len()),
                _ => (more, part.len()),
            };
            let request = TxRequest { gref, offset: 0, flags, id, size: size as u16 };
            self.ring.push(self.shared.shared(), &request.encode());
            if let (0, Some(size)) = (index, segment) {
                self.extras += 1;
                self.ring.push(self.shared.shared(), &Gso { size, kind }.encode());
            }
        }
    }

    /// Publishes the queued requests to the backend.
    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish(self.shared.shared())
    }
}

/// The ring of received frames.
pub(super) struct Receive {
    shared: GrantedPages,
    ring: Ring,
    pages: Vec<GrantedPages>,
    /// The page that each slot of the ring offers.
    offered: [u16; RING_SLOTS],
    frame: Frame,
}

/// A frame whose parts are being received.
#[derive(Clone, Copy, Default)]
struct Frame {
    len: usize,
    parts: usize,
    /// Whether the next slot is an extra info.
    extra: bool,
    /// Whether another part follows.
    more: bool,
    /// Whether the checksum was verified, or the frame has not left the host.
    checked: bool,
    /// Whether the frame cannot be delivered.
    invalid: bool,
}

impl Receive {
    fn new(shared: GrantedPages, pages: Vec<GrantedPages>) -> Self {
        let ring = Ring::front(shared.shared(), RING_SLOTS as u32, RX_SLOT);
        let frame = Frame::default();
        let mut receive = Receive { shared, ring, pages, offered: [0; RING_SLOTS], frame };
        (0..receive.pages.len() as u16).for_each(|page| receive.offer(page));
        receive
    }

    pub(super) fn grant(&self) -> u32 {
        self.shared.grants()[0].0
    }

    fn offer(&mut self, page: u16) {
        self.offered[self.ring.next_slot()] = page;
        let gref = self.pages[usize::from(page)].grants()[0].0;
        let request = RxRequest { id: page, gref };
        self.ring.push(self.shared.shared(), &request.encode());
    }

    /// Copies the next frame to `to`, and returns its length, if there is one.
    pub(super) fn next(
        &mut self,
        to: &mut [u8],
        statistics: &mut Statistics,
    ) -> Result<Option<usize>, Violation> {
        let mut waiting = self.ring.ready(self.shared.shared())?;
        while waiting > 0 {
            waiting -= 1;
            if !self.take_part(to)? {
                continue;
            }
            let frame = core::mem::take(&mut self.frame);
            let whole = !frame.invalid && frame.len >= ETHERNET_HEADER;
            if whole && (frame.checked || checksum::is_right(&mut to[..frame.len])) {
                return Ok(Some(frame.len));
            }
            statistics.receive_dropped += 1;
        }
        Ok(None)
    }

    /// Takes the next response. Returns whether it completed a frame.
    fn take_part(&mut self, to: &mut [u8]) -> Result<bool, Violation> {
        let mut response = [0; RX_SLOT];
        let slot = self.ring.pop(self.shared.shared(), &mut response);
        let page = self.offered[slot];
        let frame = &mut self.frame;
        let first = frame.parts == 0;
        frame.parts += 1;
        if frame.parts > MOST_PARTS {
            return Err(Violation::Endless(MOST_PARTS));
        }
        if frame.extra {
            // The segment size does not matter to TCP. Only the flag for a further extra info does.
            frame.extra = response[1] & XEN_NETIF_EXTRA_FLAG_MORE != 0;
        } else {
            let RxResponse { id, offset, flags, status } = RxResponse::decode(&response);
            if id != page {
                return Err(Violation::Id { id });
            }
            match usize::try_from(status) {
                Ok(len) => {
                    if usize::from(offset) + len > PAGE_SIZE {
                        return Err(Violation::Part { offset, len });
                    }
                    match to.get_mut(frame.len..frame.len + len) {
                        Some(to) => {
                            self.pages[usize::from(page)].shared().read(offset.into(), to);
                            frame.len += len;
                        }
                        None => frame.invalid = true,
                    }
                }
                Err(_) => frame.invalid = true,
            }
            if first {
                frame.extra = flags & NETRXF_EXTRA_INFO != 0;
                frame.checked = flags & (NETRXF_DATA_VALIDATED | NETRXF_CSUM_BLANK) != 0;
            }
            frame.more = flags & NETRXF_MORE_DATA != 0;
        }
        let ended = !frame.extra && !frame.more;
        self.offer(page);
        Ok(ended)
    }

    /// Asks for an event at the next part. Returns whether there is a part already.
    pub(super) fn arm(&self) -> bool {
        self.ring.final_check(self.shared.shared())
    }

    /// Publishes the offered pages to the backend.
    pub(super) fn publish(&mut self) -> Notify {
        self.ring.publish(self.shared.shared())
    }
}
