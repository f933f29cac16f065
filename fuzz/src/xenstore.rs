//! A hostile xenstored, or hostile nodes in a correct one.

use crate::input::Input;
use crate::tasks::{Spawner, Tasks};
use embedded_io_async::{ErrorType, Read, Write};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use xen::abi::xs_wire::*;
use xen::xenbus::{self, OtherEnd, State, StateWatch};
use xen::xenstore::{self, Permission, Store, wire};
use xen::{DomId, Errno};

/// Runs a client that gets the input for answers.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    match input.below(8) {
        0 => texts(input.rest()),
        _ => answers(&mut input),
    }
}

/// Decodes the parts of answers.
fn texts(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk()
        && let Ok(header) = wire::Header::decode(head)
    {
        assert!(header.len <= XENSTORE_PAYLOAD_MAX);
    }
    if let Ok(text) = wire::text(bytes)
        && wire::check_path(&text).is_ok()
    {
        assert!(!text.contains('\0') && !text.is_empty());
    }
    for part in wire::strings(bytes) {
        if let Ok(permission) = Permission::decode(part) {
            let again = permission.to_string();
            assert_eq!(Permission::decode(again.as_bytes()), Ok(permission));
        }
    }
    let _ = (State::decode(bytes), Errno::from_name(&String::from_utf8_lossy(bytes)));
}

/// A pipe of answers.
#[derive(Clone, Default)]
struct Answers(Rc<RefCell<Pipe>>);

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    reader: Option<Waker>,
}

impl Answers {
    fn push(&self, bytes: &[u8]) {
        let mut pipe = self.0.borrow_mut();
        pipe.bytes.extend(bytes);
        let waker = pipe.reader.take();
        drop(pipe);
        waker.into_iter().for_each(Waker::wake);
    }

    fn end(&self) {
        self.0.borrow_mut().ended = true;
        self.push(&[]);
    }
}

impl ErrorType for Answers {
    type Error = Errno;
}

impl Read for Answers {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Errno> {
        poll_fn(|cx| {
            let mut pipe = self.0.borrow_mut();
            if pipe.bytes.is_empty() && !pipe.ended {
                pipe.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let count = to.len().min(pipe.bytes.len());
            to.iter_mut().zip(pipe.bytes.drain(..count)).for_each(|(to, byte)| *to = byte);
            Poll::Ready(Ok(count))
        })
        .await
    }
}

/// A sink for requests.
struct Nowhere;

impl ErrorType for Nowhere {
    type Error = Errno;
}

impl Write for Nowhere {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        Ok(from.len())
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        Ok(())
    }
}

fn answers(input: &mut Input<'_>) {
    let mut tasks = Tasks::new();
    let spawner = tasks.spawner();
    let answers = Answers::default();
    let (store, driver) = xenstore::connect(answers.clone(), Nowhere);
    spawner.spawn(async move {
        driver.run().await;
    });
    while !input.is_empty() {
        match input.below(4) {
            0 => answers.push(input.bytes()),
            1 => ask(input.byte(), &store, &spawner),
            _ => {
                // A plausible answer.
                let kinds = [
                    XS_READ,
                    XS_WRITE,
                    XS_DIRECTORY,
                    XS_DIRECTORY_PART,
                    XS_GET_PERMS,
                    XS_WATCH,
                    XS_WATCH_EVENT,
                    XS_TRANSACTION_START,
                    XS_TRANSACTION_END,
                    XS_ERROR,
                    XS_GET_DOMAIN_PATH,
                ];
                let (kind, id) = (kinds[input.below(kinds.len())], u32::from(input.byte()));
                let payload = input.bytes();
                answers.push(&wire::encode(kind, id, 0, &[payload]).expect("the payload is short"));
            }
        }
        tasks.run();
    }
    answers.end();
    tasks.run();
    assert_eq!(tasks.unfinished(), 0, "a request still waits after the connection ended");
}

/// Makes a request and uses its answer.
fn ask(what: u8, store: &Store, spawner: &Spawner) {
    let store = store.clone();
    match what % 11 {
        // Watches never end, even if the connection fails.
        9 => spawner.spawn_endless(async move {
            if let Ok(mut watch) = store.watch("a").await {
                loop {
                    watch.next().await;
                }
            }
        }),
        10 => spawner.spawn_endless(async move {
            if let Ok(mut watch) = StateWatch::new(&store, "a").await {
                let _ = watch.wait_for(|state| state == State::Connected).await;
            }
        }),
        what => spawner.spawn(async move { request(what, &store).await }),
    }
}

async fn request(what: u8, store: &Store) {
    match what {
        0 => drop(store.read_string("a").await),
        1 => drop(store.directory("a").await),
        2 => drop(store.get_permissions("a").await),
        3 => drop(store.domain_path(DomId(1)).await),
        4 => drop(xenbus::read_number::<u16>(store, "a").await),
        5 => drop(OtherEnd::backend_of(store, "a").await),
        6 => drop(xenbus::switch_state(store, "a", State::Connected).await),
        7 => {
            if let Ok(transaction) = store.transaction().await {
                let _ = transaction.write("a", "b").await;
                let _ = transaction.commit().await;
            }
        }
        _ => drop(store.transaction().await),
    }
}

/// Requests with the answers of a correct xenstored. Requests are numbered from 1.
pub fn seeds() -> Vec<Vec<u8>> {
    let ask = |what| vec![1, what];
    let answer =
        |kind, id, payload: &[u8]| [&[2, kind, id, payload.len() as u8][..], payload].concat();
    let some = |steps: &[Vec<u8>]| [vec![1], steps.concat()].concat();
    vec![
        some(&[ask(0), answer(0, 1, b"value")]),
        some(&[ask(1), answer(2, 1, b"a\0b\0c\0")]),
        some(&[ask(1), answer(9, 1, b"E2BIG\0"), answer(3, 2, b"5\0a\0b\0\0")]),
        some(&[ask(2), answer(4, 1, b"n5\0r0\0")]),
        some(&[ask(3), answer(10, 1, b"/local/domain/1\0")]),
        some(&[ask(4), answer(0, 1, b"65535")]),
        some(&[ask(5), answer(0, 1, b"/local/domain/0/backend"), answer(0, 2, b"0")]),
        some(&[ask(6), answer(0, 1, b"3"), answer(1, 2, b"OK\0")]),
        some(&[ask(7), answer(7, 1, b"77\0"), answer(1, 2, b"OK\0"), answer(8, 3, b"OK\0")]),
        some(&[ask(8), answer(7, 1, b"78\0")]),
        some(&[
            ask(9),
            answer(5, 1, b"OK\0"),
            answer(6, 0, b"a\x001\0"),
            answer(6, 0, b"a/b\x001\0"),
        ]),
        some(&[
            ask(10),
            answer(5, 1, b"OK\0"),
            answer(6, 0, b"a\x001\0"),
            answer(0, 2, b"2"),
            answer(6, 0, b"a/state\x001\0"),
            answer(0, 3, b"4"),
        ]),
        [&[0], &b"n5\0r0\0b32751\0"[..]].concat(),
    ]
}
