use super::*;
use crate::DomId;
use crate::testing::FakeStore;
use crate::testing::page;
use crate::xenstore::{self, Store};
use core::future::poll_fn;
use core::sync::atomic::Ordering::Relaxed;
use core::task::Poll;
use futures_executor::LocalPool;
use futures_util::FutureExt;
use futures_util::future::{join, join_all};
use futures_util::task::LocalSpawnExt;

/// A client over a ring, at whose other end a fake xenstored serves.
fn world() -> (LocalPool, Store, Shared<'static>) {
    let (page, fake, pool) = (page(), FakeStore::new(), LocalPool::new());
    // The indexes wrap within the first message.
    for layout in [REQUESTS, REPLIES] {
        page.store_u32(layout.cons, u32::MAX - 5, Relaxed);
        page.store_u32(layout.prod, u32::MAX - 5, Relaxed);
    }
    let (ours, theirs) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
    let peer = theirs.clone();
    let (reader, writer) = open(page, move || peer.raise(), ours.clone());
    let (store, driver) = xenstore::connect(reader, writer);
    let spawner = pool.spawner();
    spawner.spawn_local(driver.run().map(drop)).unwrap();

    let (mut replies, mut requests) = fake.connect(DomId(0));
    let (ring, events, peer) = (Consumer::new(page, REQUESTS), theirs.clone(), ours.clone());
    let serve_requests = async move {
        let mut bytes = [0; 100];
        loop {
            let count = poll_fn(|cx| {
                events.register(Side::Rx, cx.waker());
                match ring.read(&mut bytes).unwrap() {
                    0 => Poll::Pending,
                    count => Poll::Ready(count),
                }
            })
            .await;
            peer.raise();
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                let written = requests.write(rest).await.unwrap();
                rest = &rest[written..];
            }
        }
    };
    spawner.spawn_local(serve_requests).unwrap();
    let (ring, events, peer) = (Producer::new(page, REPLIES), theirs, ours);
    let serve_replies = async move {
        let mut bytes = [0; 100];
        loop {
            let count = replies.read(&mut bytes).await.unwrap();
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                let written = poll_fn(|cx| {
                    events.register(Side::Tx, cx.waker());
                    match ring.write(rest).unwrap() {
                        0 => Poll::Pending,
                        written => Poll::Ready(written),
                    }
                })
                .await;
                peer.raise();
                rest = &rest[written..];
            }
        }
    };
    spawner.spawn_local(serve_replies).unwrap();
    (pool, store, page)
}

#[test]
fn messages_larger_than_the_ring_pass_both_ways_at_once() {
    let (mut pool, store, _) = world();
    pool.run_until(join_all((0..20u8).map(|n| {
        let store = store.clone();
        async move {
            let (path, value) = (format!("/n/{n}"), vec![n; 4000]);
            store.write(&path, &value).await.unwrap();
            assert_eq!(store.read(&path).await.unwrap(), value);
        }
    })));
}

#[test]
fn an_index_out_of_range_ends_the_connection_and_not_the_guest() {
    for index in [REQUESTS.cons, REPLIES.prod] {
        let (page, wakers) = (page(), Arc::new(Signal::default()));
        let (reader, writer) = open(page, || (), wakers.clone());
        let (store, driver) = xenstore::connect(reader, writer);
        let mut both = Box::pin(join(driver.run(), store.read("/a")));
        assert!(both.as_mut().now_or_never().is_none());
        page.store_u32(index, 5000, Relaxed);
        wakers.raise();
        let both = LocalPool::new().run_until(both);
        assert_eq!(both, (Errno::EPROTO, Err(Errno::EPROTO)));
    }
}
