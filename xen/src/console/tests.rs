use super::*;
use crate::testing::page;
use core::sync::atomic::Ordering::Relaxed;
use futures_util::FutureExt;

/// The console daemon's end.
struct Daemon {
    output: Consumer,
    input: Producer,
}

fn pair() -> (Console<impl Fn()>, Daemon, std::rc::Rc<Cell<u32>>, Shared<'static>) {
    let page = page();
    let events = std::rc::Rc::new(Cell::new(0));
    let count = events.clone();
    let console =
        Console::new(page, move || count.set(count.get() + 1), Arc::new(Signal::default()));
    let daemon = Daemon { output: Consumer::new(page, OUTPUT), input: Producer::new(page, INPUT) };
    (console, daemon, events, page)
}

impl Daemon {
    fn take(&self) -> String {
        let mut bytes = vec![0; 4096];
        let count = self.output.read(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }
}

#[test]
fn output_arrives_and_the_daemon_is_notified() {
    let (console, daemon, events, _) = pair();
    write!(&console, "hello {}", 7).unwrap();
    assert_eq!(daemon.take(), "hello 7");
    assert!(events.get() > 0);
    assert_eq!(console.dropped(), 0);
    assert_eq!(console.flush().now_or_never(), Some(Ok(())));
}

#[test]
fn the_backlog_is_sent_as_the_daemon_reads() {
    let (console, daemon, events, _) = pair();
    let text: String = (0..20_000).map(|n| char::from(b'a' + (n % 23) as u8)).collect();
    for part in text.as_bytes().chunks(999) {
        console.write(part);
    }
    assert_eq!((console.dropped(), console.waiting()), (0, 20_000 - XENCONS_OUT_SIZE));
    let mut running = Box::pin(console.run());
    let mut got = String::new();
    while got.len() < text.len() {
        let before = events.get();
        got += &daemon.take();
        assert!(running.as_mut().now_or_never().is_none());
        assert!(events.get() > before || console.waiting() == 0, "the daemon is not notified");
    }
    assert_eq!(got, text);
    assert_eq!(console.flush().now_or_never(), Some(Ok(())));
}

#[test]
fn a_full_backlog_drops_output_counts_it_and_marks_the_place() {
    let (console, daemon, _, _) = pair();
    console.write(&[b'a'; XENCONS_OUT_SIZE + BACKLOG]);
    console.write(b"12345");
    assert_eq!(console.dropped(), 5);
    assert_eq!(console.flush().now_or_never(), None);
    let mut got = daemon.take();
    console.write(b"after");
    loop {
        let more = daemon.take();
        if more.is_empty() {
            break;
        }
        got += &more;
        assert!(console.run().now_or_never().is_none());
    }
    let (kept, rest) = got.split_at(XENCONS_OUT_SIZE + BACKLOG);
    assert!(kept.bytes().all(|byte| byte == b'a'));
    assert_eq!(rest, "\r\n[5 bytes of output lost]\r\nafter");
    assert_eq!(console.dropped(), 5);
}

#[test]
fn output_that_must_arrive_waits_for_room() {
    let (console, daemon, _, _) = pair();
    let text = [b'x'; XENCONS_OUT_SIZE + BACKLOG + 10];
    let mut running = Box::pin(console.run());
    let mut writing = Box::pin(console.write_all(&text));
    assert_eq!(writing.as_mut().now_or_never(), None);
    assert_eq!(daemon.take().len(), XENCONS_OUT_SIZE);
    assert!(running.as_mut().now_or_never().is_none());
    assert_eq!(writing.as_mut().now_or_never(), Some(Ok(())));
    assert_eq!(console.dropped(), 0);
}

#[test]
fn a_crashed_guest_writes_after_the_backlog_and_polls_for_room() {
    let (console, daemon, _, _) = pair();
    console.write(&[b'x'; XENCONS_OUT_SIZE + 5]);
    assert_eq!(console.write_some(b"the end"), 0);
    daemon.take();
    assert_eq!(console.is_drained(), Ok(false), "the backlog is not sent yet");
    assert_eq!(console.write_some(b"the end"), 7);
    assert_eq!(console.is_drained(), Ok(false));
    assert_eq!(daemon.take(), "xxxxxthe end");
    assert_eq!(console.is_drained(), Ok(true));
    let _held = console.backlog.borrow_mut();
    assert_eq!(console.write_some(b"again"), 5, "the crashed code has the backlog borrowed");
    assert_eq!(daemon.take(), "again");
    assert_eq!(console.is_drained(), Ok(true));
}

#[test]
fn a_restored_domain_sends_its_backlog() {
    let (console, _, _, page) = pair();
    console.write(&[b'x'; XENCONS_OUT_SIZE]);
    console.write(b"kept");
    page.zero();
    console.resume();
    let daemon = Daemon { output: Consumer::new(page, OUTPUT), input: Producer::new(page, INPUT) };
    assert_eq!(daemon.take(), "kept");
    daemon.input.write(b"ls").unwrap();
    assert_eq!(console.read(&mut [0; 8]).now_or_never(), Some(Ok(2)));
}

#[test]
fn input_arrives() {
    let (console, daemon, _, _) = pair();
    let mut bytes = [0; 8];
    assert_eq!(console.read(&mut bytes).now_or_never(), None);
    daemon.input.write(b"ls\n").unwrap();
    assert_eq!(console.read(&mut bytes).now_or_never(), Some(Ok(3)));
    assert_eq!(&bytes[..3], b"ls\n");
}

#[test]
fn a_broken_ring_only_loses_output() {
    let (console, _, _, page) = pair();
    page.store_u32(OUTPUT.cons, 5, Relaxed);
    page.store_u32(INPUT.prod, 5000, Relaxed);
    console.write(&[b'a'; BACKLOG]);
    console.write(b"abc");
    assert_eq!(console.dropped(), 3);
    assert_eq!(console.write_all(b"abc").now_or_never(), Some(Err(Errno::EPROTO)));
    assert_eq!(console.read(&mut [0; 4]).now_or_never(), Some(Err(Errno::EPROTO)));
}
