//! What every frontend needs, whatever its device does.
//!
//! A frontend implements [`SessionHandler`] and passes it to a [`Driver`]. The driver finds the
//! device in xenstore, waits for one backend after another, and calls the handler when a session
//! begins and ends. The handler negotiates, shares pages from its [`PagePool`], and moves data.
//!
//! | type | purpose |
//! |---|---|
//! | [`Driver`], [`SessionHandler`], [`Handshake`], [`Lifecycle`] | sessions: states, retries |
//! | [`PagePool`], [`GrantedPages`] | pages and their grants, with reuse and quarantine |
//! | [`Ring`] | requests and responses in the slots of one page, at both ends |
//! | [`Producer`], [`Consumer`] | bytes in a ring, at both ends |
//!
//! The kit relies on a [`Machine`](crate::Machine), on [`Store`](crate::xenstore::Store), and on a
//! time driver of `embassy-time`. It guarantees that a backend can leave, return, be replaced or
//! break the protocol at any moment, and that no page is reused while a backend can still reach it.
//!
//! # Example
//! A frontend that only connects:
//! ```
//! # use futures_executor::{LocalPool, LocalSpawner};
//! # use futures_util::task::LocalSpawnExt;
//! use futures_util::future::join;
//! use std::rc::Rc;
//! use xen::frontend::{Driver, Handshake, Lifecycle, PagePool};
//! use xen::frontend::{SessionEnd, SessionHandler, shutdown};
//! use xen::testing::{FakeMachine, FakeStore, World};
//! use xen::xenbus::{State, StateWatch, switch_state};
//! use xen::xenstore;
//! use xen::{DomId, Errno};
//!
//! struct Toy {
//!     lifecycle: Lifecycle,
//!     pages: PagePool<FakeMachine>,
//! }
//!
//! impl SessionHandler for Toy {
//!     type Machine = FakeMachine;
//!
//!     fn lifecycle(&self) -> &Lifecycle {
//!         &self.lifecycle
//!     }
//!
//!     fn pages(&self) -> &PagePool<FakeMachine> {
//!         &self.pages
//!     }
//!
//!     async fn session(&self, handshake: &mut Handshake<'_>) -> Result<SessionEnd, Errno> {
//!         let page = self.pages.share(handshake.backend.domain, 1)?;
//!         let nodes = [("ring-ref", page.grants()[0].0.to_string())];
//!         let mut end = handshake.connect(&nodes, State::Initialised).await?;
//!         if end.is_none() {
//!             end = Some(handshake.until_over(std::future::pending()).await?);
//!             handshake.close().await;
//!         }
//!         self.pages.withdraw(page);
//!         Ok(end.unwrap_or(SessionEnd::BackendGone))
//!     }
//!
//!     fn leave_session(&self, _error: Errno) {}
//! }
//!
//! let (front, back) = ("/local/domain/7/device/toy/0", "/local/domain/0/backend/toy/7/0");
//! let (world, fake, mut pool) = (World::new(), FakeStore::new(), LocalPool::new());
//! for domain in [DomId(0), DomId(7)] {
//!     fake.add_domain(domain);
//! }
//! fake.add_device((front, DomId(7)), (back, DomId(0)));
//! # let connect = |domain, spawner: LocalSpawner| {
//! #     let (reader, writer) = fake.connect(domain);
//! #     let (store, driver) = xenstore::connect(reader, writer);
//! #     spawner.spawn_local(async move { drop(driver.run().await) }).unwrap();
//! #     store
//! # };
//! let (store, backend) = (connect(DomId(7), pool.spawner()), connect(DomId(0), pool.spawner()));
//! let pages = PagePool::new(world.machine(DomId(7)));
//! let toy = Rc::new(Toy { lifecycle: Lifecycle::default(), pages });
//! let driver = Driver::new(toy.clone(), store, front);
//! let serve = async {
//!     switch_state(&backend, back, State::InitWait).await?;
//!     let mut frontend = StateWatch::new(&backend, front).await?;
//!     frontend.wait_for(|state| state == State::Initialised).await?;
//!     switch_state(&backend, back, State::Connected).await?;
//!     frontend.wait_for(|state| state == State::Connected).await?;
//!     let close = async {
//!         frontend.wait_for(|state| state == State::Closing).await?;
//!         switch_state(&backend, back, State::Closed).await
//!     };
//!     join(shutdown(&*toy), close).await.1
//! };
//! let (ended, served) = pool.run_until(join(driver.run(), serve));
//! assert_eq!((ended, served), (Errno::ENODEV, Ok(())));
//! world.assert_clean();
//! ```

pub(crate) mod bytes;
#[allow(unsafe_code, reason = "gives pages back to the machine")]
mod pages;
mod ring;
mod session;

pub use bytes::{
    Consumer, Direction, EventIndexes, NotifyPolicy, Producer, Region, copy_in, copy_out, len,
    split_at,
};
pub use pages::{GrantedPages, PagePool, PageUsage, ReservedPages};
pub use ring::{Notify, Ring};
pub use session::{Driver, Handshake, Lifecycle, SessionEnd, SessionHandler, resume, shutdown};
