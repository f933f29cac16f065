//! Tests of both ends on plain memory.

use super::*;
use crate::wire::{Call, Dialect, Extensions};
use core::sync::atomic::Ordering;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;
use xen::PAGE_SIZE;
use xen::abi::ring::{REQ_EVENT, REQ_PROD, RSP_EVENT, RSP_PROD};
use xen::testing::page;

const PLAIN: Protocol = Protocol { dialect: Dialect::PvCalls, extensions: Extensions::empty() };

fn request(id: u32) -> Request {
    Request { id, socket: u64::from(id), call: Call::Poll }
}

#[test]
fn requests_and_responses_cross_the_ring_many_times() {
    let page = page();
    let mut front = CommandFront::new(Dialect::PvCalls, page);
    let mut back = CommandBack::new(Dialect::PvCalls);
    for id in 0..100 {
        front.push(page, &request(id)).unwrap();
        let _ = front.publish(page);
        let got = back.pop(page).unwrap().unwrap().unwrap();
        assert_eq!(got, request(id));
        assert_eq!(back.pop(page), Ok(None));
        back.push(page, &got.answer(Err(Errno(1))));
        let _ = back.publish(page);
        assert_eq!(front.pop(page), Ok(Some(got.answer(Err(Errno(1))))));
        assert_eq!(front.pop(page), Ok(None));
    }
}

#[test]
fn a_full_ring_takes_no_request_until_a_response_was_read() {
    let page = page();
    let mut front = CommandFront::new(Dialect::PvCalls, page);
    let mut back = CommandBack::new(Dialect::PvCalls);
    for id in 0..32 {
        front.push(page, &request(id)).unwrap();
    }
    assert_eq!(front.push(page, &request(32)), Err(Errno::EAGAIN));
    let _ = front.publish(page);
    let first = back.pop(page).unwrap().unwrap().unwrap();
    back.push(page, &first.answer(Ok(0)));
    let _ = back.publish(page);
    assert_eq!(front.free(), 0);
    front.pop(page).unwrap().unwrap();
    assert_eq!(front.free(), 1);
}

#[test]
fn an_event_is_due_only_when_the_peer_sleeps() {
    let page = page();
    let mut front = CommandFront::new(Dialect::PvCalls, page);
    let mut back = CommandBack::new(Dialect::PvCalls);
    front.push(page, &request(0)).unwrap();
    assert!(front.publish(page).is_due());
    assert!(!front.publish(page).is_due(), "nothing new");
    front.push(page, &request(1)).unwrap();
    assert!(!front.publish(page).is_due(), "the backend is still awake");
    back.pop(page).unwrap().unwrap().unwrap();
    assert!(back.final_check(page), "a request is waiting");
    back.pop(page).unwrap().unwrap().unwrap();
    assert!(!back.final_check(page));
    front.push(page, &request(2)).unwrap();
    assert!(front.publish(page).is_due());
    assert!(!front.final_check(page));
}

#[test]
fn impossible_indexes_of_a_frontend_are_detected() {
    let page = page();
    let _front = CommandFront::new(Dialect::PvCalls, page);
    for claim in [33, 1 << 31, u32::MAX] {
        page.store_u32(REQ_PROD, claim, Ordering::Relaxed);
        assert_eq!(CommandBack::new(Dialect::PvCalls).pop(page), Err(Errno::EPROTO));
    }
    // Taking a request back after it was read is no better.
    let mut back = CommandBack::new(Dialect::PvCalls);
    page.store_u32(REQ_PROD, 2, Ordering::Relaxed);
    back.pop(page).unwrap();
    back.pop(page).unwrap();
    page.store_u32(REQ_PROD, 1, Ordering::Relaxed);
    assert_eq!(back.pop(page), Err(Errno::EPROTO));
}

#[test]
fn impossible_indexes_of_a_backend_are_detected() {
    let page = page();
    let mut front = CommandFront::new(Dialect::PvCalls, page);
    front.push(page, &request(0)).unwrap();
    let _ = front.publish(page);
    for claim in [2, 1 << 31, u32::MAX] {
        page.store_u32(RSP_PROD, claim, Ordering::Relaxed);
        assert_eq!(front.pop(page), Err(Errno::EPROTO));
    }
}

proptest! {
    #[test]
    fn every_request_is_answered_once_and_in_order(
        start in prop_oneof![any::<u32>(), (u32::MAX - 100)..],
        steps in vec(0u8..4, 1..400),
    ) {
        let page = page();
        let (mut front, mut back) =
            (CommandFront::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
        (front.ring, back.ring) = (front.ring.at(start), back.ring.at(start));
        for (prod, event) in [(REQ_PROD, REQ_EVENT), (RSP_PROD, RSP_EVENT)] {
            page.store_u32(prod, start, Ordering::Relaxed);
            page.store_u32(event, start.wrapping_add(1), Ordering::Relaxed);
        }
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
        let page = page();
        let mut front = CommandFront::new(Dialect::PvCalls, page);
        let mut back = CommandBack::new(Dialect::PvCalls);
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
    fn any_content_of_a_command_ring_is_handled(
        words in vec(any::<u64>(), PAGE_SIZE / 8),
        claims in vec(prop_oneof![any::<u32>(), 0u32..40], 1..20),
    ) {
        let page = page();
        for (index, word) in words.into_iter().enumerate() {
            page.write(8 * index, &word.to_ne_bytes());
        }
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
