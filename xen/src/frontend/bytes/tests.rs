//! Tests of both ends on plain memory.

use super::*;
use crate::testing::memory;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::VecDeque;

const EVENTS: EventIndexes = EventIndexes { prod: 12, cons: 16 };
const DIRECTION: Direction =
    Direction { cons: 0, prod: 4, error: 8, events: None, start: 0, size: 4096 };

fn region() -> Region<'static> {
    Region { indexes: memory(64), data: memory(DIRECTION.size as usize) }
}

#[test]
fn bytes_come_out_in_order_across_the_end_of_the_ring() {
    let region = region();
    // Both indexes start just before they wrap around.
    let start = u32::MAX - 5000;
    let mut producer = Producer::at(DIRECTION, start);
    let mut consumer = Consumer::at(DIRECTION, NotifyPolicy::HalfFull, start);
    region.indexes.store_u32(DIRECTION.prod, start, Ordering::Relaxed);
    region.indexes.store_u32(DIRECTION.cons, start, Ordering::Relaxed);
    let (mut sent, mut received) = (0u8, 0u8);
    for step in (1..4000).step_by(37) {
        let room = producer.room(region).unwrap();
        let put = len(&room).min(step);
        for at in 0..put {
            let (piece, at) =
                if at < room[0].len() { (room[0], at) } else { (room[1], at - room[0].len()) };
            piece.write(at, &[sent]);
            sent = sent.wrapping_add(1);
        }
        let _ = producer.advance(region, put);
        let data = consumer.data(region).unwrap();
        assert_eq!(len(&data), put);
        for piece in data {
            for at in 0..piece.len() {
                let mut byte = [0];
                piece.read(at, &mut byte);
                assert_eq!(byte[0], received);
                received = received.wrapping_add(1);
            }
        }
        let _ = consumer.advance(region, put);
    }
}

#[test]
fn a_full_ring_has_no_room_and_an_empty_one_no_data() {
    let region = region();
    let mut producer = Producer::new(DIRECTION);
    let mut consumer = Consumer::new(DIRECTION, NotifyPolicy::HalfFull);
    assert_eq!(len(&consumer.data(region).unwrap()), 0);
    assert_eq!(len(&producer.room(region).unwrap()), 4096);
    assert!(producer.advance(region, 4096).is_due());
    assert!(!producer.advance(region, 0).is_due());
    assert_eq!(len(&producer.room(region).unwrap()), 0);
    assert_eq!(producer.unread(region), Ok(4096));
    assert_eq!(len(&consumer.data(region).unwrap()), 4096);
}

#[test]
fn a_consumer_sends_an_event_if_the_producer_may_have_found_little_room() {
    let region = region();
    let mut producer = Producer::new(DIRECTION);
    let mut consumer = Consumer::new(DIRECTION, NotifyPolicy::HalfFull);
    for (written, taken, is_due) in [(2047, 2047, false), (4096, 1, true), (0, 4095, true)] {
        producer.room(region).unwrap();
        let _ = producer.advance(region, written);
        consumer.data(region).unwrap();
        assert_eq!(consumer.advance(region, taken).is_due(), is_due);
    }
}

#[test]
fn a_consumer_sends_an_event_if_the_ring_was_full_or_is_empty() {
    let region = region();
    let mut producer = Producer::new(DIRECTION);
    let mut consumer = Consumer::new(DIRECTION, NotifyPolicy::FullOrEmpty);
    for (written, taken, is_due) in [(4095, 4094, false), (0, 1, true), (4096, 1, true)] {
        producer.room(region).unwrap();
        let _ = producer.advance(region, written);
        consumer.data(region).unwrap();
        assert_eq!(consumer.advance(region, taken).is_due(), is_due);
    }
}

#[test]
fn with_event_indexes_each_end_gets_the_events_that_it_asked_for_and_no_others() {
    let region = region();
    let direction = Direction { events: Some(EVENTS), ..DIRECTION };
    for start in [0, u32::MAX - 3] {
        for index in [direction.prod, direction.cons] {
            region.indexes.store_u32(index, start, Ordering::Relaxed);
        }
        for index in [direction.events.unwrap().prod, direction.events.unwrap().cons] {
            region.indexes.store_u32(index, start, Ordering::Relaxed);
        }
        let mut producer = Producer::at(direction, start);
        let mut consumer = Consumer::at(direction, NotifyPolicy::HalfFull, start);
        let mut put = |count| {
            producer.room(region).unwrap();
            let due = producer.advance(region, count).is_due();
            (due, producer.arm(region, 4096 - 10))
        };
        let mut take = |count| {
            consumer.data(region).unwrap();
            consumer.advance(region, count).is_due()
        };
        assert!(!put(5).0, "the consumer does not wait");
        assert!(!take(5), "there is enough room already");
        Consumer::at(direction, NotifyPolicy::HalfFull, start.wrapping_add(5)).arm(region);
        assert!(put(3).0, "the consumer waits");
        assert!(!put(20).0, "the consumer got its event");
        assert!(!take(12), "11 bytes are left");
        assert!(take(1), "room for all but 10");
        assert!(!take(10), "the producer got its event");
    }
}

#[test]
fn impossible_indexes_of_a_peer_are_detected() {
    let region = region();
    for index in [4097, 1 << 31, u32::MAX] {
        region.indexes.store_u32(DIRECTION.prod, index, Ordering::Relaxed);
        assert!(Consumer::new(DIRECTION, NotifyPolicy::HalfFull).data(region).is_err());
        region.indexes.store_u32(DIRECTION.cons, index, Ordering::Relaxed);
        assert_eq!(
            Producer::new(DIRECTION).room(region).is_err(),
            // The producer is at 0: u32::MAX means that 1 byte is unread, which it may be.
            index != u32::MAX
        );
    }
}

#[test]
fn an_error_is_an_error_whatever_its_sign() {
    let region = region();
    let consumer = Consumer::new(DIRECTION, NotifyPolicy::HalfFull);
    assert_eq!(consumer.error(region), None);
    Producer::new(DIRECTION).set_error(region, Errno::ENOTCONN);
    assert_eq!(consumer.error(region), Some(Errno::ENOTCONN));
    for (word, error) in [(5, 5), (i32::MIN, i32::MAX)] {
        region.indexes.store_u32(DIRECTION.error, word as u32, Ordering::Relaxed);
        assert_eq!(consumer.error(region), Some(Errno(error)));
    }
}

/// Both ends of a ring, as if `index` bytes had gone through already.
fn ends_at(index: u32, region: Region<'_>) -> (Producer, Consumer) {
    region.indexes.store_u32(DIRECTION.prod, index, Ordering::Relaxed);
    region.indexes.store_u32(DIRECTION.cons, index, Ordering::Relaxed);
    (Producer::at(DIRECTION, index), Consumer::at(DIRECTION, NotifyPolicy::HalfFull, index))
}

proptest! {
    #[test]
    fn all_bytes_come_out_in_order(
        start in prop_oneof![any::<u32>(), (u32::MAX - 10_000)..],
        steps in vec((any::<bool>(), 0usize..6000), 1..200),
    ) {
        let region = region();
        let (mut producer, mut consumer) = ends_at(start, region);
        let (mut expected, mut next) = (VecDeque::<u8>::new(), 0u8);
        for (puts, count) in steps {
            if puts {
                let bytes: Vec<u8> = (0..count).map(|at| next.wrapping_add(at as u8)).collect();
                let room = producer.room(region).unwrap();
                prop_assert_eq!(len(&room), DIRECTION.size as usize - expected.len());
                let put = copy_in(&room, &bytes);
                prop_assert_eq!(producer.advance(region, put).is_due(), put > 0);
                expected.extend(&bytes[..put]);
                next = next.wrapping_add(put as u8);
            } else {
                let data = consumer.data(region).unwrap();
                prop_assert_eq!(len(&data), expected.len());
                let mut bytes = vec![0; count];
                let taken = copy_out(&data, &mut bytes);
                let may_wait = taken > 0 && expected.len() >= DIRECTION.size as usize / 2;
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
        let region = region();
        let (mut producer, mut consumer) = ends_at(own, region);
        let mut bytes = vec![0; count];
        for claim in claims {
            // Half of the claims are near what is possible.
            let claim = if claim < 10_000 { own.wrapping_add(claim) } else { claim };
            region.indexes.store_u32(DIRECTION.prod, claim, Ordering::Relaxed);
            match consumer.data(region) {
                Ok(data) => {
                    prop_assert!(len(&data) <= DIRECTION.size as usize);
                    let taken = copy_out(&data, &mut bytes);
                    let _ = consumer.advance(region, taken);
                }
                Err(error) => prop_assert_eq!(error, Errno::EPROTO),
            }
            region.indexes.store_u32(DIRECTION.cons, claim, Ordering::Relaxed);
            match producer.room(region) {
                Ok(room) => {
                    prop_assert!(len(&room) <= DIRECTION.size as usize);
                    let put = copy_in(&room, &bytes);
                    let _ = producer.advance(region, put);
                }
                Err(error) => prop_assert_eq!(error, Errno::EPROTO),
            }
        }
    }
}
