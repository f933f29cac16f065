//! What holds of the rings whatever happens on them.

use super::command::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};
use super::{CommandBack, CommandFront, Consumer, Guess, Producer, copy_in, copy_out, len};
use crate::wire::{Call, Dialect, Extensions, Layout, Protocol, Region, Request};
use core::sync::atomic::Ordering;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use xen::{Errno, PAGE_SIZE, Shared};

const PLAIN: Protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::empty() };

/// Memory that lives as long as it is used.
struct Memory(Vec<u64>);

impl Memory {
    fn pages(count: usize) -> Memory {
        Memory(vec![0; count * PAGE_SIZE / 8])
    }

    fn shared(&mut self) -> Shared<'_> {
        // SAFETY: the vector is borrowed for as long as the result lives.
        unsafe { Shared::new(self.0.as_mut_ptr().cast(), self.0.len() * 8) }
    }
}

fn data_ring() -> (Memory, Layout) {
    let layout = PLAIN.layout(1).unwrap();
    (Memory::pages(layout.pages), layout)
}

/// Both ends of `out`, as if `index` bytes had gone through already.
fn ends_at(index: u32, layout: &Layout, region: Region<'_>) -> (Producer, Consumer) {
    region.indexes.store_u32(layout.output.prod, index, Ordering::Relaxed);
    region.indexes.store_u32(layout.output.cons, index, Ordering::Relaxed);
    (Producer::at(layout.output, index), Consumer::at(layout.output, Guess::HalfFull, index))
}

proptest! {
    #[test]
    fn whatever_goes_in_comes_out_in_order(
        start in prop_oneof![any::<u32>(), (u32::MAX - 10_000)..],
        steps in vec((any::<bool>(), 0usize..6000), 1..200),
    ) {
        let (mut memory, layout) = data_ring();
        let region = layout.split(memory.shared());
        let (mut producer, mut consumer) = ends_at(start, &layout, region);
        let (mut expected, mut next) = (VecDeque::<u8>::new(), 0u8);
        for (puts, count) in steps {
            if puts {
                let bytes: Vec<u8> = (0..count).map(|at| next.wrapping_add(at as u8)).collect();
                let room = producer.room(region).unwrap();
                prop_assert_eq!(len(&room), layout.output.size as usize - expected.len());
                let put = copy_in(&room, &bytes);
                prop_assert_eq!(producer.advance(region, put).is_due(), put > 0);
                expected.extend(&bytes[..put]);
                next = next.wrapping_add(put as u8);
            } else {
                let data = consumer.data(region).unwrap();
                prop_assert_eq!(len(&data), expected.len());
                let mut bytes = vec![0; count];
                let taken = copy_out(&data, &mut bytes);
                let may_wait = taken > 0 && expected.len() >= layout.output.size as usize / 2;
                prop_assert_eq!(consumer.advance(region, taken).is_due(), may_wait);
                prop_assert!(expected.drain(..taken).eq(bytes[..taken].iter().copied()));
            }
        }
    }

    #[test]
    fn no_index_of_a_peer_leads_out_of_the_ring(
        own in any::<u32>(),
        claims in vec(prop_oneof![any::<u32>(), 0u32..10_000], 1..50),
        count in 0usize..10_000,
    ) {
        let (mut memory, layout) = data_ring();
        let region = layout.split(memory.shared());
        let (mut producer, mut consumer) = ends_at(own, &layout, region);
        let mut bytes = vec![0; count];
        for claim in claims {
            // Half of the claims are near what is possible.
            let claim = if claim < 10_000 { own.wrapping_add(claim) } else { claim };
            region.indexes.store_u32(layout.output.prod, claim, Ordering::Relaxed);
            match consumer.data(region) {
                Ok(data) => {
                    prop_assert!(len(&data) <= layout.output.size as usize);
                    let taken = copy_out(&data, &mut bytes);
                    let _ = consumer.advance(region, taken);
                }
                Err(error) => prop_assert_eq!(error, Errno::EPROTO),
            }
            region.indexes.store_u32(layout.output.cons, claim, Ordering::Relaxed);
            match producer.room(region) {
                Ok(room) => {
                    prop_assert!(len(&room) <= layout.output.size as usize);
                    let put = copy_in(&room, &bytes);
                    let _ = producer.advance(region, put);
                }
                Err(error) => prop_assert_eq!(error, Errno::EPROTO),
            }
        }
    }

    #[test]
    fn every_request_is_answered_once_and_in_its_place(
        start in prop_oneof![any::<u32>(), (u32::MAX - 100)..],
        steps in vec(0u8..4, 1..400),
    ) {
        let mut memory = Memory::pages(1);
        let page = memory.shared();
        for (prod, event) in [(REQ_PROD, REQ_EVENT), (RSP_PROD, RSP_EVENT)] {
            page.store_u32(prod, start, Ordering::Relaxed);
            page.store_u32(event, start.wrapping_add(1), Ordering::Relaxed);
        }
        let mut front = CommandFront::at(Dialect::PvCalls, start);
        let mut back = CommandBack::at(Dialect::PvCalls, start);
        let (mut sent, mut taken, mut answered) = (0, 0, 0);
        let (mut to_do, mut got) = (VecDeque::new(), 0);
        for step in steps {
            match step {
                0 => {
                    let request = Request { id: sent, socket: 5, call: Call::Poll };
                    match front.push(page, &request) {
                        Ok(()) => sent += 1,
                        Err(error) => {
                            prop_assert_eq!(error, Errno::EAGAIN);
                            prop_assert_eq!(sent - got, 32);
                        }
                    }
                    let _ = front.publish(page);
                }
                1 => match back.pop(page).unwrap() {
                    Some(request) => {
                        let request = request.unwrap();
                        prop_assert_eq!(request.id, taken);
                        taken += 1;
                        to_do.push_back(request);
                    }
                    None => {
                        prop_assert_eq!(taken, sent);
                        prop_assert!(!back.final_check(page));
                    }
                },
                2 => if let Some(request) = to_do.pop_front() {
                    back.push(page, &request.answer(Ok(request.id)));
                    let _ = back.publish(page);
                    answered += 1;
                },
                _ => match front.pop(page).unwrap() {
                    Some(response) => {
                        prop_assert_eq!((response.id, response.result), (got, Ok(got)));
                        got += 1;
                    }
                    None => {
                        prop_assert_eq!(got, answered);
                        prop_assert!(!front.final_check(page));
                    }
                },
            }
        }
    }

    #[test]
    fn no_event_is_missed(steps in vec((any::<bool>(), 1u32..5), 1..100)) {
        // A backend that sleeps after each final check, and is woken by due events alone, is never
        // left asleep with a request unseen.
        let mut memory = Memory::pages(1);
        let page = memory.shared();
        let (mut front, mut back) = (CommandFront::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
        let mut awake = false;
        let mut seen = 0;
        let mut pushed = 0;
        for (pushes, count) in steps {
            if pushes {
                for _ in 0..count.min(front.free()) {
                    let request = Request { id: pushed, socket: 0, call: Call::Poll };
                    front.push(page, &request).unwrap();
                    pushed += 1;
                }
                awake |= front.publish(page).is_due();
            } else if awake {
                while let Some(request) = back.pop(page).unwrap() {
                    back.push(page, &request.unwrap().answer(Ok(0)));
                    seen += 1;
                }
                let _ = back.publish(page);
                awake = back.final_check(page);
                while front.pop(page).unwrap().is_some() {}
            }
            prop_assert!(awake || seen == pushed);
        }
    }

    #[test]
    fn a_command_ring_of_any_content_is_taken_calmly(
        words in vec(any::<u64>(), PAGE_SIZE / 8),
        claims in vec(prop_oneof![any::<u32>(), 0u32..40], 1..20),
    ) {
        let mut memory = Memory(words);
        let page = memory.shared();
        let mut back = CommandBack::new(Dialect::PvCalls);
        let mut front = CommandFront::new(Dialect::PvCalls, page);
        for id in 0..20 {
            front.push(page, &Request { id, socket: 0, call: Call::Poll }).unwrap();
        }
        let _ = front.publish(page);
        for claim in claims {
            page.store_u32(REQ_PROD, claim, Ordering::Relaxed);
            let mut requests = 0;
            while let Ok(Some(request)) = back.pop(page) {
                requests += 1;
                prop_assert!(requests <= 32);
                back.push(page, &match request {
                    Ok(request) => request.answer(Ok(0)),
                    Err(malformed) => malformed.answer(),
                });
            }
            page.store_u32(RSP_PROD, claim, Ordering::Relaxed);
            let mut responses = 0;
            while let Ok(Some(_)) = front.pop(page) {
                responses += 1;
                prop_assert!(responses <= 32);
            }
        }
    }

    #[test]
    fn slots_of_any_content_are_decoded_or_refused(slot in vec(any::<u8>(), 64)) {
        if let Ok(request) = PLAIN.decode_request(&slot) {
            let mut again = [0; 64];
            PLAIN.encode_request(&request, &mut again).unwrap();
            prop_assert_eq!(PLAIN.decode_request(&again), Ok(request));
        }
        let response = PLAIN.decode_response(&slot[..24]);
        let mut again = [0; 24];
        PLAIN.encode_response(&response, &mut again);
        prop_assert_eq!(PLAIN.decode_response(&again), response);
    }
}
