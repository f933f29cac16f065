//! The two rings while a session lasts, and the frames in them.
//!
//! The backend's pages are granted for as long as the session, and frames are copied between them and
//! private memory: no grant is made or ended, and nothing allocated, for a frame, and what the stack looks
//! at nobody else can change. The price is a copy more than if each frame's pages were granted anew.

use super::checksum::{self, Filled};
use super::counters::Counters;
use super::pages::{Granted, Grants};
use super::ring::{Ring, Violation};
use super::session::{Terms, is_ipv6};
use alloc::sync::Arc;
use alloc::vec::Vec;
use xen::abi::netif::*;
use xen::{DomId, Errno, Machine, PAGE_SIZE, Port, Signal};

/// The most parts of a frame that comes: pages for 64 KiB, the extra infos, and as many again.
const MOST_PARTS: usize = 36;

/// The least bytes that can be a frame: addresses and type.
const ETHERNET_HEADER: usize = 14;

/// Both rings and their event channels, which may be one.
pub(super) struct Queue {
    pub(super) tx: Transmit,
    pub(super) rx: Receive,
    pub(super) tx_port: Port,
    pub(super) rx_port: Port,
}

impl Queue {
    /// Grants everything, and opens the event channels.
    pub(super) fn open<M: Machine>(
        grants: &Grants<M>,
        peer: DomId,
        terms: &Terms,
        pages: (usize, usize),
        signal: &Arc<Signal>,
    ) -> Result<Queue, Errno> {
        let mut all = grants.pages(peer, 2 + pages.0 + pages.1)?;
        let ports = open_ports(grants.machine(), peer, terms.split_events, signal);
        let (tx_port, rx_port) = match ports {
            Ok(ports) => ports,
            Err(error) => {
                all.into_iter().for_each(|page| grants.withdraw(page));
                return Err(error);
            }
        };
        let rx_pages = all.split_off(2 + pages.0);
        let tx_pages = all.split_off(2);
        let (Some(rx_ring), Some(tx_ring)) = (all.pop(), all.pop()) else {
            unreachable!("two pages were left")
        };
        let tx = Transmit::new(tx_ring, tx_pages, terms);
        let rx = Receive::new(rx_ring, rx_pages);
        Ok(Queue { tx, rx, tx_port, rx_port })
    }

    /// Gives everything back.
    pub(super) fn close<M: Machine>(self, grants: &Grants<M>) {
        grants.machine().close_port(self.tx_port);
        if self.rx_port != self.tx_port {
            grants.machine().close_port(self.rx_port);
        }
        let Queue { tx, rx, .. } = self;
        for page in tx.pages.into_iter().chain(rx.pages).chain([tx.shared, rx.shared]) {
            grants.withdraw(page);
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

/// The ring of frames that leave.
pub(super) struct Transmit {
    shared: Granted,
    ring: Ring<TX_SLOT>,
    pages: Vec<Granted>,
    /// Whether the backend has the page.
    busy: Vec<bool>,
    free: Vec<u16>,
    /// Extra infos that were not answered yet.
    extras: u32,
    /// The most pages that a frame takes.
    longest: usize,
    leave_v4: bool,
    leave_v6: bool,
}

impl Transmit {
    fn new(shared: Granted, pages: Vec<Granted>, terms: &Terms) -> Self {
        let ring = Ring::new(shared.shared());
        Transmit {
            ring,
            busy: pages.iter().map(|_| false).collect(),
            free: (0..pages.len() as u16).rev().collect(),
            extras: 0,
            longest: terms.longest_frame().div_ceil(PAGE_SIZE),
            leave_v4: terms.checksum_v4,
            leave_v6: terms.checksum_v6,
            shared,
            pages,
        }
    }

    pub(super) fn grant(&self) -> u32 {
        self.shared.grant().0
    }

    /// From now on there is room when the longest frame of these terms has it.
    pub(super) fn make_room_for(&mut self, terms: &Terms) {
        self.longest = terms.longest_frame().div_ceil(PAGE_SIZE);
    }

    /// Whether any frame has room, once what was sent is out of the way.
    pub(super) fn has_room(&mut self, counters: &Counters) -> Result<bool, Violation> {
        if !self.fits() {
            self.reclaim(counters)?;
        }
        Ok(self.fits())
    }

    fn fits(&self) -> bool {
        self.free.len() >= self.longest && self.ring.room() > self.longest
    }

    fn reclaim(&mut self, counters: &Counters) -> Result<(), Violation> {
        for _ in 0..self.ring.responses(self.shared.shared())? {
            let (_, slot) = self.ring.take(self.shared.shared());
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
                counters.transmit_dropped.add(1);
            }
        }
        Ok(())
    }

    /// Asks for an event when there is room; whether there is already.
    pub(super) fn arm(&mut self, counters: &Counters) -> Result<bool, Violation> {
        // What was answered meanwhile may not be enough; then the event is asked for behind that.
        while self.ring.arm(self.shared.shared())? {
            if self.has_room(counters)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Queues a frame, for which there must be room. A `segment` is the most bytes of payload that a TCP
    /// segment may have: the frame is cut accordingly, elsewhere.
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
            let gref = page.grant().0;
            let (flags, size) = match (index, segment) {
                (0, None) => (flags | more, frame.len()),
                (0, Some(_)) => (flags | more | NETTXF_EXTRA_INFO, frame.len()),
                _ => (more, part.len()),
            };
            let request = TxRequest { gref, offset: 0, flags, id, size: size as u16 };
            self.ring.put(self.shared.shared(), &request.encode());
            if let (0, Some(size)) = (index, segment) {
                self.extras += 1;
                self.ring.put(self.shared.shared(), &Gso { size, kind }.encode());
            }
        }
    }

    /// Shows the backend what was queued; whether it wants an event.
    pub(super) fn push(&mut self) -> bool {
        self.ring.push(self.shared.shared())
    }
}

/// The ring of frames that come.
pub(super) struct Receive {
    shared: Granted,
    ring: Ring<RX_SLOT>,
    pages: Vec<Granted>,
    /// Which page each slot of the ring offers.
    offered: [u16; RING_SLOTS],
    frame: Frame,
}

/// A frame of which not all parts have come.
#[derive(Clone, Copy, Default)]
struct Frame {
    len: usize,
    parts: usize,
    /// The next slot has an extra info.
    extra: bool,
    /// Another part follows.
    more: bool,
    /// Somebody has looked at the checksum, or there is no way to spoil it.
    checked: bool,
    /// It cannot be delivered.
    spoilt: bool,
}

impl Receive {
    fn new(shared: Granted, pages: Vec<Granted>) -> Self {
        let ring = Ring::new(shared.shared());
        let frame = Frame::default();
        let mut receive = Receive { shared, ring, pages, offered: [0; RING_SLOTS], frame };
        (0..receive.pages.len() as u16).for_each(|page| receive.offer(page));
        receive
    }

    pub(super) fn grant(&self) -> u32 {
        self.shared.grant().0
    }

    fn offer(&mut self, page: u16) {
        self.offered[self.ring.next_slot()] = page;
        let gref = self.pages[usize::from(page)].grant().0;
        let request = RxRequest { id: page, gref };
        self.ring.put(self.shared.shared(), &request.encode());
    }

    /// Copies the next frame out, and returns its length, if there is one.
    pub(super) fn next(
        &mut self,
        to: &mut [u8],
        counters: &Counters,
    ) -> Result<Option<usize>, Violation> {
        let mut waiting = self.ring.responses(self.shared.shared())?;
        while waiting > 0 {
            waiting -= 1;
            if !self.take_part(to)? {
                continue;
            }
            let frame = core::mem::take(&mut self.frame);
            let whole = !frame.spoilt && frame.len >= ETHERNET_HEADER;
            if whole && (frame.checked || checksum::is_right(&mut to[..frame.len])) {
                return Ok(Some(frame.len));
            }
            counters.receive_dropped.add(1);
        }
        Ok(None)
    }

    /// Takes the next response; whether it ended a frame.
    fn take_part(&mut self, to: &mut [u8]) -> Result<bool, Violation> {
        let (slot, response) = self.ring.take(self.shared.shared());
        let page = self.offered[slot];
        let frame = &mut self.frame;
        let first = frame.parts == 0;
        frame.parts += 1;
        if frame.parts > MOST_PARTS {
            return Err(Violation::Endless(MOST_PARTS));
        }
        if frame.extra {
            // Only whether another one follows is of interest: TCP takes segments of any length.
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
                        None => frame.spoilt = true,
                    }
                }
                Err(_) => frame.spoilt = true,
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

    /// Asks for an event when something comes; whether there is something.
    pub(super) fn arm(&self) -> Result<bool, Violation> {
        self.ring.arm(self.shared.shared())
    }

    /// Shows the backend the pages that it may use again; whether it wants an event.
    pub(super) fn push(&mut self) -> bool {
        self.ring.push(self.shared.shared())
    }
}
