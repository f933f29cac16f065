//! Guests that map each other's pages and bind each other's ports, in a `World`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Wake;
use xen::testing::World;
use xen::{Channel, DomId, Errno, Machine, Mapping, Neighbour, PAGE_SIZE, Side, Signal};

const GRANTS: DomId = DomId(7);
const MAPS: DomId = DomId(8);
const OTHER: DomId = DomId(9);

#[test]
fn a_guest_maps_pages_of_another_guest_until_it_unmaps_them() {
    let world = World::new();
    let (owner, guest) = (world.machine(GRANTS), world.peer(MAPS));
    let pages = owner.alloc(3).unwrap();
    let refs = [0, 1, 2].map(|page| owner.grant(MAPS, &pages, page).unwrap());
    let mapped = guest.map(GRANTS, &refs).unwrap();
    assert_eq!(world.mappings(), 3);
    pages.shared().write(2 * PAGE_SIZE, b"out");
    mapped.shared().write(0, b"back");
    let (mut out, mut back) = ([0; 3], [0; 4]);
    mapped.shared().read(2 * PAGE_SIZE, &mut out);
    pages.shared().read(0, &mut back);
    assert_eq!((&out, &back), (b"out", b"back"));
    assert_eq!(refs.map(|grant| owner.revoke(grant)), [Err(Errno::EBUSY); 3]);
    drop(mapped);
    assert_eq!(refs.map(|grant| owner.revoke(grant)), [Ok(()); 3]);
    assert_eq!(guest.map(GRANTS, &refs).err(), Some(Errno::EINVAL));
    // SAFETY: all grants were revoked.
    #[allow(unsafe_code, reason = "gives back the pages")]
    unsafe {
        owner.free(pages);
    }
    world.assert_clean();
}

#[test]
fn pages_and_ports_are_for_the_guest_that_they_were_offered_to() {
    let world = World::new();
    let owner = world.machine(GRANTS);
    let pages = owner.alloc(1).unwrap();
    let grant = owner.grant(MAPS, &pages, 0).unwrap();
    let port = owner.open_port(MAPS, Arc::default()).unwrap();
    let other = world.peer(OTHER);
    assert_eq!(other.map(GRANTS, &[grant]).err(), Some(Errno::EINVAL));
    assert_eq!(other.bind_port(GRANTS, port, Arc::default()).err(), Some(Errno::EINVAL));
    assert_eq!(world.peer(MAPS).map(OTHER, &[grant]).err(), Some(Errno::EINVAL));
    assert_eq!((world.mappings(), world.bound_ports()), (0, 0));
}

/// Counts how often a signal was raised.
#[derive(Default)]
struct Ear(Arc<Signal>, Arc<Heard>);

#[derive(Default)]
struct Heard(AtomicUsize);

impl Wake for Heard {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Ear {
    fn heard(&self) -> usize {
        self.0.register(Side::Rx, &self.1.clone().into());
        self.1.0.swap(0, Relaxed)
    }
}

#[test]
fn two_guests_send_each_other_events() {
    let world = World::new();
    let (owner, guest) = (world.machine(GRANTS), world.peer(MAPS));
    let ears = [Ear::default(), Ear::default()];
    let heard = || ears.each_ref().map(Ear::heard);
    assert_eq!(heard(), [0, 0]);
    let port = owner.open_port(MAPS, ears[0].0.clone()).unwrap();
    owner.notify(port);
    assert_eq!(heard(), [0, 0], "the port is not bound yet");
    let channel = guest.bind_port(GRANTS, port, ears[1].0.clone()).unwrap();
    assert_eq!(heard(), [0, 1], "the end that binds may have missed events");
    channel.notify();
    assert_eq!(heard(), [1, 0]);
    owner.notify(port);
    assert_eq!(heard(), [0, 1]);
    drop(channel);
    owner.notify(port);
    assert_eq!(heard(), [0, 0]);
    let again = guest.bind_port(GRANTS, port, ears[1].0.clone()).unwrap();
    assert_eq!(heard(), [0, 1]);
    owner.close_port(port);
    again.notify();
    assert_eq!(heard(), [0, 0]);
    drop(again);
    world.assert_clean();
}

#[test]
#[should_panic(expected = "pages were never unmapped")]
fn a_mapping_that_is_left_behind_is_noticed() {
    let world = World::new();
    let owner = world.machine(GRANTS);
    let grant = owner.grant(MAPS, &owner.alloc(1).unwrap(), 0).unwrap();
    let _mapped = world.peer(MAPS).map(GRANTS, &[grant]).unwrap();
    world.assert_clean();
}

#[test]
#[should_panic(expected = "ports were never unbound")]
fn a_bound_port_that_is_left_behind_is_noticed() {
    let world = World::new();
    let owner = world.machine(GRANTS);
    let port = owner.open_port(MAPS, Arc::default()).unwrap();
    let _channel = world.peer(MAPS).bind_port(GRANTS, port, Arc::default()).unwrap();
    owner.close_port(port);
    world.assert_clean();
}
