//! Listening sockets, and the ACCEPTs and POLLs that wait for their connections.

use crate::guest::{address, limits, run, run_with};
use xen::Errno;
use xensock::back::Limits;
use xensock::wire::{Call, Family};

#[test]
fn accepts_are_served_in_order() {
    run(|guest| async move {
        guest.listen(1, 80).await;
        let rings: Vec<_> = (0..4).map(|_| guest.ring(1)).collect();
        let answers: Vec<_> = rings
            .iter()
            .enumerate()
            .map(|(at, ring)| guest.ask(1, ring.accept(10 + at as u64)))
            .collect();
        guest.settle().await;
        assert!(answers.iter().all(|answer| guest.answered(*answer).is_none()));
        for (at, ring) in rings.iter().enumerate() {
            let peer = guest.net.connect(address(80)).await.unwrap();
            assert_eq!(guest.answer(answers[at]).await, Ok(0));
            assert!(answers[at + 1..].iter().all(|answer| guest.answered(*answer).is_none()));
            peer.write_all(&[at as u8]).await.unwrap();
            assert_eq!(ring.read().await, [at as u8]);
        }
        for at in 0..4 {
            assert_eq!(guest.release(10 + at).await, Ok(0));
        }
        assert_eq!(guest.release(1).await, Ok(0));
    });
}

#[test]
fn a_poll_is_answered_when_a_connection_waits_and_does_not_accept_it() {
    run(|guest| async move {
        guest.listen(1, 80).await;
        let polls = [guest.ask(1, Call::Poll), guest.ask(1, Call::Poll)];
        guest.settle().await;
        assert_eq!(guest.answered(polls[0]), None);
        let peer = guest.net.connect(address(80)).await.unwrap();
        assert_eq!(guest.answer(polls[0]).await, Ok(0));
        assert_eq!(guest.answer(polls[1]).await, Ok(0));
        assert_eq!(guest.call(1, Call::Poll).await, Ok(0));
        let ring = guest.ring(1);
        assert_eq!(guest.call(1, ring.accept(2)).await, Ok(0));
        let poll = guest.ask(1, Call::Poll);
        guest.settle().await;
        assert_eq!(guest.answered(poll), None, "no other connection waits");
        guest.release(2).await.unwrap();
        drop(peer);
    });
}

#[test]
fn the_release_of_a_listener_answers_what_waits_and_frees_the_rings() {
    run(|guest| async move {
        guest.listen(1, 80).await;
        let rings = [guest.ring(1), guest.ring(2)];
        let accepts = [guest.ask(1, rings[0].accept(2)), guest.ask(1, rings[1].accept(3))];
        let poll = guest.ask(1, Call::Poll);
        guest.settle().await;
        assert_eq!(guest.release(1).await, Ok(0));
        for waiting in [accepts[0], accepts[1], poll] {
            assert_eq!(guest.answered(waiting), Some(Err(Errno::ECONNABORTED)));
        }
        drop(rings);
        // The id and the address are free.
        guest.listen(1, 80).await;
        assert_eq!(guest.release(2).await, Err(Errno::EINVAL));
    });
}

#[test]
fn an_accept_is_cancelled_by_releasing_its_new_socket() {
    run(|guest| async move {
        guest.listen(1, 80).await;
        let (first, second) = (guest.ring(1), guest.ring(1));
        let taken_back = guest.ask(1, first.accept(2));
        let waiting = guest.ask(1, second.accept(3));
        guest.settle().await;
        assert_eq!(guest.release(2).await, Ok(0));
        assert_eq!(guest.answered(taken_back), Some(Err(Errno::ECONNABORTED)));
        drop(first);
        let peer = guest.net.connect(address(80)).await.unwrap();
        assert_eq!(guest.answer(waiting).await, Ok(0));
        guest.release(3).await.unwrap();
        drop(peer);
    });
}

#[test]
fn commands_in_the_wrong_order_are_refused() {
    run(|guest| async move {
        let ring = guest.ring(1);
        let bind = |port| Call::Bind { addr: address(port) };
        // An unknown id.
        for call in [
            bind(80),
            Call::Listen { backlog: 1 },
            Call::Poll,
            ring.accept(9),
            ring.connect(address(80)),
            Call::Release { reuse: false },
        ] {
            assert_eq!(guest.call(1, call.clone()).await, Err(Errno::EINVAL), "{call:?}");
        }
        guest.call(1, Call::Socket { family: Family::V4 }).await.unwrap();
        assert_eq!(guest.call(1, Call::Socket { family: Family::V4 }).await, Err(Errno::EEXIST));
        for call in [Call::Listen { backlog: 1 }, Call::Poll, ring.accept(9)] {
            assert_eq!(guest.call(1, call.clone()).await, Err(Errno::EINVAL), "{call:?}");
        }
        guest.call(1, bind(80)).await.unwrap();
        for call in [bind(81), Call::Poll, ring.accept(9)] {
            assert_eq!(guest.call(1, call.clone()).await, Err(Errno::EINVAL), "{call:?}");
        }
        assert_eq!(guest.call(1, ring.connect(address(80))).await, Err(Errno::EOPNOTSUPP));
        guest.call(1, Call::Listen { backlog: 1 }).await.unwrap();
        guest.call(1, Call::Listen { backlog: 2 }).await.unwrap();
        assert_eq!(guest.call(1, ring.accept(1)).await, Err(Errno::EEXIST), "its own id");
        // An address in use.
        guest.call(2, Call::Socket { family: Family::V4 }).await.unwrap();
        assert_eq!(guest.call(2, bind(80)).await, Err(Errno::EADDRINUSE));
        assert_eq!(guest.call(2, bind(81)).await, Ok(0));
        assert_eq!(guest.release(2).await, Ok(0));
        assert_eq!(guest.release(1).await, Ok(0));
    });
}

#[test]
fn the_limit_of_sockets_includes_those_of_waiting_accepts() {
    run_with(Limits { sockets: 3, ..limits() }, |guest| async move {
        guest.listen(1, 80).await;
        guest.call(2, Call::Socket { family: Family::V4 }).await.unwrap();
        let (first, second) = (guest.ring(1), guest.ring(1));
        let waiting = guest.ask(1, first.accept(3));
        assert_eq!(guest.call(1, second.accept(4)).await, Err(Errno::EMFILE));
        assert_eq!(guest.call(4, Call::Socket { family: Family::V4 }).await, Err(Errno::EMFILE));
        guest.release(2).await.unwrap();
        assert_eq!(guest.call(4, Call::Socket { family: Family::V4 }).await, Ok(0));
        assert_eq!(guest.answered(waiting), None);
        (first, second)
    });
}

#[test]
fn the_connections_that_wait_are_limited_over_all_listening_sockets() {
    let limits = Limits { backlog: 5, ..limits() };
    run_with(limits, |guest| async move {
        let listen = async |id: u64, backlog: u32| {
            guest.call(id, Call::Socket { family: Family::V4 }).await.unwrap();
            let addr = address(id as u16);
            guest.call(id, Call::Bind { addr }).await.unwrap();
            assert_eq!(guest.call(id, Call::Listen { backlog }).await, Ok(0));
        };
        let waiting = async |id: u64| {
            let mut peers = Vec::new();
            while let Ok(peer) = guest.net.connect(address(id as u16)).await {
                peers.push(peer);
            }
            peers.len()
        };
        listen(1, 3).await;
        listen(2, u32::MAX).await;
        listen(3, 7).await;
        assert_eq!((waiting(1).await, waiting(2).await, waiting(3).await), (3, 2, 1));
        // What a released socket had is for the next LISTEN.
        guest.release(1).await.unwrap();
        listen(4, 7).await;
        assert_eq!(waiting(4).await, 3);
        for id in 2..=4 {
            guest.release(id).await.unwrap();
        }
    });
}
