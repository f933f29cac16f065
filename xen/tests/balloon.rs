//! The toolstack's target for memory in xenstore.

use futures_executor::LocalPool;
use futures_util::future::poll_immediate;
use futures_util::task::LocalSpawnExt;
use std::pin::pin;
use xen::DomId;
use xen::balloon::{ERROR_NODE, Target, Wanted};
use xen::testing::FakeStore;

const MEMORY: &str = "/local/domain/5/memory";

#[test]
fn a_target_is_watched_and_read_and_errors_are_written() {
    let fake = FakeStore::new();
    fake.add_domain(DomId(5));
    let (store, connection) = fake.client(DomId(5));
    let mut pool = LocalPool::new();
    pool.spawner().spawn_local(connection).unwrap();
    let mut target = pool.run_until(Target::watch(&store)).unwrap();
    pool.run_until(target.changed());
    assert_eq!(pool.run_until(target.read()), Ok(None), "no target is set");

    let write = |node: &str, value: &str| fake.write(&format!("{MEMORY}/{node}"), value);
    write("static-max", "65536");
    for (text, wanted) in [
        ("32768", Some(Wanted { target: 32768, absent: 8192 })),
        // Parts of pages are rounded up.
        ("32767", Some(Wanted { target: 32767, absent: 8193 })),
        ("65536", Some(Wanted { target: 65536, absent: 0 })),
        ("99999", Some(Wanted { target: 99999, absent: 0 })),
        ("much", None),
        ("-5", None),
        ("", None),
    ] {
        write("target", text);
        pool.run_until(target.changed());
        assert_eq!(pool.run_until(target.read()), Ok(wanted), "{text:?}");
    }
    assert_eq!(pool.run_until(async { poll_immediate(pin!(target.changed())).await }), None);

    let node = format!("/local/domain/5/{ERROR_NODE}");
    pool.run_until(target.complain(Some("it is too little".into())));
    assert_eq!(fake.read(&node).as_deref(), Some("it is too little"));
    fake.write(&node, "somebody else's");
    pool.run_until(target.complain(Some("it is too little".into())));
    assert_eq!(
        fake.read(&node).as_deref(),
        Some("somebody else's"),
        "the same text is not written twice"
    );
    pool.run_until(target.complain(None));
    assert_eq!(fake.read(&node), None);
}
