//! A connection of a hostile end.

use super::application::Done;
use super::{CAPACITY, QUOTA};
use crate::input::Input;
use embedded_io_async::{Read, Write};
use futures_util::FutureExt;
use idc::life::{Epoch, NodeId, Phase, Publication};
use idc::testing::FakeSocket;
use idc::wire::{HEADER_LEN, Header, Hello, Kind, Transfer};
use idc::{Quota, Service};
use std::collections::VecDeque;

/// The services of the node, and one that it has not.
const SERVICES: [&str; 6] = ["test", "honest", "-buffers@1", "-buffers@2", "back", "other"];

/// A connection of a hostile end.
pub(super) struct Link {
    socket: FakeSocket,
    mine: Publication,
    service: Service,
    /// What was received and is not a whole frame.
    received: Vec<u8>,
    /// The node's latest publication.
    theirs: Option<Publication>,
    /// Frames that expect an answer.
    asked: VecDeque<Header>,
}

impl Link {
    pub(super) fn new(socket: FakeSocket) -> Link {
        let node = NodeId([9; 16]);
        let (phase, met) = (Phase::Idle, Epoch(0));
        let mine = Publication { node, epoch: Epoch(5), phase, met, quota: QUOTA };
        let service = Service::new("test", 0).expect("a name");
        let (received, theirs, asked) = Default::default();
        Link { socket, mine, service, received, theirs, asked }
    }

    /// Sends bytes, as many as there is room for.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).now_or_never();
    }

    fn say(&mut self) {
        let hello = Hello { service: self.service.clone(), publication: self.mine }.to_string();
        let header = Header { kind: Kind::Hello, slot: 0, len: hello.len() as u32, code: 0 };
        self.send(&[&header.to_bytes()[..], hello.as_bytes()].concat());
    }

    /// The next HELLO of an end that keeps to the protocol: of the dialling one, or the other.
    pub(super) fn shake_hands(&mut self, how: u8) {
        if let Ok(service) = Service::from_peer(SERVICES[usize::from(how >> 1) % SERVICES.len()])
            && self.theirs.is_none()
        {
            self.service = service;
        }
        let theirs = self.theirs.map_or(Epoch(1), |theirs| theirs.epoch);
        let is_idle = self.mine.phase == Phase::Idle && self.theirs.is_some();
        self.mine.phase = match how & 1 {
            0 if is_idle => Phase::Offered(theirs),
            1 if self.theirs.is_some_and(|it| it.phase == Phase::Offered(self.mine.epoch)) => {
                Phase::Ready(theirs)
            }
            _ => Phase::Idle,
        };
        self.say();
    }

    /// Says any HELLO.
    pub(super) fn hello(&mut self, input: &mut Input<'_>) {
        if let Ok(service) = Service::from_peer(SERVICES[input.below(SERVICES.len())]) {
            self.service = service;
        }
        let theirs = self.theirs.map_or(1, |theirs| theirs.epoch.0);
        let epoch = |input: &mut Input<'_>| match input.byte() {
            byte @ 0..200 => Epoch(theirs.wrapping_add(u64::from(byte) % 3).max(1)),
            byte => Epoch(1 << (byte % 64)),
        };
        let pair = epoch(input);
        self.mine.met = epoch(input);
        let how = input.byte();
        self.mine.epoch.0 += u64::from(how & 1);
        self.mine.node.0[0] ^= how & 2;
        self.mine.phase = match how >> 2 & 7 {
            0 => Phase::Idle,
            1 | 2 => Phase::Offered(pair),
            3 | 4 => Phase::Ready(pair),
            5 => Phase::Up(pair),
            _ => Phase::Leaving,
        };
        if how & 0x80 != 0 {
            self.mine.quota = match how >> 5 & 3 {
                0 => QUOTA,
                1 => Quota::default(),
                2 => Quota { messages: u16::MAX, transactions: u16::MAX, message: 4000, ..QUOTA },
                _ => Quota { messages: 1, message: u32::MAX, ..QUOTA },
            };
        }
        self.say();
    }

    /// Sends any frame.
    pub(super) fn frame(&mut self, input: &mut Input<'_>) {
        let kinds = [
            Kind::Message,
            Kind::Done,
            Kind::Request,
            Kind::Response,
            Kind::Data,
            Kind::End,
            Kind::Hello,
            Kind::Read,
            Kind::Write,
        ];
        let (kind, slot) = (kinds[input.below(kinds.len())], input.byte());
        let (code, more) = (u32::from(input.byte() & 3), input.byte());
        let body = input.bytes();
        let body = if more & 1 == 0 { body.to_vec() } else { body.repeat(8) };
        let len = match more {
            252.. => input.u32(),
            _ => body.len() as u32,
        };
        let slot = u16::from(slot % 8) + if slot > 250 { 65000 } else { 0 };
        let header = Header { kind, slot, len, code };
        self.send(&[&header.to_bytes()[..], &body].concat());
    }

    /// Receives what has come.
    pub(super) fn receive(&mut self, done: &Done) {
        let mut piece = [0; CAPACITY];
        if let Some(Ok(count)) = self.socket.read(&mut piece).now_or_never() {
            self.received.extend(&piece[..count]);
        }
        while let Some(head) = self.received.first_chunk() {
            // The node keeps to the protocol.
            let header = Header::from_bytes(head).expect("a header");
            let end = HEADER_LEN + header.len as usize;
            let Some(body) = self.received.get(HEADER_LEN..end) else { break };
            match header.kind {
                Kind::Hello => {
                    let hello = Hello::from_bytes(body).expect("a HELLO");
                    self.theirs = Some(hello.publication);
                }
                Kind::Message | Kind::Request | Kind::Read | Kind::Write => {
                    self.asked.push_back(header);
                }
                Kind::Data => done.reach(|reached| reached.data += 1),
                Kind::Done | Kind::Response | Kind::End => {}
            }
            if matches!(header.kind, Kind::Read | Kind::Write)
                && let Some(asked) = self.asked.back_mut()
            {
                let bytes = body.first_chunk().expect("a transfer");
                asked.len = Transfer::from_bytes(bytes).expect("a transfer").length as u32;
            }
            self.received.drain(..end);
        }
    }

    /// Answers what was received first.
    pub(super) fn answer(&mut self, input: &mut Input<'_>) {
        let Some(asked) = self.asked.pop_front() else { return };
        let slot = asked.slot;
        let (kind, body) = match asked.kind {
            Kind::Message => (Kind::Done, vec![]),
            Kind::Request => (Kind::Response, vec![8; input.below(60)]),
            kind => {
                let data = if kind == Kind::Read { asked.len.min(1500) as usize } else { 0 };
                if data > 0 {
                    let header = Header { kind: Kind::Data, slot, len: data as u32, code: 0 };
                    self.send(&[&header.to_bytes()[..], &vec![3; data]].concat());
                }
                (Kind::End, vec![])
            }
        };
        let header = Header { kind, slot, len: body.len() as u32, code: 0 };
        self.send(&[&header.to_bytes()[..], &body].concat());
    }
}
