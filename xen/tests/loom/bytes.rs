//! A ring of bytes, or of records: its bytes, its room, and the events about both.

use crate::check;
use crate::sleeper::Sleeper;
use std::rc::Rc;
use xen::frontend::{
    Consumer, Direction, EventIndexes, NotifyPolicy, Producer, Region, copy_in, copy_out, len,
};
use xen::testing::model::ModelMemory;
use xen::testing::model::loom::thread;
use xen::{Errno, PAGE_SIZE};

const CONS: usize = 0;
const PROD: usize = 4;
const ERROR: usize = 8;
const EVENTS: EventIndexes = EventIndexes { prod: 12, cons: 16 };

/// The state that both ends share. Loom's threads take turns on one thread of the system, so an
/// `Rc` is enough.
struct Ends {
    memory: ModelMemory,
    producer: Sleeper,
    consumer: Sleeper,
}

impl Ends {
    /// An indexes page, and a ring of this size in the page behind it.
    fn new(size: u32) -> Rc<Ends> {
        let words = [CONS, PROD, ERROR, EVENTS.prod, EVENTS.cons];
        let bytes = (PAGE_SIZE..PAGE_SIZE + size as usize).map(|byte| byte..byte + 1);
        Rc::new(Ends {
            memory: ModelMemory::new(2 * PAGE_SIZE, &words, bytes),
            producer: Sleeper::new(),
            consumer: Sleeper::new(),
        })
    }

    fn region(&self) -> Region<'_> {
        let pages = self.memory.shared();
        Region { indexes: pages.slice(0, PAGE_SIZE), data: pages.slice(PAGE_SIZE, PAGE_SIZE) }
    }
}

/// A ring, and the bytes that pass through it.
#[derive(Clone, Copy)]
struct Model {
    size: u32,
    bytes: u32,
    policy: NotifyPolicy,
    events: Option<EventIndexes>,
    /// Whether the producer waits at the end until everything is taken, as `xensock` does at a
    /// release.
    drains: bool,
}

impl Model {
    fn direction(&self) -> Direction {
        let Model { size, events, .. } = *self;
        Direction { cons: CONS, prod: PROD, error: ERROR, events, start: 0, size }
    }

    /// Passes the bytes through the ring.
    fn run(self) {
        let ends = Ends::new(self.size);
        let theirs = ends.clone();
        let consumer = thread::spawn(move || self.consume(&theirs));
        self.produce(&ends);
        consumer.join().unwrap();
    }

    /// Fills the ring as `xensock` does: sleeps when there is no room, and asks for an event when
    /// half of the ring is free.
    fn produce(self, ends: &Ends) {
        let region = ends.region();
        let mut producer = Producer::new(self.direction());
        let mut put = 0;
        while put < self.bytes {
            let look = |producer: &mut Producer| {
                let room = producer.room(region).unwrap();
                (len(&room) > 0).then_some(room)
            };
            let room = ends
                .producer
                .until(&mut producer, look, |producer| producer.arm(region, self.size / 2));
            let some: Vec<u8> = (put..self.bytes).map(|byte| byte as u8 + 1).collect();
            let count = copy_in(&room, &some);
            put += count as u32;
            ends.consumer.notify(producer.advance(region, count));
        }
        if self.drains {
            ends.producer.until(
                &mut producer,
                |producer| (producer.unread(region) == Ok(0)).then_some(()),
                |producer| producer.arm(region, self.size),
            );
        }
    }

    /// Empties the ring in the same way.
    fn consume(self, ends: &Ends) {
        let region = ends.region();
        let mut consumer = Consumer::new(self.direction(), self.policy);
        let mut taken = 0;
        while taken < self.bytes {
            let look = |consumer: &mut Consumer| {
                let data = consumer.data(region).unwrap();
                (len(&data) > 0).then_some(data)
            };
            let data = ends.consumer.until(&mut consumer, look, |consumer| consumer.arm(region));
            // One at a time: a producer that waits for half of the ring gets less at first.
            let mut byte = [0];
            assert_eq!(copy_out(&data, &mut byte), 1);
            taken += 1;
            assert_eq!(u32::from(byte[0]), taken);
            ends.producer.notify(consumer.advance(region, 1));
        }
    }
}

/// From the backend to the frontend, in the plain protocol.
pub fn plain_input() {
    let model =
        Model { size: 2, bytes: 3, policy: NotifyPolicy::HalfFull, events: None, drains: false };
    model.run();
}

/// From the frontend to the backend, in the plain protocol.
pub fn plain_output() {
    let policy = NotifyPolicy::FullOrEmpty;
    Model { size: 2, bytes: 3, policy, events: None, drains: true }.run();
}

/// With event indexes.
pub fn suppressed() {
    let (policy, events) = (NotifyPolicy::HalfFull, Some(EVENTS));
    Model { size: 2, bytes: 3, policy, events, drains: true }.run();
}

/// With event indexes, in a ring whose half is more than one byte.
pub fn suppressed_by_halves() {
    let (policy, events) = (NotifyPolicy::HalfFull, Some(EVENTS));
    Model { size: 4, bytes: 6, policy, events, drains: false }.run();
}

/// Records of datagrams: both ends pass whole records, and the producer waits for room for its next
/// one, which may be more than it asks an event for otherwise.
pub fn records() {
    const RECORDS: [u32; 4] = [2, 3, 1, 4];
    let (policy, events) = (NotifyPolicy::HalfFull, Some(EVENTS));
    let model = Model { size: 4, bytes: 10, policy, events, drains: true };
    let ends = Ends::new(model.size);
    let theirs = ends.clone();
    let consumer = thread::spawn(move || {
        let region = theirs.region();
        let mut consumer = Consumer::new(model.direction(), policy);
        for record in RECORDS {
            let look = |consumer: &mut Consumer| {
                let data = consumer.data(region).unwrap();
                (len(&data) > 0).then_some(data)
            };
            let data = theirs.consumer.until(&mut consumer, look, |consumer| consumer.arm(region));
            let mut bytes = [0; 4];
            let bytes = &mut bytes[..record as usize];
            assert_eq!(copy_out(&data, bytes), bytes.len(), "a part of a record");
            assert!(bytes.iter().all(|byte| u32::from(*byte) == record));
            theirs.producer.notify(consumer.advance(region, bytes.len()));
        }
    });
    let region = ends.region();
    let mut producer = Producer::new(model.direction());
    for record in RECORDS {
        let look = |producer: &mut Producer| {
            let room = producer.room(region).unwrap();
            (len(&room) >= record as usize).then_some(room)
        };
        let wanted = record.max(model.size / 4 * 3);
        let room =
            ends.producer.until(&mut producer, look, |producer| producer.arm(region, wanted));
        let count = copy_in(&room, &[record as u8; 4][..record as usize]);
        ends.consumer.notify(producer.advance(region, count));
    }
    ends.producer.until(
        &mut producer,
        |producer| (producer.unread(region) == Ok(0)).then_some(()),
        |producer| producer.arm(region, model.size),
    );
    consumer.join().unwrap();
}

/// The end of a stream: the backend leaves an error behind the last byte, and the frontend looks at
/// the error first.
pub fn last_byte() {
    let model =
        Model { size: 2, bytes: 1, policy: NotifyPolicy::HalfFull, events: None, drains: false };
    let ends = Ends::new(model.size);
    let theirs = ends.clone();
    let backend = thread::spawn(move || {
        let (region, mut producer) = (theirs.region(), Producer::new(model.direction()));
        let count = copy_in(&producer.room(region).unwrap(), &[1]);
        // One event is enough for both.
        let due = producer.advance(region, count);
        producer.set_error(region, Errno::ENOTCONN);
        theirs.consumer.notify(due);
    });
    let region = ends.region();
    let mut consumer = Consumer::new(model.direction(), model.policy);
    let seen = |consumer: &mut Consumer| {
        let error = consumer.error(region)?;
        Some((error, len(&consumer.data(region).unwrap())))
    };
    let end = ends.consumer.until(&mut consumer, seen, |consumer| consumer.arm(region));
    assert_eq!(end, (Errno::ENOTCONN, 1), "the byte came before the error");
    backend.join().unwrap();
}

#[test]
fn bytes_of_a_backend_arrive_and_room_is_never_missed() {
    check(plain_input);
}

#[test]
fn bytes_of_a_frontend_arrive_and_it_learns_when_all_are_taken() {
    check(plain_output);
}

#[test]
fn with_event_indexes_no_needed_event_is_left_out() {
    check(suppressed);
}

#[test]
fn a_producer_that_waits_for_half_of_the_ring_gets_an_event() {
    check(suppressed_by_halves);
}

#[test]
fn records_arrive_whole_and_their_producer_gets_room_for_each() {
    check(records);
}

#[test]
fn an_error_does_not_overtake_the_last_byte() {
    check(last_byte);
}
