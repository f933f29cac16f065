//! The toolstack's requests in xenstore.

use futures_executor::LocalPool;
use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use futures_util::task::LocalSpawnExt;
use std::pin::pin;
use xen::DomId;
use xen::lifecycle::{Request, Requests};
use xen::testing::FakeStore;

const NODE: &str = "/local/domain/5/control/shutdown";

#[test]
fn requests_are_announced_acknowledged_and_returned() {
    let fake = FakeStore::new();
    fake.add_domain(DomId(5));
    let (store, connection) = fake.client(DomId(5));
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(connection).unwrap();
    let supported = [Request::Poweroff, Request::Reboot];
    let mut requests = pool.run_until(Requests::watch(&store, &supported)).unwrap();
    assert_eq!(fake.read("/local/domain/5/control/feature-poweroff").as_deref(), Some("1"));
    assert_eq!(fake.read("/local/domain/5/control/feature-reboot").as_deref(), Some("1"));
    assert_eq!(fake.read("/local/domain/5/control/feature-suspend"), None);

    for (word, request) in
        [("poweroff", Request::Poweroff), ("halt", Request::Poweroff), ("reboot", Request::Reboot)]
    {
        fake.write(NODE, word);
        assert_eq!(pool.run_until(requests.next()), Ok(request));
        assert_eq!(fake.read(NODE).as_deref(), Some(""), "acknowledged");
    }

    let mut next = pin!(requests.next());
    for (word, left) in [("dance", ""), ("suspend", "suspend"), ("", "")] {
        fake.write(NODE, word);
        assert_eq!(pool.run_until(poll_immediate(&mut next)), None);
        pool.run_until_stalled();
        assert_eq!(pool.run_until(poll_immediate(&mut next)), None);
        for _ in 0..10 {
            pool.run_until_stalled();
            assert_eq!(
                pool.run_until(poll_immediate(&mut next)),
                None,
                "{word:?} is not a request"
            );
        }
        assert_eq!(fake.read(NODE).as_deref(), Some(left));
    }
    fake.write(NODE, "reboot");
    assert_eq!(pool.run_until(next), Ok(Request::Reboot));
}

#[test]
fn a_cancelled_wait_loses_no_request() {
    for polls in 1..40 {
        let fake = FakeStore::new();
        fake.add_domain(DomId(5));
        let (store, connection) = fake.client(DomId(5));
        let mut connection = pin!(connection);
        let mut finish = |task: &mut dyn FnMut() -> bool| {
            for _ in 0..1000 {
                if task() {
                    return;
                }
                assert_eq!(connection.as_mut().now_or_never(), None);
            }
            panic!("cancelled after {polls} polls, the request is lost");
        };
        let mut requests = None;
        {
            let supported = [Request::Poweroff];
            let mut watch = pin!(Requests::watch(&store, &supported));
            finish(&mut || {
                requests = watch.as_mut().now_or_never();
                requests.is_some()
            });
        }
        let mut requests = requests.unwrap().unwrap();
        fake.write(NODE, "poweroff");
        let mut found = None;
        {
            let mut next = pin!(requests.next());
            let mut polled = 0;
            finish(&mut || {
                polled += 1;
                found = next.as_mut().now_or_never();
                found.is_some() || polled == polls
            });
        }
        if found.is_none() {
            let mut next = pin!(requests.next());
            finish(&mut || {
                found = next.as_mut().now_or_never();
                found.is_some()
            });
        }
        assert_eq!(found, Some(Ok(Request::Poweroff)));
    }
}
