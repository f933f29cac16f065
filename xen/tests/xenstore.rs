//! The xenstore client against a xenstored in memory.

use futures_executor::{LocalPool, LocalSpawner};
use futures_util::FutureExt;
use futures_util::future::{join_all, poll_immediate};
use futures_util::task::LocalSpawnExt;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use xen::testing::FakeStore;
use xen::xenbus::{self, OtherEnd, State, StateWatch};
use xen::xenstore::wire;
use xen::xenstore::{self, Access, Permission, Store, Transaction};
use xen::{DomId, Errno};

const GUEST: DomId = DomId(5);
const HOME: &str = "/local/domain/5";

/// A fake store, a domain's connection to it, and a pool that runs the driver.
struct World {
    fake: FakeStore,
    store: Store,
    pool: RefCell<LocalPool>,
    spawner: LocalSpawner,
    ended: Rc<Cell<Option<Errno>>>,
}

impl World {
    fn new() -> World {
        let fake = FakeStore::new();
        fake.add_domain(GUEST);
        let pool = LocalPool::new();
        let ended = Rc::new(Cell::new(None));
        let (reader, writer) = fake.connect(GUEST);
        let (store, driver) = xenstore::connect(reader, writer);
        let end = ended.clone();
        let spawner = pool.spawner();
        spawner.spawn_local(async move { end.set(Some(driver.run().await)) }).unwrap();
        World { fake, store, pool: RefCell::new(pool), spawner, ended }
    }

    /// Runs until all tasks wait. The future must be ready by then.
    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        for _ in 0..100_000 {
            let mut pool = self.pool.borrow_mut();
            let polled = pool.run_until(poll_immediate(&mut future));
            if let Some(output) = polled {
                return output;
            }
            pool.run_until_stalled();
        }
        panic!("the future never becomes ready");
    }

    fn settle(&self) {
        self.pool.borrow_mut().run_until_stalled();
    }
}

#[test]
fn a_value_reads_back_as_written() {
    let world = World::new();
    world.run(async {
        let store = &world.store;
        store.write("device/a", "value").await.unwrap();
        assert_eq!(store.read_string("device/a").await.unwrap(), "value");
        assert_eq!(store.read("/local/domain/5/device/a").await.unwrap(), b"value");
        store.mkdir("device/b").await.unwrap();
        assert_eq!(store.read("device/b").await.unwrap(), b"");
        assert_eq!(store.directory("device").await.unwrap(), ["a", "b"]);
        store.rm("device/a").await.unwrap();
        assert_eq!(store.read("device/a").await, Err(Errno::ENOENT));
        assert_eq!(store.directory("device").await.unwrap(), ["b"]);
        assert!(store.directory("device/b").await.unwrap().is_empty());
        assert_eq!(store.domain_path(DomId(9)).await.unwrap(), "/local/domain/9");
    });
    assert_eq!(world.fake.read(&format!("{HOME}/device/b")).as_deref(), Some(""));
}

#[test]
fn paths_and_values_are_checked_before_they_are_sent() {
    let world = World::new();
    world.run(async {
        let store = &world.store;
        assert_eq!(store.read("a b").await, Err(Errno::EINVAL));
        assert_eq!(store.read("a\0b").await, Err(Errno::EINVAL));
        assert_eq!(store.write("a", [0; 4096]).await, Err(Errno::E2BIG));
        assert_eq!(store.watch("//").await.err(), Some(Errno::EINVAL));
        let longest = vec![b'x'; 4094];
        store.write("a", &longest).await.unwrap();
        assert_eq!(store.read("a").await.unwrap(), longest);
    });
}

#[test]
fn many_requests_run_at_once() {
    let world = World::new();
    world.run(async {
        let writes = (0..200).map(|n| {
            let store = world.store.clone();
            async move {
                let (path, value) = (format!("n/{n}"), n.to_string());
                store.write(&path, &value).await.unwrap();
                assert_eq!(store.read_string(&path).await.unwrap(), value);
            }
        });
        join_all(writes).await;
    });
}

#[test]
fn permissions_keep_domains_apart() {
    let world = World::new();
    world.fake.write("/secret/node", "x");
    world.run(async {
        let store = &world.store;
        assert_eq!(store.read("/secret/node").await, Err(Errno::EACCES));
        assert_eq!(store.write("/secret/node", "y").await, Err(Errno::EACCES));
        let mine = Permission { access: Access::None, domain: GUEST };
        let backend = Permission { access: Access::Read, domain: DomId(3) };
        store.write("shared", "z").await.unwrap();
        assert_eq!(store.get_permissions("shared").await.unwrap(), [mine]);
        store.set_permissions("shared", &[mine, backend]).await.unwrap();
        assert_eq!(store.get_permissions("shared").await.unwrap(), [mine, backend]);
    });
}

#[test]
fn permissions_for_a_domain_that_is_younger_do_not_count() {
    let world = World::new();
    let (path, younger) = ("/local/domain/5/shared", DomId(6));
    let permissions = [(Access::None, GUEST), (Access::Read, younger)]
        .map(|(access, domain)| Permission { access, domain });
    let share = || {
        world.fake.write(path, "x");
        world.fake.set_permissions(path, &permissions);
    };
    share();
    let (store, connection) = world.fake.client(younger);
    world.spawner.spawn_local(connection).unwrap();
    assert_eq!(world.run(store.read(path)), Err(Errno::EACCES));
    share();
    assert_eq!(world.run(store.read(path)), Ok(b"x".to_vec()));
    world.fake.remove_domain(younger);
    world.fake.add_domain(younger);
    assert_eq!(world.run(store.read(path)), Err(Errno::EACCES), "it is another one");
}

#[test]
fn a_long_directory_comes_in_parts() {
    let world = World::new();
    let names: Vec<_> = (0..900).map(|n| format!("child-number-{n:05}")).collect();
    names.iter().for_each(|name| world.fake.write(&format!("{HOME}/long/{name}"), ""));
    world.fake.set_permissions(
        &format!("{HOME}/long"),
        &[Permission { access: Access::None, domain: GUEST }],
    );
    assert_eq!(world.run(world.store.directory("long")).unwrap(), names);
}

#[test]
fn a_watch_fires_at_once_and_on_changes_below() {
    let world = World::new();
    world.run(async {
        let mut watch = world.store.watch("device").await.unwrap();
        assert_eq!(watch.next().await, "device");
        world.fake.write(&format!("{HOME}/device/0/state"), "2");
        world.fake.write(&format!("{HOME}/device/0/state"), "3");
        world.fake.write(&format!("{HOME}/other"), "3");
        assert_eq!(watch.next().await, "device/0/state");
        assert_eq!(poll_immediate(pin!(watch.next())).await, None, "two changes are reported once");
        world.fake.rm(HOME);
        assert_eq!(watch.next().await, "device");
        let mut absolute = world.store.watch("/local/domain/5/x").await.unwrap();
        assert_eq!(absolute.next().await, "/local/domain/5/x");
    });
}

#[test]
fn a_watch_fires_for_nodes_that_can_be_read_or_whose_parent_can() {
    let world = World::new();
    let other = DomId(6);
    let all = |access| [Permission { access, domain: other }];
    world.fake.add_domain(other);
    world.fake.write("/local/domain/6/data/open/hidden", "");
    world.fake.set_permissions("/local/domain/6/data/open", &all(Access::Read));
    world.fake.set_permissions("/local/domain/6/data/open/hidden", &all(Access::None));
    world.run(async {
        let mut open = world.store.watch("/local/domain/6/data/open").await.unwrap();
        let mut data = world.store.watch("/local/domain/6/data").await.unwrap();
        open.next().await;
        data.next().await;
        world.fake.write("/local/domain/6/data/open/hidden/deep", "");
        world.fake.write("/local/domain/6/data/secret", "");
        world.fake.write("/local/domain/6/data/open/hidden", "");
        assert_eq!(open.next().await, "/local/domain/6/data/open/hidden");
        assert_eq!(data.next().await, "/local/domain/6/data/open/hidden");
        // It is hidden from now on, which can be seen.
        world.fake.set_permissions("/local/domain/6/data/open", &all(Access::None));
        assert_eq!(open.next().await, "/local/domain/6/data/open");
        world.fake.write("/local/domain/6/data/open/hidden", "");
        world.fake.set_permissions("/local/domain/6/data/open", &all(Access::Read));
        assert_eq!(open.next().await, "/local/domain/6/data/open");
        // The watched node goes with all above it, most of which cannot be seen.
        world.fake.remove_domain(other);
        assert_eq!(open.next().await, "/local/domain/6/data/open");
        assert_eq!(data.next().await, "/local/domain/6/data/open");
        assert!(data.next().now_or_never().is_none());
    });
}

#[test]
fn two_watches_of_one_path_both_fire() {
    let world = World::new();
    world.run(async {
        let mut first = world.store.watch("a").await.unwrap();
        let mut second = world.store.watch("a").await.unwrap();
        assert_eq!((first.next().await, second.next().await), ("a".into(), "a".into()));
        drop(first);
        world.fake.write(&format!("{HOME}/a/b"), "");
        assert_eq!(second.next().await, "a/b");
    });
    assert_eq!(world.fake.watches(), 1, "the watch of the second ended with the future");
    world.settle();
}

#[test]
fn unfetched_events_take_bounded_memory() {
    let world = World::new();
    world.run(async {
        let mut watch = world.store.watch("a").await.unwrap();
        (0..1000).for_each(|n| world.fake.write(&format!("{HOME}/a/{n}"), ""));
        world.store.read("a").await.unwrap();
        let mut fired = Vec::new();
        while let Some(path) = poll_immediate(pin!(watch.next())).await {
            fired.push(path);
        }
        assert!(fired.len() <= 64, "{} events were queued", fired.len());
        assert!(fired.contains(&"a".to_string()), "the watched path replaces lost ones");
    });
}

#[test]
fn a_dropped_watch_is_unregistered() {
    let world = World::new();
    let watch = world.run(world.store.watch("a")).unwrap();
    assert_eq!(world.fake.watches(), 1);
    drop(watch);
    world.settle();
    assert_eq!(world.fake.watches(), 0);
}

#[test]
fn a_transaction_takes_effect_as_a_whole_or_not_at_all() {
    let world = World::new();
    world.run(async {
        let transaction = world.store.transaction().await.unwrap();
        transaction.write("a", "1").await.unwrap();
        assert_eq!(transaction.read_string("a").await.unwrap(), "1");
        assert_eq!(world.store.read("a").await, Err(Errno::ENOENT));
        transaction.commit().await.unwrap();
        assert_eq!(world.store.read_string("a").await.unwrap(), "1");

        let transaction = world.store.transaction().await.unwrap();
        transaction.read("a").await.unwrap();
        transaction.write("b", "2").await.unwrap();
        world.fake.write(&format!("{HOME}/a"), "changed");
        assert_eq!(transaction.commit().await, Err(Errno::EAGAIN));
        assert_eq!(world.store.read("b").await, Err(Errno::ENOENT));

        let transaction = world.store.transaction().await.unwrap();
        transaction.write("c", "3").await.unwrap();
        drop(transaction);
        assert_eq!(world.store.read("c").await, Err(Errno::ENOENT));
    });
    assert_eq!(world.fake.transactions(), 0);
}

#[test]
fn a_watch_fires_when_a_transaction_is_committed() {
    let world = World::new();
    world.run(async {
        let mut watch = world.store.watch("a").await.unwrap();
        watch.next().await;
        let transaction = world.store.transaction().await.unwrap();
        transaction.write("a/b", "1").await.unwrap();
        assert_eq!(poll_immediate(pin!(watch.next())).await, None);
        transaction.commit().await.unwrap();
        assert_eq!(watch.next().await, "a/b");
    });
}

#[test]
fn a_conflicting_transaction_is_retried() {
    let world = World::new();
    let tries = Cell::new(0);
    world.run(async {
        let (fake, tries) = (&world.fake, &tries);
        let work = async |transaction: &Transaction| {
            let old = transaction.read_string("a").await.unwrap_or_default();
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                fake.write(&format!("{HOME}/a"), "x".repeat(tries.get()));
            }
            transaction.write("a", format!("{old}!")).await.map(|()| old)
        };
        assert_eq!(world.store.transact(work).await.unwrap(), "xx");
        assert_eq!(world.store.read_string("a").await.unwrap(), "xx!");
        let hopeless = async |transaction: &Transaction| {
            transaction.read("a").await?;
            fake.write(&format!("{HOME}/a"), "again");
            transaction.write("a", "mine").await
        };
        assert_eq!(world.store.transact(hopeless).await, Err(Errno::EAGAIN));
    });
    assert_eq!(world.fake.transactions(), 0);
}

/// Connects to another xenstored, as after a restore.
fn restore(world: &World, fake: &FakeStore) {
    let (reader, writer) = fake.connect(GUEST);
    let driver = world.store.reconnect(reader, writer);
    world.store.release();
    world
        .spawner
        .spawn_local(async move {
            driver.run().await;
        })
        .unwrap();
}

#[test]
fn a_quiesced_connection_finishes_pending_requests_and_sends_no_new_ones() {
    let world = World::new();
    let store = &world.store;
    world.run(async {
        let transaction = store.transaction().await.unwrap();
        let mut held = pin!(store.quiesce());
        assert_eq!(poll_immediate(&mut held).await, None, "a transaction is open");
        let mut write = pin!(store.write("new", "1"));
        assert_eq!(poll_immediate(&mut write).await, None);
        let mut second = pin!(store.transaction());
        assert!(poll_immediate(&mut second).await.is_none());
        transaction.write("old", "1").await.unwrap();
        transaction.commit().await.unwrap();
        held.await;
        assert_eq!(world.fake.read(&format!("{HOME}/old")).as_deref(), Some("1"));
        assert_eq!(world.fake.read(&format!("{HOME}/new")), None);
        store.release();
        write.await.unwrap();
        drop(second.await.unwrap());
    });
    world.settle();
    assert_eq!(world.fake.transactions(), 0);
}

#[test]
fn in_a_restored_domain_watches_fire_again_and_requests_go_to_the_new_xenstored() {
    let world = World::new();
    let store = &world.store;
    let fresh = FakeStore::new();
    fresh.add_domain(GUEST);
    world.run(async {
        let mut watch = store.watch("control").await.unwrap();
        watch.next().await;
        drop(store.watch("ended").await.unwrap());
        store.quiesce().await;
        let mut late = pin!(store.watch("late"));
        let mut write = pin!(store.write("a", "1"));
        assert!(poll_immediate(&mut late).await.is_none());
        assert_eq!(poll_immediate(&mut write).await, None);
        restore(&world, &fresh);
        write.await.unwrap();
        assert_eq!(watch.next().await, "control");
        let mut late = late.await.unwrap();
        assert_eq!(late.next().await, "late");
        fresh.write(&format!("{HOME}/control/shutdown"), "suspend");
        assert_eq!(watch.next().await, "control/shutdown");
    });
    world.settle();
    assert_eq!(fresh.read(&format!("{HOME}/a")).as_deref(), Some("1"));
    assert_eq!(world.fake.read(&format!("{HOME}/a")), None);
    assert_eq!(fresh.watches(), 0, "the watches were dropped");
    assert_eq!(world.ended.get(), Some(Errno::ECONNRESET), "the former driver still runs");
}

#[test]
fn pending_requests_fail_in_a_restored_domain_and_can_be_retried() {
    let world = World::new();
    let store = &world.store;
    let fresh = FakeStore::new();
    fresh.add_domain(GUEST);
    let [open, committing, dropped] = world.run(async {
        let begin = async || store.transaction().await.unwrap();
        [begin().await, begin().await, begin().await]
    });
    // xenstored does not reply any more, and the domain is saved anyway.
    world.fake.pause();
    let mut read = Box::pin(store.read("a"));
    let mut commit = Box::pin(committing.commit());
    assert_eq!(read.as_mut().now_or_never(), None);
    assert_eq!(commit.as_mut().now_or_never(), None);
    world.settle();
    restore(&world, &fresh);
    world.run(async {
        assert_eq!(read.await, Err(Errno::ECONNRESET));
        assert_eq!(commit.await, Err(Errno::EAGAIN));
        assert_eq!(open.read("t").await, Err(Errno::EAGAIN));
        assert_eq!(open.commit().await, Err(Errno::EAGAIN));
        drop(dropped);
        store.write("after", "1").await.unwrap();
    });
    world.settle();
    assert_eq!(fresh.read(&format!("{HOME}/after")).as_deref(), Some("1"));
    assert_eq!(fresh.transactions(), 0);
}

/// A connection whose driver moves one piece of a message per poll.
struct Steps {
    fake: FakeStore,
    store: Store,
    driver: Pin<Box<dyn Future<Output = Errno>>>,
}

impl Steps {
    fn new() -> Steps {
        let fake = FakeStore::new();
        fake.add_domain(GUEST);
        let (reader, writer) = fake.connect(GUEST);
        let (store, driver) = xenstore::connect(reader, writer);
        Steps { fake, store, driver: Box::pin(driver.run()) }
    }

    fn step(&mut self) {
        assert_eq!(self.driver.as_mut().now_or_never(), None, "the connection ended");
    }

    fn finish<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        for _ in 0..10_000 {
            if let Some(output) = future.as_mut().now_or_never() {
                return output;
            }
            self.step();
        }
        panic!("the future never becomes ready");
    }
}

#[test]
fn a_request_dropped_at_any_point_breaks_nothing_and_leaks_nothing() {
    type Task = Pin<Box<dyn Future<Output = ()>>>;
    let tasks: [fn(Store) -> Task; 4] = [
        |store| Box::pin(async move { store.write("long", [b'x'; 100]).await.unwrap() }),
        |store| Box::pin(async move { drop(store.watch("a").await.unwrap()) }),
        |store| Box::pin(async move { drop(store.transaction().await.unwrap()) }),
        |store| {
            Box::pin(async move {
                let transaction = store.transaction().await.unwrap();
                transaction.write("t", "1").await.unwrap();
                transaction.commit().await.unwrap();
            })
        },
    ];
    // Either the task is polled until it is dropped, or it is not polled for some steps before
    // that.
    for (task, steps, polled) in (0..4)
        .flat_map(|task| (0..30).flat_map(move |steps| [(task, steps, false), (task, steps, true)]))
    {
        let mut world = Steps::new();
        let mut task = tasks[task](world.store.clone());
        let mut done = task.as_mut().now_or_never().is_some();
        for _ in 0..steps {
            world.step();
            done = done || polled && task.as_mut().now_or_never().is_some();
        }
        drop(task);
        let store = world.store.clone();
        world.finish(async {
            store.write("after", "1").await.unwrap();
            assert_eq!(store.read_string("after").await.unwrap(), "1", "after {steps} steps");
        });
        (0..100).for_each(|_| world.step());
        assert_eq!(world.fake.watches(), 0, "after {steps} steps");
        assert_eq!(world.fake.transactions(), 0, "after {steps} steps");
    }
}

#[test]
fn a_directory_that_changes_while_it_is_read_is_read_again() {
    let names: Vec<_> = (0..900).map(|n| format!("child-number-{n:05}")).collect();
    for steps in 0..40 {
        let mut world = Steps::new();
        names.iter().for_each(|name| world.fake.write(&format!("{HOME}/long/{name}"), ""));
        let mine = Permission { access: Access::None, domain: GUEST };
        world.fake.set_permissions(&format!("{HOME}/long"), &[mine]);
        let store = world.store.clone();
        let mut listing = Box::pin(store.directory("long"));
        let mut found = None;
        for _ in 0..steps {
            found = found.or_else(|| listing.as_mut().now_or_never());
            world.step();
        }
        world.fake.write(&format!("{HOME}/long/a-new-one"), "");
        let found = found.unwrap_or_else(|| world.finish(listing)).unwrap();
        let old = found.iter().filter(|name| *name != "a-new-one");
        assert!(old.eq(&names), "after {steps} steps {} names were found", found.len());
    }
}

#[test]
fn a_reply_of_another_type_fails_its_request() {
    let world = World::new();
    world.fake.pause();
    let mut write = Box::pin(world.store.write("a", "1"));
    assert!(world.pool.borrow_mut().run_until(poll_immediate(&mut write)).is_none());
    world.settle();
    // The connection's first request is number 1.
    world.fake.inject(&wire::encode(2, 1, 0, &[b"OK\0"]).unwrap());
    assert_eq!(world.run(write), Err(Errno::EPROTO));
    assert_eq!(world.ended.get(), None);
}

#[test]
fn an_unsent_request_is_withdrawn_when_it_is_dropped() {
    let world = World::new();
    let write = Box::pin(world.store.write("a", "1"));
    let mut write = write;
    assert!(world.pool.borrow_mut().run_until(poll_immediate(&mut write)).is_none());
    drop(write);
    world.settle();
    assert_eq!(world.fake.read(&format!("{HOME}/a")), None);
}

#[test]
fn replies_without_a_request_are_ignored() {
    let world = World::new();
    let mut bytes = Vec::new();
    for (kind, request) in [(2u32, 77u32), (16, 78), (15, 0), (99, 0)] {
        [kind, request, 0, 3].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(b"ab\xff");
    }
    world.fake.inject(&bytes);
    world.run(async { world.store.write("a", "1").await.unwrap() });
    assert_eq!(world.ended.get(), None);
}

#[test]
fn a_malformed_message_ends_the_connection_with_an_error() {
    let world = World::new();
    world.fake.pause();
    let mut read = Box::pin(world.store.read("a"));
    assert!(world.pool.borrow_mut().run_until(poll_immediate(&mut read)).is_none());
    world.fake.inject(&[0xff; 16]);
    assert_eq!(world.run(read), Err(Errno::EPROTO));
    assert_eq!(world.ended.get(), Some(Errno::EPROTO));
    assert_eq!(world.run(world.store.write("a", "1")), Err(Errno::EPROTO));
}

#[test]
fn requests_fail_when_the_driver_is_dropped() {
    let fake = FakeStore::new();
    let (reader, writer) = fake.connect(GUEST);
    let (store, driver) = xenstore::connect(reader, writer);
    let mut pool = LocalPool::new();
    let mut read = Box::pin(store.read("a"));
    assert!(pool.run_until(poll_immediate(&mut read)).is_none());
    drop(driver);
    assert_eq!(pool.run_until(read), Err(Errno::EPIPE));
}

#[test]
fn watches_end_with_their_connection() {
    let world = World::new();
    let watch = world.run(world.store.watch("a")).unwrap();
    let World { fake, pool, .. } = world;
    drop(pool);
    assert_eq!(fake.watches(), 0);
    drop(watch);
}

#[test]
fn a_devices_two_ends_see_each_other_change() {
    let world = World::new();
    let (front, back) = ("device/pvcalls/0", "/local/domain/0/backend/pvcalls/5/0");
    world.fake.write(&format!("{HOME}/{front}/state"), "1");
    world.fake.write(&format!("{HOME}/{front}/backend"), back);
    world.fake.write(&format!("{HOME}/{front}/backend-id"), "0");
    world.fake.write(back, "");
    world.fake.set_permissions(back, &[Permission { access: Access::Read, domain: DomId(0) }]);
    world.run(async {
        let store = &world.store;
        let other = OtherEnd::backend_of(store, front).await.unwrap();
        assert_eq!(other, OtherEnd { domain: DomId(0), path: back.into() });
        let mut watch = StateWatch::new(store, &other.path).await.unwrap();
        assert_eq!(watch.next().await, Ok(State::Unknown));
        world.fake.write(&format!("{back}/state"), "2");
        assert_eq!(watch.wait_for(|state| state == State::InitWait).await, Ok(State::InitWait));
        assert_eq!(watch.wait_for(|state| state == State::InitWait).await, Ok(State::InitWait));
        world.fake.write(&format!("{back}/state"), "2");
        world.store.read(&format!("{back}/state")).await.unwrap();
        {
            let mut again = pin!(watch.next());
            for _ in 0..4 {
                assert_eq!(poll_immediate(&mut again).await, None, "the state is the same");
                world.store.read(&format!("{back}/state")).await.unwrap();
            }
        }
        world.fake.write(&format!("{back}/state"), "nonsense");
        world.store.read(&format!("{back}/state")).await.unwrap();
        // A wait that is cancelled while it reads the state loses nothing.
        assert_eq!(poll_immediate(pin!(watch.next())).await, None);
        assert_eq!(watch.next().await, Ok(State::Unknown));

        xenbus::switch_state(store, front, State::Initialised).await.unwrap();
        assert_eq!(xenbus::read_state(store, front).await, Ok(State::Initialised));
        world.fake.rm(&format!("{HOME}/{front}"));
        let gone = xenbus::switch_state(store, front, State::Closed).await;
        assert_eq!(gone, Err(Errno::ENOENT));
        assert_eq!(world.fake.read(&format!("{HOME}/{front}/state")), None);
        assert_eq!(xenbus::read_state(store, front).await, Ok(State::Unknown));
    });
}

proptest! {
    #[test]
    fn no_bytes_of_the_server_make_the_client_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        messages in proptest::collection::vec(
            (0u32..24, 0u32..4, proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let world = World::new();
        world.fake.pause();
        let store = &world.store;
        let spawner = &world.spawner;
        let (reader, watcher, starter) = (store.clone(), store.clone(), store.clone());
        spawner.spawn_local(async move { drop(reader.directory("a").await) }).unwrap();
        spawner.spawn_local(async move { drop(watcher.watch("a").await) }).unwrap();
        spawner.spawn_local(async move { drop(starter.transaction().await) }).unwrap();
        world.settle();
        for (kind, request, payload) in messages {
            world.fake.inject(&wire::encode(kind, request, 0, &[&payload]).unwrap());
        }
        world.settle();
        prop_assert_eq!(world.ended.get(), None);
        world.fake.inject(&bytes);
        world.settle();
        prop_assert!(matches!(world.ended.get(), None | Some(Errno::EPROTO)));
    }
}
