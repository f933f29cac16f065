//! A network backend, written from `io/netif.h` alone. It keeps to the protocol unless a test
//! breaks it.

use super::{BACK, DOM0, FRONT, GUEST};
use embassy_time::Timer;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use xen::abi::netif::*;
use xen::testing::{BoundPort, MappedPages, Peer, World};
use xen::xenbus::{self, State};
use xen::xenstore::Store;
use xen::{Channel, GrantRef, Mapping, Neighbour, PAGE_SIZE, Port, Signal};

/// The features that a backend announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    pub scatter: bool,
    pub segmentation: bool,
    pub no_checksums: bool,
    pub split_events: bool,
}

pub const ALL: Features =
    Features { scatter: true, segmentation: true, no_checksums: false, split_events: true };
pub const NONE: Features =
    Features { scatter: false, segmentation: false, no_checksums: true, split_events: false };

/// A frame that the guest has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub bytes: Vec<u8>,
    pub flags: u16,
    pub gso: Option<Gso>,
}

/// The backend of one session.
pub struct FakeBackend {
    pub store: Store,
    peer: Peer,
    pub tx: MappedPages,
    pub rx: MappedPages,
    pub ports: Vec<BoundPort>,
    /// Raised by the guest's events.
    pub signal: Arc<Signal>,
    pub tx_done: u32,
    pub rx_done: u32,
}

impl FakeBackend {
    /// Waits for the frontend's nodes and connects.
    pub async fn start(world: &World, store: Store, features: Features) -> FakeBackend {
        let flag = |flag: bool| if flag { "1" } else { "0" };
        for (name, value) in [
            ("feature-rx-copy", "1"),
            ("feature-sg", flag(features.scatter)),
            ("feature-gso-tcpv4", flag(features.segmentation)),
            ("feature-gso-tcpv6", flag(features.segmentation)),
            ("feature-no-csum-offload", flag(features.no_checksums)),
            ("feature-ipv6-csum-offload", flag(!features.no_checksums)),
            ("feature-split-event-channels", flag(features.split_events)),
        ] {
            store.write(&format!("{BACK}/{name}"), value).await.unwrap();
        }
        xenbus::switch_state(&store, BACK, State::InitWait).await.unwrap();
        while xenbus::read_state(&store, FRONT).await.unwrap() != State::Connected {
            Timer::after_millis(1).await;
        }
        let number = async |name: &str| -> u32 {
            xenbus::read_number(&store, &format!("{FRONT}/{name}")).await.unwrap()
        };
        assert_eq!(number("request-rx-copy").await, 1);
        let peer = world.peer(DOM0);
        let map = async |name: &str| {
            peer.map(GUEST, &[GrantRef(number(name).await)]).expect("the ring is granted")
        };
        let (tx, rx) = (map("tx-ring-ref").await, map("rx-ring-ref").await);
        let names: &[&str] = if features.split_events {
            &["event-channel-tx", "event-channel-rx"]
        } else {
            &["event-channel"]
        };
        let (mut ports, signal) = (Vec::new(), Arc::new(Signal::new()));
        for name in names {
            let port = Port(number(name).await);
            ports.push(peer.bind_port(GUEST, port, signal.clone()).unwrap());
        }
        xenbus::switch_state(&store, BACK, State::Connected).await.unwrap();
        FakeBackend { store, peer, tx, rx, ports, signal, tx_done: 0, rx_done: 0 }
    }

    /// The number of unanswered requests on the transmit ring.
    pub fn tx_waiting(&self) -> u32 {
        self.tx.shared().load_u32(REQ_PROD, Acquire).wrapping_sub(self.tx_done)
    }

    /// Requests an event for the next request on either ring.
    pub fn arm(&self) {
        let after = |page: &MappedPages, done: u32| {
            page.shared().store_u32(REQ_EVENT, done.wrapping_add(1), Release);
        };
        after(&self.tx, self.tx_done);
        after(&self.rx, self.rx.shared().load_u32(REQ_PROD, Acquire));
    }

    fn tx_slot(&self, index: u32) -> [u8; TX_SLOT] {
        let mut slot = [0; TX_SLOT];
        let at = RING_HEADER + index as usize % RING_SLOTS * TX_SLOT;
        self.tx.shared().read(at, &mut slot);
        slot
    }

    pub fn answer_tx(&mut self, response: TxResponse) {
        let at = RING_HEADER + self.tx_done as usize % RING_SLOTS * TX_SLOT;
        self.tx.shared().write(at, &response.encode());
        self.tx_done = self.tx_done.wrapping_add(1);
        self.tx.shared().store_u32(RSP_PROD, self.tx_done, Release);
    }

    pub fn notify(&self) {
        self.ports.iter().for_each(BoundPort::notify);
    }

    /// Sends an event if the guest has requested one for a response after the first `before`.
    pub fn notify_of_answers(&self, before: u32) -> bool {
        let event = self.tx.shared().load_u32(RSP_EVENT, Acquire);
        let due = self.tx_done.wrapping_sub(event) < self.tx_done.wrapping_sub(before);
        if due {
            self.notify();
        }
        due
    }

    /// Takes all frames that the guest has sent, and answers them as a real backend does.
    pub fn take_sent(&mut self) -> Vec<Sent> {
        self.take_some(usize::MAX)
    }

    /// Takes at most `most` frames.
    pub fn take_some(&mut self, most: usize) -> Vec<Sent> {
        let mut frames = Vec::new();
        while self.tx_waiting() > 0 && frames.len() < most {
            let first = TxRequest::decode(&self.tx_slot(self.tx_done));
            let mut index = self.tx_done.wrapping_add(1);
            let gso = (first.flags & NETTXF_EXTRA_INFO != 0).then(|| {
                let extra = self.tx_slot(index);
                index = index.wrapping_add(1);
                assert_eq!((extra[0], extra[1]), (XEN_NETIF_EXTRA_TYPE_GSO, 0));
                Gso { size: u16::from_le_bytes([extra[2], extra[3]]), kind: extra[4] }
            });
            let mut requests = vec![first];
            while requests.last().unwrap().flags & NETTXF_MORE_DATA != 0 {
                requests.push(TxRequest::decode(&self.tx_slot(index)));
                index = index.wrapping_add(1);
            }
            assert!(requests.len() <= XEN_NETIF_NR_SLOTS_MIN, "more than a backend must take");
            let rest: usize = requests[1..].iter().map(|part| usize::from(part.size)).sum();
            let mut bytes = Vec::new();
            for (number, part) in requests.iter().enumerate() {
                let size = usize::from(part.size) - if number == 0 { rest } else { 0 };
                assert!(usize::from(part.offset) + size <= PAGE_SIZE, "{part:?} leaves its page");
                let page =
                    self.peer.map(GUEST, &[GrantRef(part.gref)]).expect("the page is granted");
                let mut to = vec![0; size];
                page.shared().read(part.offset.into(), &mut to);
                bytes.extend(to);
            }
            frames.push(Sent { bytes, flags: first.flags, gso });
            for (number, part) in requests.iter().enumerate() {
                self.answer_tx(TxResponse { id: part.id, status: NETIF_RSP_OKAY });
                if number == 0 && gso.is_some() {
                    self.answer_tx(TxResponse { id: 0xffff, status: NETIF_RSP_NULL });
                }
            }
        }
        frames
    }

    /// The number of pages that the guest offers for receiving.
    pub fn offered(&self) -> u32 {
        self.rx.shared().load_u32(REQ_PROD, Acquire).wrapping_sub(self.rx_done)
    }

    /// The next offered page.
    pub fn next_offer(&self) -> RxRequest {
        let mut slot = [0; RX_SLOT];
        let at = RING_HEADER + self.rx_done as usize % RING_SLOTS * RX_SLOT;
        self.rx.shared().read(at, &mut slot);
        RxRequest::decode(&slot)
    }

    /// Writes the next slot of the receive ring.
    pub fn put_rx(&mut self, slot: [u8; RX_SLOT]) {
        let at = RING_HEADER + self.rx_done as usize % RING_SLOTS * RX_SLOT;
        self.rx.shared().write(at, &slot);
        self.rx_done = self.rx_done.wrapping_add(1);
    }

    /// Publishes the written slots.
    pub fn push_rx(&self) {
        self.rx.shared().store_u32(RSP_PROD, self.rx_done, Release);
    }

    /// Delivers a frame in parts of at most `part` bytes.
    pub fn deliver(&mut self, frame: &[u8], part: usize, flags: u16, gso: bool) {
        let parts: Vec<&[u8]> = frame.chunks(part).collect();
        for (number, bytes) in parts.iter().enumerate() {
            let RxRequest { id, gref } = self.next_offer();
            let page = self.peer.map(GUEST, &[GrantRef(gref)]).expect("the page is granted");
            let offset = (number * 64 % (PAGE_SIZE - bytes.len() + 1)) as u16;
            page.shared().write(offset.into(), bytes);
            let more = if number + 1 < parts.len() { NETRXF_MORE_DATA } else { 0 };
            let extra = if gso && number == 0 { NETRXF_EXTRA_INFO } else { 0 };
            let flags = if number == 0 { flags } else { 0 } | more | extra;
            let status = bytes.len() as i16;
            self.put_rx(RxResponse { id, offset, flags, status }.encode());
            if gso && number == 0 {
                self.put_rx([
                    XEN_NETIF_EXTRA_TYPE_GSO,
                    0,
                    0xb4,
                    5,
                    XEN_NETIF_GSO_TYPE_TCPV4,
                    0,
                    0,
                    0,
                ]);
            }
        }
        self.push_rx();
        self.notify();
    }

    /// Closes the session as the protocol demands.
    pub async fn close(self) {
        xenbus::switch_state(&self.store, BACK, State::Closing).await.unwrap();
        let FakeBackend { store, tx, rx, ports, .. } = self;
        while xenbus::read_state(&store, FRONT).await.unwrap() != State::Closed {
            Timer::after_millis(1).await;
        }
        drop((tx, rx, ports));
        xenbus::switch_state(&store, BACK, State::Closed).await.unwrap();
    }
}
