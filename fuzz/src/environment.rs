//! The environment of a frontend under test: Xen, a xenstored, the device's nodes, an executor.

use crate::input::Input;
use crate::tasks::{Spawner, Tasks};
use embassy_time::Duration;
use xen::testing::{FakeStore, Peer, World};
use xen::xenstore::Store;
use xen::{DomId, GrantRef};

pub const DOM0: DomId = DomId(0);
pub const GUEST: DomId = DomId(7);

/// The memory, nodes and tasks of a guest with one device, whose backend the input plays.
pub struct Environment {
    pub tasks: Tasks,
    pub spawner: Spawner,
    pub world: World,
    pub store: FakeStore,
    /// The backend's domain.
    pub peer: Peer,
    front: &'static str,
    back: &'static str,
}

impl Environment {
    /// Makes a device with folders at these paths. Returns the guest's connection to xenstore, too.
    pub fn new(front: &'static str, back: &'static str) -> (Environment, Store) {
        let (world, store, tasks) = (World::new(), FakeStore::new(), Tasks::new());
        store.add_domain(DOM0);
        store.add_domain(GUEST);
        let spawner = tasks.spawner();
        let (client, connection) = store.client(GUEST);
        spawner.spawn_endless(connection);
        let peer = world.peer(DOM0);
        let environment = Environment { tasks, spawner, world, store, peer, front, back };
        environment.make_device();
        (environment, client)
    }

    /// Makes the device as the toolstack does.
    pub fn make_device(&self) {
        self.store.add_device((self.front, GUEST), (self.back, DOM0));
    }

    /// Writes a node of the backend.
    pub fn write(&self, name: &str, value: impl AsRef<[u8]>) {
        self.store.write(&format!("{}/{name}", self.back), value);
    }

    /// Sets the backend's state.
    pub fn set_state(&self, state: u8) {
        self.write("state", state.to_string());
    }

    /// Goes through the backend's states before it connects.
    pub fn initialise(&mut self) {
        for state in [1, 2] {
            self.set_state(state);
            self.tasks.run();
        }
    }

    /// Writes a node of the frontend, as a toolstack may.
    pub fn write_front(&self, name: &str, value: &[u8]) {
        self.store.write(&format!("{}/{name}", self.front), value);
    }

    /// A number that the frontend has published.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.store.read(&format!("{}/{name}", self.front))?.parse().ok()
    }

    /// A page that the frontend has published a grant of.
    pub fn grant(&self, name: &str) -> Option<GrantRef> {
        self.number(name).map(GrantRef)
    }

    /// Removes nodes, stops xenstored or limits resources.
    pub fn disturb(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => self.store.rm(self.back),
            1 => self.store.rm(self.front),
            2 => self.store.pause(),
            3 => self.store.resume(),
            4 => self.world.limit_pages(input.below(64)),
            5 => self.world.limit_grants(input.below(64)),
            6 => self.world.limit_ports(input.below(8)),
            _ => self.write_front("state", input.bytes()),
        }
    }

    /// Waits until all tasks have ended: requests time out, a backend that does not close is given
    /// up, pages leave quarantine.
    pub fn finish(&mut self) {
        self.tasks.run();
        for _ in 0..200 {
            if self.tasks.unfinished() == 0 {
                break;
            }
            self.tasks.pass(Duration::from_secs(1));
        }
        assert_eq!(self.tasks.unfinished(), 0, "a task still waits for a closed frontend");
    }
}
