//! The command ring: requests one way, responses the other, in the same slots.

use crate::check;
use crate::event::Event;
use std::rc::Rc;
use xen::PAGE_SIZE;
use xen::testing::model::ModelMemory;
use xen::testing::model::loom::thread;
use xensock::ring::{CommandBack, CommandFront};
use xensock::wire::{Call, Dialect, Request};

/// The header's words, by their offsets (`ring.h`), and the slots behind it.
const WORDS: [usize; 4] = [0, 4, 8, 12];
const HEADER: usize = 64;

/// What both ends have. Loom's threads take turns on one of the system's, so an `Rc` will do.
struct Ends {
    page: ModelMemory,
    front: Event,
    back: Event,
}

/// How many requests, or responses, are published at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Publish {
    Each,
    All,
}

/// A frontend makes so many requests, each as soon as there is a slot for it, and takes the responses.
fn exchange(requests: u32, publish: Publish) {
    // Of all dialects this one has the fewest slots.
    let slots = Dialect::Draft1.slots();
    let cells = (0..slots.count as usize).map(|slot| {
        let start = HEADER + slot * slots.stride();
        start..start + slots.stride()
    });
    let page = ModelMemory::new(PAGE_SIZE, &WORDS, cells);
    let mut front = CommandFront::new(Dialect::Draft1, page.shared());
    let ends = Rc::new(Ends { page, front: Event::new(), back: Event::new() });
    let theirs = ends.clone();
    let backend = thread::spawn(move || serve(&theirs, requests, publish));
    let page = ends.page.shared();
    let (mut sent, mut answered) = (0, 0);
    while answered < requests {
        // As `front::session` does at each event, and `front::calls` for each request.
        ends.front.register();
        loop {
            while let Some(response) = front.pop(page).unwrap() {
                assert_eq!((response.id, response.result), (answered, Ok(answered)));
                answered += 1;
            }
            if !front.final_check(page) {
                break;
            }
        }
        if answered == requests {
            break;
        }
        while sent < requests && front.free() > 0 {
            front.push(page, &Request { id: sent, socket: 5, call: Call::Poll }).unwrap();
            sent += 1;
            if publish == Publish::Each {
                ends.back.notify(front.publish(page));
            }
        }
        ends.back.notify(front.publish(page));
        ends.front.sleep();
    }
    assert_eq!(front.pop(page), Ok(None));
    backend.join().unwrap();
}

/// A backend that answers so many requests, as `back::guest` does.
fn serve(ends: &Ends, requests: u32, publish: Publish) {
    let page = ends.page.shared();
    let mut back = CommandBack::new(Dialect::Draft1);
    let mut taken = 0;
    loop {
        ends.back.register();
        loop {
            while let Some(request) = back.pop(page).unwrap() {
                let request = request.unwrap();
                assert_eq!(request.id, taken);
                back.push(page, &request.answer(Ok(taken)));
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
    exchange(Dialect::Draft1.slots().count + 1, Publish::All);
}

#[test]
fn a_request_and_its_response_are_never_missed() {
    check(one_by_one);
}

#[test]
fn slots_are_used_again_without_loss_or_overlap() {
    check(once_round);
}
