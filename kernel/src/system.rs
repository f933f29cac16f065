//! What an image's main function gets, and the life around it: start, requests of the toolstack, an
//! orderly end.

use crate::boot::stages::{self, Stage};
use crate::executor::{self, Spawner, Tasks};
use crate::machine::{self, Console, Domain, Guest, Resumed};
use crate::memory::{self, heap_figures, pages};
use crate::metrics::Snapshot;
use crate::{balloon, boot, crash, logger, time};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt::{self, Display};
use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;
use embassy_time::{Duration, Timer, with_timeout};
use embedded_io_async::{Read, Write};
use netfront::Capture;
use netfront::smoltcp::phy::Device;
use netfront::stack::{self, Stack};
use netfront::vif::{self, NetFront};
use xen::clock::read_tsc;
use xen::hypercall::{Operations, ShutdownReason};
use xen::lifecycle::{Request, Requests};
use xen::xenstore::{self, Driver, Store};
use xen::{Errno, PAGE_SIZE};
use xensock::front::{self, Frontend};
use xensock::wire::Dialect;

/// An image's main function, as [`entry!`](crate::entry) passes it.
pub type Main = fn(System) -> Pin<Box<dyn Future<Output = ()>>>;

/// How long an orderly end waits for data on its way, for the backend, and for the console's reader.
const DRAIN: Duration = Duration::from_secs(10);
const CLOSE: Duration = Duration::from_secs(5);
const FLUSH: Duration = Duration::from_secs(5);

/// How long a suspension waits for xenstore's answers.
const QUIET: Duration = Duration::from_secs(5);

/// The node by which dom0 changes what is logged, in the domain's folder.
const LOG_LEVEL: &str = "control/log-level";

/// How long to wait before xenstore is asked again for what it refused.
const AGAIN: Duration = Duration::from_secs(5);

/// A socket's bookkeeping in the heap, roughly, in bytes.
const SOCKET_HEAP: u64 = 2048;

/// The guest, for its main function. Clones are the same guest.
#[derive(Clone)]
pub struct System(Rc<Inner>);

struct Inner {
    guest: &'static Guest,
    store: Store,
    command_line: &'static [u8],
    tasks: Spawner,
    background: Spawner,
    frontends: RefCell<Vec<(Frontend<Domain>, front::Config)>>,
    networks: RefCell<Vec<Network>>,
    end: Cell<Option<ShutdownReason>>,
}

/// A network interface and its stack.
struct Network {
    interface: vif::Handle<Domain>,
    stack: Stack,
    /// What a connection takes, in bytes.
    connection_memory: usize,
}

/// What a main function may return: nothing, or an error that is logged before the domain ends.
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

/// Makes a [`Main`]'s result of a main function's; part of [`entry!`](crate::entry).
pub fn main_task<T: Outcome>(
    main: impl Future<Output = T> + 'static,
) -> Pin<Box<dyn Future<Output = ()>>> {
    Box::pin(async { main.await.report() })
}

/// Names the image's main function: `async fn(System)`, whose result is `()` or `Result<(), E>` of an
/// error that can be shown. When it returns, the domain ends in an orderly way.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        /// What the kernel runs once it has booted.
        #[allow(unsafe_code, reason = "the kernel finds the function by its symbol")]
        #[unsafe(no_mangle)]
        static XENSOCK_KERNEL_MAIN: $crate::system::Main =
            |system| $crate::system::main_task($main(system));
    };
}

impl System {
    /// The sockets that the toolstack gave this domain: the first device for which there is a
    /// protocol, which takes the place of the configuration's. If there is none, one is waited for.
    pub async fn sockets(&self, config: front::Config) -> Result<Frontend<Domain>, Errno> {
        let (dialect, path) = self.device().await?;
        let config = front::Config { dialect, ..config };
        let machine = Domain::new(self.0.guest);
        let (frontend, driver) = Frontend::new(machine, self.0.store.clone(), &path, config);
        self.0.frontends.borrow_mut().push((frontend.clone(), config));
        let connecting = frontend.clone();
        self.0.background.spawn(async move {
            if connecting.connected().await.is_ok() {
                stages::mark(Stage::Device);
            }
        });
        self.0.background.spawn(async move {
            let error = driver.run().await;
            log::debug!("{path}: the frontend has ended: {error}");
        });
        Ok(frontend)
    }

    /// A stack over the first network interface that the toolstack gave this domain, which nobody else may
    /// have asked for. If there is none, one is waited for. The stack's seed is added to. All frames go to `capture`
    /// as well, if there is one.
    pub async fn network(
        &self,
        interface: vif::Config,
        mut stack: stack::Config,
        capture: Option<Capture>,
    ) -> Result<Stack, Errno> {
        let path = self.interface().await?;
        let machine = Domain::new(self.0.guest);
        let (device, driver) =
            NetFront::new(machine, self.0.store.clone(), &path, interface).await?;
        // No other boot is at this moment of this machine's counter, nor has another domain this address.
        let time = self.wall_clock().unwrap_or_default().as_nanos() as u64;
        stack.seed ^= time ^ read_tsc().rotate_left(32);
        let connection_memory = stack.connection_memory();
        // Whoever only knocks gets a quarter of the memory at most.
        let memory = heap_figures().total + pages::figures().free * PAGE_SIZE;
        stack.backlog = stack.backlog.min(memory / 4 / connection_memory).max(1);
        let handle = device.handle();
        let (stack, running) = match capture {
            None => Self::stack_over(device, &handle, stack),
            Some(capture) => Self::stack_over(capture.wrap(device), &handle, stack),
        };
        let network = Network { interface: handle, stack: stack.clone(), connection_memory };
        self.0.networks.borrow_mut().push(network);
        let configured = stack.clone();
        self.0.background.spawn(async move {
            configured.configured().await;
            stages::mark(Stage::Device);
        });
        self.0.background.spawn(running);
        self.0.background.spawn(async move {
            let error = driver.run().await;
            log::debug!("{path}: the interface has ended: {error}");
        });
        Ok(stack)
    }

    fn stack_over(
        device: impl Device + 'static,
        handle: &vif::Handle<Domain>,
        config: stack::Config,
    ) -> (Stack, Pin<Box<dyn Future<Output = ()>>>) {
        let (stack, runner) = Stack::new(device, handle.clone(), config);
        (stack, Box::pin(async move { match runner.run().await {} }))
    }

    async fn interface(&self) -> Result<String, Errno> {
        let mut changes = self.0.store.watch("device").await?;
        let mut said = false;
        loop {
            let devices = match self.0.store.directory("device/vif").await {
                // It may be there, and the guest not yet be allowed to look.
                Err(Errno::ENOENT | Errno::EACCES) => Vec::new(),
                devices => devices?,
            };
            let folder = devices.into_iter().min().map(|device| format!("device/vif/{device}"));
            match folder {
                Some(folder) if self.0.store.read(&format!("{folder}/mac")).await.is_ok() => {
                    return Ok(folder);
                }
                _ => {}
            }
            if !said {
                log::warn!(
                    "no network interface, waiting for one: say vif=[\"\"] in the domain's \
                     configuration, or run xl network-attach in dom0"
                );
                said = true;
            }
            changes.next().await;
        }
    }

    async fn device(&self) -> Result<(Dialect, String), Errno> {
        let mut changes = self.0.store.watch("device").await?;
        let mut said = false;
        loop {
            for dialect in Dialect::ALL {
                let folder = format!("device/{}", dialect.device());
                let devices = match self.0.store.directory(&folder).await {
                    // It may be there, and the guest not yet be allowed to look.
                    Err(Errno::ENOENT | Errno::EACCES) => Vec::new(),
                    devices => devices?,
                };
                if let Some(device) = devices.into_iter().min() {
                    return Ok((dialect, format!("{folder}/{device}")));
                }
            }
            if !said {
                log::warn!(
                    "no device for sockets, waiting for one: say pvcalls=[\"backend=0\"] in the \
                     domain's configuration, or run attach-sockets in dom0"
                );
                said = true;
            }
            changes.next().await;
        }
    }

    /// The command line, as the loader handed it over.
    pub fn command_line(&self) -> &'static [u8] {
        self.0.command_line
    }

    /// The wall clock: time since the Unix epoch, as the host has it. [`Errno::EAGAIN`] if Xen's numbers do
    /// not hold still.
    pub fn wall_clock(&self) -> Result<core::time::Duration, Errno> {
        self.0.guest.clock.wall_clock_now()
    }

    /// The console, to write to and to read from, unless the toolstack gave none. Messages logged go
    /// there too.
    pub fn console(&self) -> Option<&'static Console> {
        self.0.guest.console.as_ref()
    }

    /// What the toolstack has put beside the kernel (xl's `ramdisk=`), in its order.
    pub fn modules(&self) -> impl Iterator<Item = boot::Module> {
        boot::modules()
    }

    /// Xenstore.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Starts a task beside the main function. It is dropped when the domain ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.tasks.spawn(task);
    }

    /// What the kernel knows about itself, now.
    pub fn snapshot(&self) -> Snapshot {
        let (heap, pages) = (heap_figures(), pages::figures());
        let (events_received, notifications_sent) = machine::event_counts();
        let grants = self.0.guest.grants.usage();
        let mut snapshot = Snapshot {
            uptime: self.0.guest.uptime(),
            heap_used: heap.used as u64,
            heap_total: heap.total as u64,
            heap_high_water: heap.high_water as u64,
            heap_allocations: heap.allocations,
            free_pages: pages.free as u64,
            least_free_pages: pages.least_free as u64,
            ballooned_pages: memory::balloon::pages(),
            events_received,
            notifications_sent,
            grants_in_use: grants.in_use.into(),
            grants_capacity: grants.capacity.into(),
            ports_open: self.0.guest.ports_open(),
            timers: time::waiting() as u64,
            unix_time: self.wall_clock().unwrap_or_default(),
            hypercalls: xen::hypercall::calls(),
            wakeups: self.0.guest.wakeups(),
            console_dropped: self.0.guest.console.as_ref().map_or(0, |console| console.dropped()),
            ..Snapshot::default()
        };
        for (frontend, config) in self.0.frontends.borrow().iter() {
            let counted = frontend.statistics();
            snapshot.socket_bytes += SOCKET_HEAP + (config.ring_pages() * PAGE_SIZE) as u64;
            snapshot.sockets_open += counted.streams_open;
            snapshot.sockets_total += counted.streams_opened;
            snapshot.bytes_in += counted.bytes_in;
            snapshot.bytes_out += counted.bytes_out;
            snapshot.quarantined_pages += counted.quarantined_pages;
            snapshot.parked_rings += counted.parked_rings;
        }
        for network in self.0.networks.borrow().iter() {
            let (counted, frames) = (network.stack.statistics(), network.interface.statistics());
            // Where there are two stacks, each server counts on a half.
            snapshot.socket_bytes += SOCKET_HEAP + network.connection_memory as u64;
            snapshot.sockets_open += counted.streams_open;
            snapshot.sockets_total += counted.streams_opened;
            snapshot.bytes_in += counted.bytes_in;
            snapshot.bytes_out += counted.bytes_out;
            snapshot.quarantined_pages += frames.quarantined_pages;
            snapshot.frames_in += frames.received;
            snapshot.frames_out += frames.transmitted;
            snapshot.frames_dropped += frames.receive_dropped + frames.transmit_dropped;
        }
        snapshot
    }

    fn end(&self, reason: ShutdownReason) {
        if self.0.end.get().is_none() {
            self.0.end.set(Some(reason));
        }
    }

    async fn ended(&self) -> ShutdownReason {
        // Whoever sets it is a task, and the executor polls this after tasks.
        poll_fn(|_| self.0.end.get().map_or(Poll::Pending, Poll::Ready)).await
    }

    async fn obey_toolstack(self) {
        let supported = [Request::Poweroff, Request::Reboot, Request::Suspend];
        let obey = async || {
            let mut requests = Requests::watch(&self.0.store, &supported).await?;
            loop {
                match requests.next().await? {
                    Request::Suspend => {
                        self.suspend().await;
                        requests.announce().await;
                    }
                    Request::Reboot => return Ok(ShutdownReason::Reboot),
                    Request::Poweroff => return Ok(ShutdownReason::Poweroff),
                }
            }
        };
        loop {
            match obey().await {
                Ok(reason) => return self.end(reason),
                Err(Errno::ECONNRESET) => continue,
                Err(error) => log::warn!("requests of the toolstack are not heard: {error}"),
            }
            Timer::after(AGAIN).await;
        }
    }

    /// Lets the domain be saved. In the restored domain, sockets have ended, listeners listen again, and
    /// all else goes on.
    async fn suspend(&self) {
        let Inner { guest, store, .. } = &*self.0;
        log::info!("suspending");
        if with_timeout(QUIET, store.hold()).await.is_err() {
            log::warn!("xenstore owes answers; they will be missed");
        }
        if let Some(console) = &guest.console {
            // What is left of it goes along in the backlog, but for what is in the ring.
            let _ = with_timeout(FLUSH, console.flush()).await;
        }
        match guest.suspend() {
            Ok(Resumed::Restored) => {
                // At once: the former driver must not look into the new rings.
                let (reader, writer) = machine::xenstore(guest);
                self.0.background.spawn(run_store(store.reconnect(reader, writer)));
                let frontends = self.0.frontends.borrow().clone();
                for (frontend, _) in frontends {
                    frontend.resume().await;
                }
                let interfaces: Vec<_> =
                    self.0.networks.borrow().iter().map(|n| n.interface.clone()).collect();
                for interface in interfaces {
                    interface.resume().await;
                }
                store.release();
                log::info!("restored");
            }
            Ok(Resumed::Unchanged) => {
                store.release();
                log::info!("resumed: this domain goes on");
            }
            Err(error) => {
                store.release();
                log::error!("Xen does not suspend the domain: {error}");
            }
        }
    }

    /// Changes what is logged whenever dom0 says so.
    async fn obey_log_level(self) {
        let store = &self.0.store;
        let mut changes = match store.watch(LOG_LEVEL).await {
            Ok(changes) => changes,
            Err(error) => return log::warn!("{LOG_LEVEL} is not heeded: {error}"),
        };
        loop {
            changes.next().await;
            match store.read(LOG_LEVEL).await {
                Ok(level) => logger::change(&level),
                // Nobody has said anything, or has taken it back.
                Err(Errno::ENOENT | Errno::EACCES) => {}
                Err(error) => log::warn!("{LOG_LEVEL} cannot be read: {error}"),
            }
        }
    }

    async fn keep_to_target(self) {
        let spare = || self.0.frontends.borrow().iter().for_each(|(frontend, _)| frontend.trim());
        balloon::run(self.0.store.clone(), self.0.guest.xen, spare).await;
    }

    /// Waits until what the app wrote has left, and gives back all that other domains share.
    async fn close(&self) {
        let frontends = self.0.frontends.take();
        for (frontend, _) in &frontends {
            let drained = async {
                while frontend.statistics().streams_open + frontend.statistics().listeners_open > 0
                {
                    Timer::after_millis(10).await;
                }
            };
            if with_timeout(DRAIN, drained).await.is_err() {
                log::warn!("data is left that the backend does not take");
            }
            if with_timeout(CLOSE, frontend.shutdown()).await.is_err() {
                log::warn!("the backend does not let go of the device");
            }
        }
        for Network { interface, stack, .. } in self.0.networks.take() {
            let drained = async {
                while !stack.is_quiet() {
                    Timer::after_millis(10).await;
                }
            };
            if with_timeout(DRAIN, drained).await.is_err() {
                log::warn!("data is left that peers do not take");
            }
            if with_timeout(CLOSE, interface.shutdown()).await.is_err() {
                log::warn!("the backend does not let go of the network interface");
            }
        }
        if let Some(console) = &self.0.guest.console {
            let _ = with_timeout(FLUSH, console.flush()).await;
        }
    }
}

impl fmt::Debug for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("System").field("snapshot", &self.snapshot()).finish()
    }
}

/// Moves xenstore's messages until the domain is saved.
async fn run_store<R: Read, W: Write>(driver: Driver<R, W>) {
    match driver.run().await {
        // The restored domain has another one.
        Errno::ECONNRESET => {}
        error => log::error!("the way to xenstore is broken: {error}"),
    }
}

/// Runs the image's main function, and ends the domain when it returns or the toolstack asks.
pub(crate) fn run(guest: &'static Guest, command_line: &'static [u8], main: Main) -> ! {
    logger::configure(command_line);
    logger::flush_early(guest);
    log::debug!("build id {}", crash::build_id());
    let version = guest.xen.version().map_or((0, 0), |version| (version.major, version.minor));
    let pages = pages::figures().all;
    log::info!("xensock-kernel on Xen {}.{}, {} KiB free", version.0, version.1, pages * 4);
    log::debug!("memory, in pages: {:?}", memory::balloon::found());
    log::debug!("command line: {}", command_line.escape_ascii());
    log::debug!("event channels: {} ABI", guest.events.abi());

    let (reader, writer) = machine::xenstore(guest);
    let (store, driver) = xenstore::connect(reader, writer);
    let (mut background, mut tasks) = (Tasks::new(), Tasks::new());
    let system = System(Rc::new(Inner {
        guest,
        store,
        command_line,
        tasks: tasks.spawner(),
        background: background.spawner(),
        frontends: RefCell::default(),
        networks: RefCell::default(),
        end: Cell::new(None),
    }));
    if let Some(console) = &guest.console {
        background.spawner().spawn(async { match console.run().await {} });
    }
    background.spawner().spawn(run_store(driver));
    background.spawner().spawn(system.clone().obey_toolstack());
    background.spawner().spawn(system.clone().obey_log_level());
    background.spawner().spawn(system.clone().keep_to_target());
    let running = system.clone();
    tasks.spawner().spawn(async move {
        main(running.clone()).await;
        running.end(ShutdownReason::Poweroff);
    });

    let reason = executor::run(&guest, &mut [&mut background, &mut tasks], system.ended());
    log::info!("shutting down: {reason:?}");
    drop(tasks);
    executor::run(&guest, &mut [&mut background], system.close());
    crash::shut_down(reason)
}
