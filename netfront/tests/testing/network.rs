//! The network behind a backend, with another stack at its end. It does what Linux does for a
//! guest: completes checksums and cuts segments.

use super::backend::{FakeBackend, Features, Sent};
use super::{RxToken, TxToken};
use netfront::{Link, Nic};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, Ipv4Packet, TcpPacket, TcpSeqNumber};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::task::Waker;
use xen::Side;
use xen::abi::netif::*;

/// The lengths of the headers before TCP's; the stacks use no IP options.
const ETHERNET: usize = 14;
const IP: usize = 20;

/// The slots of a frame of 64 KiB, with its extra info.
const PARTS: u32 = 17;

/// The interface of the stack at the network's end.
#[derive(Clone)]
pub struct FakeNetwork(Rc<State>);

struct State {
    backend: RefCell<Option<FakeBackend>>,
    features: Features,
    mtu: usize,
    /// Frames for the stack.
    frames: RefCell<VecDeque<Vec<u8>>>,
    cut: Cell<usize>,
}

impl FakeNetwork {
    pub fn new(backend: FakeBackend, features: Features, mtu: usize) -> FakeNetwork {
        let backend = RefCell::new(Some(backend));
        let frames = RefCell::default();
        FakeNetwork(Rc::new(State { backend, features, mtu, frames, cut: Cell::new(0) }))
    }

    /// Drops the backend.
    pub fn hang_up(&self) {
        self.0.backend.take();
    }

    /// How many frames were cut into segments.
    pub fn cut(&self) -> usize {
        self.0.cut.get()
    }

    fn has_room(&self) -> bool {
        let offered = self.0.backend.borrow().as_ref().map(FakeBackend::offered);
        offered > Some(PARTS)
    }

    fn deliver(&self, frame: &[u8]) {
        let State { backend, features, mtu, .. } = &*self.0;
        let flags = if features.segmentation { NETRXF_CSUM_BLANK } else { 0 };
        if let Some(backend) = &mut *backend.borrow_mut() {
            backend.deliver(frame, 4096, flags, frame.len() > mtu + ETHERNET);
        }
    }

    fn fetch(&self) {
        let mut backend = self.0.backend.borrow_mut();
        let Some(backend) = &mut *backend else { return };
        let sent = backend.take_sent();
        if !sent.is_empty() {
            backend.notify();
        }
        for Sent { mut bytes, flags, gso } in sent {
            if flags & NETTXF_CSUM_BLANK != 0 {
                complete(&mut bytes);
            }
            let mut frames = self.0.frames.borrow_mut();
            match gso {
                Some(Gso { size, .. }) => {
                    self.0.cut.set(self.0.cut.get() + 1);
                    frames.extend(cut(&bytes, size.into()));
                }
                None => frames.push_back(bytes),
            }
            let longest = frames.iter().map(Vec::len).max();
            assert!(longest <= Some(ETHERNET + self.0.mtu), "a frame of {longest:?} bytes");
        }
    }
}

/// Completes the checksum as a device does: it sums up from TCP's header on. The checksum's field
/// holds the pseudo header's sum.
fn complete(frame: &mut [u8]) {
    let tcp = &mut frame[ETHERNET + IP..];
    let sum = smoltcp::wire::checksum::data(tcp);
    tcp[16..18].copy_from_slice(&(!sum).to_be_bytes());
}

/// Cuts a frame of TCP over IPv4 into segments with at most `size` bytes of payload.
fn cut(frame: &[u8], size: usize) -> Vec<Vec<u8>> {
    let ip = Ipv4Packet::new_checked(&frame[ETHERNET..]).expect("the whole frame is a packet");
    let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
    let tcp = TcpPacket::new_checked(ip.payload()).expect("the packet is TCP's");
    assert!(tcp.verify_checksum(&from, &to), "the whole frame's checksum is wrong");
    let headers = ETHERNET + IP + usize::from(tcp.header_len());
    let count = tcp.payload().len().div_ceil(size);
    assert!(count > 1, "there is nothing to cut");
    let part = |(number, payload): (usize, &[u8])| {
        let mut segment = [&frame[..headers], payload].concat();
        let mut ip = Ipv4Packet::new_unchecked(&mut segment[ETHERNET..]);
        ip.set_total_len((headers - ETHERNET + payload.len()) as u16);
        ip.fill_checksum();
        let mut part = TcpPacket::new_unchecked(ip.payload_mut());
        part.set_seq_number(TcpSeqNumber(tcp.seq_number().0.wrapping_add((number * size) as i32)));
        if number + 1 < count {
            part.set_fin(false);
            part.set_psh(false);
        }
        part.fill_checksum(&from, &to);
        segment
    };
    tcp.payload().chunks(size).enumerate().map(part).collect()
}

impl Device for FakeNetwork {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, now: Instant) -> Option<(RxToken, TxToken<'_>)> {
        self.fetch();
        self.has_room().then_some(())?;
        let frame = self.0.frames.borrow_mut().pop_front()?;
        Some((RxToken(frame), self.transmit(now)?))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        self.has_room().then(|| TxToken(Box::new(|frame| self.deliver(&frame))))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET + self.0.mtu;
        if self.0.features.segmentation {
            // Received frames have checksums all the same.
            capabilities.checksum.tcp = Checksum::Rx;
            capabilities.segmentation.tcpv4 = NonZeroUsize::new(60_000);
        }
        capabilities
    }
}

impl Nic for FakeNetwork {
    fn hardware_address(&self) -> EthernetAddress {
        EthernetAddress([2, 0, 0, 0, 0, 9])
    }

    fn link(&self) -> Link {
        if self.0.backend.borrow().is_some() { Link::Up(1) } else { Link::Down }
    }

    fn register(&self, waker: &Waker) {
        let State { backend, frames, .. } = &*self.0;
        let backend = backend.borrow();
        let Some(backend) = &*backend else { return };
        backend.signal.register(Side::Rx, waker);
        let before = backend.offered();
        backend.arm();
        if backend.tx_waiting() > 0 || backend.offered() != before || !frames.borrow().is_empty() {
            waker.wake_by_ref();
        }
    }

    fn flush(&self) {}
}
