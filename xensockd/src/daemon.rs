//! The daemon: opens what it needs, serves guests, and closes their devices when it stops.

use crate::arguments::Arguments;
use crate::counts::Counts;
use crate::device::Backend;
use crate::dom0::Dom0;
use crate::finder::Finder;
use crate::lock::{Lock, check_kernel_backend};
use crate::sockets::Sockets;
use crate::threads::{Placement, StopAll};
use futures_util::future::{Either, join_all, select, select_all};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use xen::{Flag, Side};
use xen_linux::runtime::{READABLE, Reactor, Runtime, Watched, timeout};
use xen_linux::{Domain, Driver};
use xensock::wire::Dialect;

/// How long closing all guests' devices may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// What the threads share.
struct Shared<'a> {
    arguments: &'a Arguments,
    counts: Counts,
    placement: Arc<Placement>,
    stop: StopAll,
}

/// Runs until a signal stops the daemon. An error is a line for the user.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let threads = arguments.threads();
    let shared = Shared {
        arguments,
        counts: Counts::default(),
        placement: Placement::new(threads),
        stop: StopAll::new(threads),
    };
    let first = Worker::open(&shared, 0)?;
    let _lock = Lock::take(&arguments.lock_file)?;
    check_kernel_backend()?;
    raise_file_limit();
    log::info!(
        "xensockd {} serves {}; {threads} threads, rings up to order {}, {} sockets per guest",
        env!("CARGO_PKG_VERSION"),
        Dialect::ALL.map(Dialect::device).join(" and "),
        arguments.max_page_order,
        arguments.max_sockets
    );
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|thread| {
                let shared = &shared;
                scope.spawn(move || Worker::open(shared, thread)?.run())
            })
            .collect();
        let ended = first.run();
        let failed = |_| Err("a thread panicked; its message is above".to_string());
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(failed));
        // The first error counts, but all threads have ended.
        others.fold(ended, |ended, other| ended.and(other))
    })
}

/// One thread, with its own event loop, device files and connection to xenstored.
struct Worker<'s> {
    shared: &'s Shared<'s>,
    _stops_all: StopsAll<'s>,
    thread: usize,
    runtime: Runtime,
    host: Dom0,
    driver: Driver,
}

/// Stops the other threads when this one ends for any reason.
struct StopsAll<'s>(&'s StopAll);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}

impl<'s> Worker<'s> {
    fn open(shared: &'s Shared<'s>, thread: usize) -> Result<Self, String> {
        let stops_all = StopsAll(&shared.stop);
        let runtime = Runtime::new().map_err(|error| format!("cannot start: {error}"))?;
        let reactor = runtime.reactor();
        let (domain, driver) = Domain::open(reactor, &shared.counts.xen)?;
        let sockets =
            Sockets::new(reactor, shared.counts.sockets.clone(), shared.arguments.reuse_port);
        let host = Dom0 { domain, sockets };
        Ok(Worker { shared, _stops_all: stops_all, thread, runtime, host, driver })
    }

    fn run(self) -> Result<(), String> {
        let Worker { shared, thread, mut runtime, host, driver, .. } = self;
        let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
        let stop = Rc::new(Flag::default());
        let backend = Rc::new(Backend {
            store: host.domain.store().clone(),
            host,
            limits: shared.arguments.limits(),
            extensions: shared.arguments.extensions(),
            guests: shared.counts.guests.clone(),
            stop: stop.clone(),
            seat: shared.placement.seat(thread),
        });
        let mut finders =
            Dialect::ALL.map(|dialect| Finder::new(backend.clone(), &spawner, dialect));
        let served = runtime.block_on(async {
            let mut driver = pin!(driver.run());
            {
                let finding = select_all(finders.iter_mut().map(|finder| Box::pin(finder.run())));
                let asked = pin!(asked_to_stop(shared, &reactor, thread));
                match select(driver.as_mut(), select(finding, asked)).await {
                    Either::Left((failure, _)) => return Err(failure),
                    Either::Right((Either::Left(((error, ..), _)), _)) => {
                        return Err(format!("cannot look for guests in xenstore: {error}"));
                    }
                    Either::Right((Either::Right((asked, _)), _)) => {
                        asked.map_err(|error| format!("cannot receive signals: {error}"))?;
                    }
                }
            }
            if thread == 0 {
                log::info!("stopping; in use: {}", shared.counts);
                shared.stop.request();
            }
            stop.raise();
            let stopped = join_all(finders.iter_mut().map(Finder::stopped));
            let stopped = pin!(timeout(&reactor, STOP_TIMEOUT, stopped));
            match select(driver, stopped).await {
                Either::Left((failure, _)) => return Err(failure),
                Either::Right((Some(_), _)) => {}
                Either::Right((None, _)) => log::warn!("some frontends did not close in time"),
            }
            Ok(())
        });
        served.map_err(|error| format!("cannot wait for events: {error}"))?
    }
}

/// Waits for the request to stop, which the first thread also gets by SIGTERM or SIGINT. The first
/// thread logs the counts at each SIGUSR1.
async fn asked_to_stop(shared: &Shared<'_>, reactor: &Reactor, thread: usize) -> io::Result<()> {
    let requested = pin!(shared.stop.requested(thread));
    if thread > 0 {
        requested.await;
        return Ok(());
    }
    let reports = async {
        let mut report = Signals::new(reactor, &[SIGUSR1])?;
        loop {
            report.next().await?;
            log::info!("{}", shared.counts);
        }
    };
    let mut end = Signals::new(reactor, &[SIGTERM, SIGINT])?;
    let end = pin!(end.next());
    let ended = select(end, requested);
    match select(pin!(reports), ended).await {
        Either::Left((result, _)) => result,
        Either::Right((Either::Left((result, _)), _)) => result,
        Either::Right((Either::Right(_), _)) => Ok(()),
    }
}

/// Unix signals, each of which makes a socket readable.
struct Signals(Watched);

impl Signals {
    fn new(reactor: &Reactor, signals: &[i32]) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        for signal in signals {
            signal_hook::low_level::pipe::register(*signal, sender.try_clone()?)?;
        }
        receiver.set_nonblocking(true)?;
        reactor.watch(Rc::new(receiver.into()), READABLE).map(Signals)
    }

    /// Waits for a signal. Several may arrive as one.
    async fn next(&mut self) -> io::Result<()> {
        let mut bytes = [0; 64];
        poll_fn(|cx| self.0.poll_io(cx, Side::Rx, |file| Ok(rustix::io::read(file, &mut bytes)?)))
            .await
            .map(drop)
    }
}

/// Raises the limit of open files to its maximum: each socket is a file.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit of open files from {:?}: {error}", limit.current);
    }
}
