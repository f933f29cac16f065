//! A backend that is broken, slow, absent or malicious makes the frontend's sockets fail, and
//! nothing else.

mod rig;

use edge_nal::{UdpReceive, UdpSend};
use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use futures_util::future::{join, join3};
use rig::script::{DATAGRAMS, RIGHT, Records, Script, offer};
use rig::{BACK, address, config, with_frontend};
use std::sync::atomic::Ordering;
use xen::Errno;
use xen::xenbus::{self, State};
use xensock::front::Config;
use xensock::ring::{Producer, copy_in};
use xensock::wire::{Call, Command, Family, Record, Response};

const SOON: Duration = Duration::from_millis(20);

#[test]
fn a_backend_of_another_version_is_refused() {
    for (name, value) in [("versions", "2,3"), ("max-page-order", "0"), ("function-calls", "0")] {
        with_frontend(config(), |rig| async move {
            let mut nodes = RIGHT;
            nodes.iter_mut().find(|node| node.0 == name).unwrap().1 = value;
            let (connected, _) = join(rig.frontend.connect(address(80)), offer(&rig, &nodes)).await;
            assert_eq!(connected.map(drop), Err(Errno::EOPNOTSUPP));
            rig.until(|| rig.driver_ended().is_some()).await;
            assert_eq!(rig.driver_ended(), Some(Errno::EOPNOTSUPP));
        });
    }
}

#[test]
fn responses_without_a_request_are_ignored() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        // Two sockets at once, so that slots are free for wrong answers.
        let (first, second, ()) =
            join3(rig.frontend.connect(address(80)), rig.frontend.connect(address(81)), async {
                let (one, two) = (script.next().await, script.next().await);
                let right = one.answer(Err(Errno::EMFILE));
                script.answer(Response { command: Command::Poll, ..right });
                script.answer(Response { id: right.id.wrapping_add(1000), ..right });
                Timer::after(SOON).await;
                assert_eq!(rig.world.ports(), 3, "the wrong answers were ignored");
                drop(two);
                script.close().await;
            })
            .await;
        assert_eq!(first.map(drop), Err(Errno::ENETDOWN));
        assert_eq!(second.map(drop), Err(Errno::ENETDOWN));
    });
}

#[test]
fn impossible_responses_end_all_sockets_and_the_next_backend_serves_again() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        let (stream, (_, mapped)) =
            join(rig.frontend.connect(address(80)), script.let_connect()).await;
        let mut stream = stream.unwrap();
        script.page().store_u32(8, 1000, Ordering::Release);
        script.notify();
        let closing = async {
            script.watch.wait_for(|state| state == State::Closing).await.unwrap();
            drop(mapped);
            script.close().await;
        };
        let mut byte = [0];
        let (read, ()) = join(stream.read(&mut byte), closing).await;
        assert_eq!(read, Err(Errno::ENETDOWN));
        assert_eq!(stream.write(b"x").await, Err(Errno::ENETDOWN));
        xenbus_initialising(&rig).await;
        let mut script = Script::attach(&rig).await;
        let (connected, served) =
            join(rig.frontend.connect(address(80)), script.let_connect()).await;
        connected.unwrap();
        drop(served);
    });
}

/// The first step of a restarted backend.
async fn xenbus_initialising(rig: &rig::Rig) {
    let store = rig::connect(&rig.store, rig::DOM0, &rig.spawner);
    xenbus::switch_state(&store, BACK, State::Initialising).await.unwrap();
}

#[test]
fn impossible_indexes_end_one_stream_and_no_other() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        let (bad, (_, bad_ring)) =
            join(rig.frontend.connect(address(80)), script.let_connect()).await;
        let (good, (_, good_ring)) =
            join(rig.frontend.connect(address(80)), script.let_connect()).await;
        let (mut bad, mut good) = (bad.unwrap(), good.unwrap());
        let way = bad_ring.layout.input;
        bad_ring.region().indexes.store_u32(way.prod, way.size + 1, Ordering::Release);
        bad_ring.notify();
        assert_eq!(bad.read(&mut [0]).await, Err(Errno::EPROTO));
        // The socket stays closed even if the index becomes possible again.
        bad_ring.region().indexes.store_u32(way.prod, 0, Ordering::Release);
        assert_eq!(bad.write(b"x").await, Err(Errno::EPROTO));

        let mut producer = Producer::new(good_ring.layout.input);
        let count = copy_in(&producer.room(good_ring.region()).unwrap(), b"good");
        let _ = producer.advance(good_ring.region(), count);
        good_ring.notify();
        let mut bytes = [0; 4];
        good.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"good");

        drop(bad);
        let released = script.grant_next().await;
        assert_eq!(released.call, Call::Release { reuse: false });
        drop((bad_ring, good_ring));
    });
}

#[test]
fn a_malformed_record_ends_its_socket_and_no_other() {
    let good = Record::new(1, Some(address(7)));
    let nobody = Record::new(1, None);
    let bad = [Record { len: 9, ..good }, Record { size: 1 << 30, ..good }, nobody];
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach_with(&rig, DATAGRAMS).await;
        let any = || ([0, 0, 0, 0], 0).into();
        let mut byte = [0];
        for record in bad {
            let (one, (_, one_ring)) = join(rig.frontend.bind_udp(any()), script.let_open()).await;
            let (other, (_, other_ring)) =
                join(rig.frontend.bind_udp(any()), script.let_open()).await;
            let (mut one, mut other) = (one.unwrap(), other.unwrap());
            let (mut wrong, mut right) = (Records::new(&one_ring), Records::new(&other_ring));
            let size = record.size.min(48);
            wrong.put(Record { size, ..good }, b"x");
            one_ring.overwrite(&record.encode());
            assert_eq!(one.receive(&mut byte).await, Err(Errno::EPROTO), "{record:?}");
            // The socket stays closed even if the record becomes right again.
            one_ring.overwrite(&good.encode());
            assert_eq!(one.receive(&mut byte).await, Err(Errno::EPROTO));
            assert_eq!(one.send(address(7), b"x").await, Err(Errno::EPROTO));
            right.put(good, b"y");
            assert_eq!(other.receive(&mut byte).await, Ok((1, address(7))));

            drop((one, one_ring));
            assert_eq!(script.grant_next().await.call, Call::Release { reuse: false });
            drop(other);
            script.grant_next().await;
        }
    });
}

#[test]
fn pages_that_the_backend_keeps_mapped_wait_in_quarantine() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        // The connection fails, but the backend keeps its ring mapped.
        let (refused, mapped) = join(rig.frontend.connect(address(80)), async {
            script.grant_next().await;
            let request = script.next().await;
            let Call::Connect { ring, .. } = &request.call else { panic!("{request:?}") };
            let mapped = script.map(ring);
            script.answer(request.answer(Err(Errno::ECONNREFUSED)));
            assert_eq!(script.grant_next().await.call, Call::Release { reuse: false });
            mapped
        })
        .await;
        assert_eq!(refused.map(drop), Err(Errno::ECONNREFUSED));
        // A ring of order 2 has 5 pages.
        rig.until(|| rig.frontend.statistics().quarantined_pages == 5).await;
        Timer::after_millis(50).await;
        assert_eq!(rig.world.grants(), 1 + 5);
        assert_eq!(rig.world.ports(), 1, "the port was closed");
        drop(mapped);
        rig.until(|| rig.frontend.statistics().quarantined_pages == 0).await;
        assert_eq!(rig.world.grants(), 1);
    });
}

#[test]
fn calls_time_out_if_the_backend_does_not_answer() {
    let impatient = Config { answer_within: SOON, ..config() };
    with_frontend(impatient, |rig| async move {
        let mut script = Script::attach(&rig).await;
        let connected = rig.frontend.connect(address(80)).await.map(drop);
        assert_eq!(connected, Err(Errno::ETIMEDOUT));
        assert_eq!(rig.frontend.bind(address(80)).await.map(drop), Err(Errno::ETIMEDOUT));
        // The late answer does no harm.
        let late = script.next().await;
        script.answer(late.answer(Ok(0)));
        Timer::after(SOON).await;
        // The backend may still map the ring, so it stays until the session ends.
        assert_eq!(rig.world.ports(), 2);
    });
}

#[test]
fn a_ring_stays_granted_until_the_listener_of_its_accept_is_released() {
    // Longer than this test may be delayed while it answers.
    let answer_within = Duration::from_secs(2);
    with_frontend(Config { answer_within, ..config() }, |rig| async move {
        let mut script = Script::attach(&rig).await;
        let (listener, ()) = join(rig.frontend.bind(address(80)), async {
            for _ in 0..3 {
                script.grant_next().await;
            }
        })
        .await;
        let listener = listener.unwrap();
        assert!(with_timeout(SOON / 2, listener.accept()).await.is_err());
        let accept = script.next().await;
        let Call::Accept { ring, .. } = &accept.call else { panic!("{accept:?}") };
        drop(listener);
        let release = script.next().await;
        assert_eq!(release.call, Call::Release { reuse: false });
        // Longer than the frontend waits for the RELEASE, and then for the ACCEPT.
        Timer::after(answer_within + Duration::from_secs(3)).await;
        drop(script.map(ring));
    });
}

#[test]
fn an_accept_that_is_never_answered_ends_with_its_listener() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        let (listener, ()) = join(rig.frontend.bind(address(80)), async {
            assert_eq!(script.grant_next().await.call, Call::Socket { family: Family::V4 });
            assert_eq!(script.grant_next().await.call, Call::Bind { addr: address(80) });
            assert_eq!(script.grant_next().await.call, Call::Listen { backlog: 128 });
        })
        .await;
        let listener = listener.unwrap();
        assert!(with_timeout(SOON, listener.accept()).await.is_err());
        assert_eq!(script.next().await.call.command(), Command::Accept);
        drop(listener);
        assert_eq!(script.grant_next().await.call, Call::Release { reuse: false });
        rig.until(|| rig.world.ports() == 1).await;
    });
}

#[test]
fn a_backend_that_closes_ends_all_sockets() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        let (stream, (_, mapped)) =
            join(rig.frontend.connect(address(80)), script.let_connect()).await;
        let mut stream = stream.unwrap();
        drop(mapped);
        let mut byte = [0];
        let connecting = rig.frontend.connect(address(80));
        let (read, connected, ()) = join3(stream.read(&mut byte), connecting, async {
            script.next().await;
            script.close().await;
        })
        .await;
        assert_eq!(read, Err(Errno::ENETDOWN));
        assert_eq!(connected.map(drop), Err(Errno::ENETDOWN));
    });
}

#[test]
fn an_error_word_of_any_value_is_an_error() {
    with_frontend(config(), |rig| async move {
        let mut script = Script::attach(&rig).await;
        for word in [i32::MIN, -1, 1, i32::MAX] {
            let (stream, (_, ring)) =
                join(rig.frontend.connect(address(80)), script.let_connect()).await;
            let mut stream = stream.unwrap();
            let region = ring.region();
            region.indexes.store_u32(ring.layout.input.error, word as u32, Ordering::Release);
            region.indexes.store_u32(ring.layout.output.error, word as u32, Ordering::Release);
            ring.notify();
            let expected = Errno(word.checked_abs().unwrap_or(i32::MAX));
            assert_eq!(stream.read(&mut [0]).await, Err(expected));
            assert_eq!(stream.write(&[0]).await, Err(expected));
            drop((stream, ring));
            script.grant_next().await;
        }
    });
}
