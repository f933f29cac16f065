//! The guest's interface for its main function.

#[cfg(not(any(feature = "netfront", feature = "xensock")))]
compile_error!("the kernel needs a stack: the feature `xensock`, `netfront` or both");

#[cfg(feature = "idc")]
mod idc;
pub(crate) mod life;
#[cfg(feature = "netfront")]
mod network;
#[cfg(feature = "xensock")]
mod sockets;

use crate::entropy;
use crate::executor::Spawner;
use crate::machine::{self, Console, Domain, Guest};
use crate::memory::{heap_figures, image, modules, pages};
use crate::metrics::Snapshot;
use crate::stages::{self, Stage, Times};
use crate::{balloon, hypercall, time};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::Display;
use core::future::ready;
use core::pin::Pin;
use core::time::Duration;
use futures_util::future::LocalBoxFuture;
use xen::Errno;
use xen::hypercall::ShutdownReason;
use xen::xenstore::Store;

/// An image's main function, as [`entry!`](crate::entry) passes it.
pub type Main = fn(System) -> Pin<Box<dyn Future<Output = ()>>>;

/// The approximate size of a socket's bookkeeping in the heap, in bytes.
const SOCKET_HEAP: u64 = 2048;

/// The guest, for its main function. Clones are the same guest.
///
/// ```no_run
/// #![no_std]
/// #![no_main]
///
/// use kernel::System;
///
/// kernel::entry!(main);
///
/// async fn main(system: System) {
///     let line = system.command_line().escape_ascii();
///     log::info!("command line: {line}");
///     system.spawn(async { log::info!("a task beside the main function") });
///     embassy_time::Timer::after_secs(1).await;
/// }
/// ```
#[derive(Clone)]
pub struct System(Rc<Inner>);

type TakeSeed = for<'s> fn(&'s Store) -> LocalBoxFuture<'s, ()>;

struct Inner {
    guest: &'static Guest,
    store: Store,
    command_line: &'static [u8],
    tasks: Spawner,
    background: Spawner,
    devices: RefCell<Vec<Rc<dyn Device>>>,
    /// Takes the toolstack's seed, if the image makes random numbers.
    seed: Cell<Option<TakeSeed>>,
    end: Cell<Option<ShutdownReason>>,
}

/// A device of the guest, with its stack of sockets.
trait Device {
    /// Adds the device's numbers.
    fn count(&self, snapshot: &mut Snapshot);

    /// Frees memory that is kept for later use.
    fn trim(&self) {}

    /// Gives back what a suspended domain cannot keep.
    fn suspend(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    /// Reconnects in a restored domain.
    fn resume(&self) -> LocalBoxFuture<'_, ()>;

    /// Goes on after a suspension, in this domain or in a restored one. xenstore can be used.
    fn go_on(&self) -> LocalBoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    /// Whether all data that the app wrote has been sent.
    fn is_drained(&self) -> bool;

    /// Revokes all that other domains share.
    fn shutdown(&self) -> LocalBoxFuture<'_, ()>;
}

/// The result of a main function: `()`, or an error that is logged before the domain ends.
pub trait Outcome {
    /// Logs an error.
    fn report(self);
}

impl Outcome for () {
    fn report(self) {}
}

impl<E: Display> Outcome for Result<(), E> {
    fn report(self) {
        if let Err(error) = self {
            log::error!("{error}");
        }
    }
}

/// Boxes a main function's future; part of [`entry!`](crate::entry).
pub fn main_task<T: Outcome>(
    main: impl Future<Output = T> + 'static,
) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async { main.await.report() })
}

/// Names the image's main function: `async fn(System)`, which returns `()` or `Result<(), E>`
/// with an error that implements `Display`. When it returns, the domain shuts down in an orderly
/// way.
///
/// ```no_run
/// #![no_std]
/// #![no_main]
///
/// kernel::entry!(main);
///
/// async fn main(system: kernel::System) -> Result<(), xen::Errno> {
///     let name = system.store().read("name").await?;
///     log::info!("this domain is {}", name.escape_ascii());
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// The function that the kernel runs once it has booted.
        #[allow(unsafe_code, reason = "the kernel finds the function by its symbol")]
        #[unsafe(no_mangle)]
        static XENSOCK_KERNEL_MAIN: $crate::system::Main =
            |system| $crate::system::main_task($main(system));
    };
}

impl System {
    /// Waits for a device: calls `find` at first and after each change of the devices' nodes,
    /// until it returns one. `hint` is logged once if there is none at first.
    async fn wait_for<T>(
        &self,
        hint: &str,
        find: impl AsyncFn(&Store) -> Result<Option<T>, Errno>,
    ) -> Result<T, Errno> {
        let mut changes = self.0.store.watch("device").await?;
        let mut has_hinted = false;
        loop {
            if let Some(found) = find(&self.0.store).await? {
                return Ok(found);
            }
            if !has_hinted {
                log::warn!("{hint}");
                has_hinted = true;
            }
            changes.next().await;
        }
    }

    /// The first folder in `device/KIND`.
    async fn first_device(store: &Store, kind: &str) -> Result<Option<String>, Errno> {
        let devices = match store.directory(&format!("device/{kind}")).await {
            // The toolstack may have created it without giving the guest access yet.
            Err(Errno::ENOENT | Errno::EACCES) => Vec::new(),
            devices => devices?,
        };
        Ok(devices.into_iter().min().map(|device| format!("device/{kind}/{device}")))
    }

    /// The command line, as the loader passed it.
    pub fn command_line(&self) -> &'static [u8] {
        self.0.command_line
    }

    /// The wall clock: time since the Unix epoch, as the host has it, or as
    /// [`set_wall_clock`](System::set_wall_clock) has corrected it. [`Errno::EAGAIN`] if Xen keeps
    /// changing its numbers while they are read.
    pub fn wall_clock(&self) -> Result<Duration, Errno> {
        self.0.guest.clock.wall_clock_now()
    }

    /// Corrects the wall clock, also for [`kernel::wall_clock`](crate::wall_clock) and with it the
    /// check of certificates: it is `now`. The difference to the host's clock stays the same from
    /// then on, also in a restored domain.
    pub fn set_wall_clock(&self, now: Duration) -> Result<(), Errno> {
        self.0.guest.clock.set_wall_clock_now(now)
    }

    /// The console, for reading and writing, if the toolstack made one. Log messages go there, too.
    pub fn console(&self) -> Option<&'static Console> {
        self.0.guest.console.as_ref()
    }

    /// The modules that the toolstack has put beside the kernel (xl's `ramdisk=`), in its order.
    pub fn modules(&self) -> impl Iterator<Item = modules::Module> {
        modules::modules()
    }

    /// The domain's memory, grants and ports, and its access to other domains' (a
    /// [`Machine`](xen::Machine) and a [`Neighbour`](xen::Neighbour)).
    pub fn domain(&self) -> Domain {
        Domain::new(self.0.guest)
    }

    /// Numbers that nobody can guess: see [`entropy`]. [`Errno::ENODEV`] if there
    /// is no source of them. They panic if a restored domain has no source any more.
    ///
    /// Where the processor is no source, crates that use `getrandom` have numbers after the first
    /// call.
    pub async fn random(&self) -> Result<impl FnMut() -> [u8; 16] + use<>, Errno> {
        if self.0.seed.replace(Some(entropy::take_seed)).is_none() {
            entropy::take_seed(self.store()).await;
        }
        let number = || {
            let mut number = [0; 16];
            entropy::fill(&mut number).map(|()| number)
        };
        number()?;
        Ok(move || number().expect("the domain has a source of random numbers"))
    }

    /// Xenstore.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Starts a task beside the main function. It is dropped when the domain ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.tasks.spawn(task);
    }

    /// Marks the end of the boot, for a server: it listens now. The first call logs how long the
    /// boot took.
    pub fn listening(&self) {
        if stages::mark(Stage::Listening)
            && let Ok(time) = self.0.guest.clock.time_info()
        {
            log::debug!("boot: {}", Times::new(image::entry_tsc(), time.frequency()));
        }
    }

    /// What the kernel knows about itself, now.
    pub fn snapshot(&self) -> Snapshot {
        let Inner { guest, devices, .. } = &*self.0;
        let (heap, pages, grants) = (heap_figures(), pages::figures(), guest.grants.usage());
        let mut snapshot = Snapshot {
            uptime_seconds: time::uptime().as_secs(),
            heap_used_bytes: heap.used as u64,
            heap_total_bytes: heap.total as u64,
            heap_high_water_bytes: heap.high_water as u64,
            heap_allocations_total: heap.allocations,
            free_pages: pages.free as u64,
            free_pages_least: pages.least_free as u64,
            ballooned_pages: balloon::pages(),
            events_total: guest.events.received(),
            notifications_total: machine::notifications_sent(),
            grants_in_use: grants.in_use.into(),
            grants_capacity: grants.capacity.into(),
            foreign_pages: guest.foreign_pages(),
            ports_open: guest.ports_open.get(),
            timers: time::waiting() as u64,
            unix_time_seconds: self.wall_clock().unwrap_or_default().as_secs(),
            hypercalls_total: hypercall::calls(),
            wakeups_total: guest.wakeups.get(),
            console_dropped_bytes_total: guest.console.as_ref().map_or(0, |c| c.dropped()),
            ..Snapshot::default()
        };
        devices.borrow().iter().for_each(|device| device.count(&mut snapshot));
        snapshot
    }
}
