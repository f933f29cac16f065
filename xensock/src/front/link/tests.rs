//! Tests of the queues, over a command ring in plain memory.

use super::*;
use crate::ring::CommandBack;
use crate::wire::{Dialect, RingGrants, RingOffer};
use xen::testing::page;
use xen::{GrantRef, Port};

fn accept() -> Call {
    let grants = RingGrants::Indexes(GrantRef(0));
    Call::Accept { new: 0, ring: RingOffer { grants, port: Port(1) } }
}

fn taken(back: &mut CommandBack, page: Shared<'_>) -> Vec<Request> {
    core::iter::from_fn(|| back.pop(page).unwrap()).map(Result::unwrap).collect()
}

#[test]
fn accepts_never_take_the_last_slots() {
    let page = page();
    let (mut calls, mut back) =
        (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
    let _accepts: Vec<_> = (0..100).map(|socket| calls.queue(socket, accept())).collect();
    let _ = calls.send(page);
    assert_eq!(taken(&mut back, page).len(), 28);
    let _others: Vec<_> = (0..5).map(|socket| calls.queue(socket, Call::Poll)).collect();
    let _ = calls.send(page);
    let others = taken(&mut back, page);
    assert_eq!(others.len(), 4);
    back.push(page, &others[0].answer(Ok(0)));
    let _ = back.publish(page);
    calls.receive(page).unwrap();
    let _ = calls.send(page);
    assert_eq!(taken(&mut back, page)[0].call, Call::Poll, "not one of the 70 ACCEPTs");
}

#[test]
fn connects_that_wait_for_remotes_leave_slots_to_other_requests() {
    let page = page();
    let (mut calls, mut back) =
        (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
    let Call::Accept { ring, .. } = accept() else { unreachable!() };
    let addr = ([127, 0, 0, 1], 80).into();
    let connect = || Call::Connect { addr, flags: 0, ring: ring.clone() };
    let _connects: Vec<_> = (0..50).map(|socket| calls.queue(socket, connect())).collect();
    let _ = calls.send(page);
    assert_eq!(taken(&mut back, page).len(), 30);
    let _release = calls.queue(99, Call::Release { reuse: false });
    let _ = calls.send(page);
    assert_eq!(taken(&mut back, page)[0].socket, 99);
}

#[test]
fn a_ring_of_a_cancelled_call_is_not_offered() {
    let page = page();
    let (mut calls, mut back) =
        (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
    drop(calls.queue(1, accept()));
    let _poll = calls.queue(2, Call::Poll);
    let _ = calls.send(page);
    let requests = taken(&mut back, page);
    assert_eq!(requests.iter().map(|request| request.socket).collect::<Vec<_>>(), [2]);
}

#[test]
fn only_the_first_matching_answer_counts() {
    let page = page();
    let (mut calls, mut back) =
        (Calls::new(Dialect::PvCalls, page), CommandBack::new(Dialect::PvCalls));
    let mut answers: Vec<_> = (0..4).map(|socket| calls.queue(socket, Call::Poll)).collect();
    let _ = calls.send(page);
    let requests = taken(&mut back, page);
    let good = requests[0].answer(Err(Errno::EINVAL));
    back.push(page, &Response { id: 77, ..good });
    back.push(page, &Response { socket: 3, ..good });
    back.push(page, &good);
    back.push(page, &Response { result: Ok(0), ..good });
    let _ = back.publish(page);
    calls.receive(page).unwrap();
    assert_eq!(answers[0].try_recv(), Ok(Some(Err(Errno::EINVAL))));
    assert_eq!(answers[1].try_recv(), Ok(None));
    drop(calls);
    assert!(answers[1].try_recv().is_err(), "the ring is gone");
}
