//! A ring of requests and responses in the same slots (`io/ring.h`).

use crate::check;
use crate::sleeper::Sleeper;
use std::rc::Rc;
use xen::PAGE_SIZE;
use xen::Shared;
use xen::abi::ring::{REQ_EVENT, REQ_PROD, RING_HEADER, RSP_EVENT, RSP_PROD};
use xen::frontend::Ring;
use xen::testing::model::ModelMemory;
use xen::testing::model::loom::thread;

/// As few slots as the smallest ring in use has.
const SLOTS: u32 = 8;
const STRIDE: usize = 4;

/// The state that both ends share. Loom's threads take turns on one thread of the system, so an
/// `Rc` is enough.
struct Ends {
    page: ModelMemory,
    front: Sleeper,
    back: Sleeper,
}

/// How many requests or responses are published at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    Each,
    All,
}

fn pop(ring: &mut Ring, page: Shared<'_>) -> Option<u32> {
    let mut entry = [0; STRIDE];
    (ring.ready(page).unwrap() > 0).then(|| {
        ring.pop(page, &mut entry);
        u32::from_ne_bytes(entry)
    })
}

/// A frontend makes requests, each as soon as there is a slot for it, and takes the responses.
fn exchange(requests: u32, publish: Publish) {
    let cells = (0..SLOTS as usize).map(|slot| {
        let start = RING_HEADER + slot * STRIDE;
        start..start + STRIDE
    });
    let page = ModelMemory::new(PAGE_SIZE, &[REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT], cells);
    let mut front = Ring::front(page.shared(), SLOTS, STRIDE);
    let ends = Rc::new(Ends { page, front: Sleeper::new(), back: Sleeper::new() });
    let theirs = ends.clone();
    let backend = thread::spawn(move || serve(&theirs, requests, publish));
    let page = ends.page.shared();
    let (mut sent, mut answered) = (0u32, 0);
    while answered < requests {
        ends.front.register();
        loop {
            while let Some(response) = pop(&mut front, page) {
                assert_eq!(response, !answered);
                answered += 1;
            }
            if !front.final_check(page) {
                break;
            }
        }
        if answered == requests {
            break;
        }
        while sent < requests && front.room() > 0 {
            front.push(page, &sent.to_ne_bytes());
            sent += 1;
            if publish == Publish::Each {
                ends.back.notify(front.publish(page));
            }
        }
        ends.back.notify(front.publish(page));
        ends.front.sleep();
    }
    assert_eq!(front.ready(page), Ok(0));
    backend.join().unwrap();
}

/// A backend that answers these requests.
fn serve(ends: &Ends, requests: u32, publish: Publish) {
    let page = ends.page.shared();
    let mut back = Ring::back(SLOTS, STRIDE);
    let mut taken = 0;
    loop {
        ends.back.register();
        loop {
            while let Some(request) = pop(&mut back, page) {
                assert_eq!(request, taken);
                back.push(page, &(!request).to_ne_bytes());
                taken += 1;
                if publish == Publish::Each {
                    ends.front.notify(back.publish(page));
                }
            }
            ends.front.notify(back.publish(page));
            if taken == requests {
                return;
            }
            if !back.final_check(page) {
                break;
            }
        }
        ends.back.sleep();
    }
}

/// Two requests, so that one is on its way while the other is answered.
pub fn one_by_one() {
    exchange(2, Publish::Each);
}

/// One request more than there are slots.
pub fn once_round() {
    exchange(SLOTS + 1, Publish::All);
}

#[test]
fn a_request_and_its_response_are_never_missed() {
    check(one_by_one);
}

#[test]
fn slots_are_reused_without_loss_or_overlap() {
    check(once_round);
}
