//! The daemon: opens what it needs, serves guests, and closes their devices when it stops.

mod requests;
mod signals;

use crate::addresses::Addresses;
use crate::arguments::Arguments;
use crate::control::Server;
use crate::counts::Counts;
use crate::device::Backend;
use crate::dom0::Dom0;
use crate::finder::Finder;
use crate::guests::{Guests, Shared};
use crate::handover::{self, Heir, Legacy};
use crate::lock::{Lock, check_kernel_backend};
use crate::metrics::{self, OpenFiles};
use crate::rules::Policy;
use crate::sockets::Sockets;
use crate::threads::{Mailboxes, Message, Placement, StopAll};
use crate::{room, sandbox, user};
use futures_channel::mpsc::UnboundedReceiver;
use futures_util::StreamExt;
use futures_util::future::{
    Either, LocalBoxFuture, join_all, select, select_all, try_join, try_join3,
};
use futures_util::stream::FuturesUnordered;
use requests::{answer, numbers, receive_message, reload_rules};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signals::{Signals, receive};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use xen::xenbus::read_number;
use xen::{DomId, Flag};
use xen_linux::runtime::{Reactor, Runtime, timeout};
use xen_linux::{Domain, Driver};
use xensock::wire::Dialect;

/// How long xenstored may take for its first answer.
const XENSTORED_TIMEOUT: Duration = Duration::from_secs(10);

/// How long closing all guests' devices may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// How long connections may go on when the daemon stops for the next one. Meanwhile no new ones are
/// accepted, so a short request does not fail.
const LEAVE_TIME: Duration = Duration::from_secs(1);

/// How long an earlier daemon's sockets are kept for their guests.
const KEEP_TIME: Duration = Duration::from_secs(30);

/// The exit status by which systemd starts the daemon again (`RestartForceExitStatus=`).
const RESTART: u8 = 75;

/// The reason why the daemon does not start without xenstored.
const NO_XENSTORED: &str = "xenstored does not answer: start it, by `systemctl start xenstored` or \
                            `/etc/init.d/xen start`, and then xensockd";

/// The reason why it does not start in a domain whose number is not known.
const NO_NUMBER: &str = "xenstore has no number of this domain (`domid`; for domain 0, start Xen's \
                         xen-init-dom0): ";

/// What the threads have in common.
struct Common<'a> {
    arguments: &'a Arguments,
    counts: Counts,
    /// The rules that hold. Each thread has them, too.
    policy: Mutex<Arc<Policy>>,
    mailboxes: Mailboxes,
    reload: UnixStream,
    shared: Shared,
    placement: Arc<Placement>,
    stop: StopAll,
    /// systemd, if it has started the daemon.
    systemd: Option<Heir>,
    end: Mutex<End>,
    files: OpenFiles,
    threads: usize,
    /// The listening sockets at the end.
    legacies: Mutex<Vec<Legacy>>,
}

/// How the daemon ends.
#[derive(Default)]
enum End {
    /// systemd starts the next one or does not.
    #[default]
    Stop,
    /// systemd starts it again.
    Restart,
    /// Another one follows, which has asked for it on this connection.
    HandOver(Heir),
}

/// Locked only for moments, by code that does not panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Common<'_> {
    fn has_heir(&self) -> bool {
        self.systemd.is_some() || matches!(*lock(&self.end), End::HandOver(_))
    }

    fn policy(&self) -> Arc<Policy> {
        lock(&self.policy).clone()
    }
}

/// Runs until a signal or a request stops the daemon. An error is a line for the user.
pub fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    // From now on, it does not end the daemon.
    let reload = receive(&[SIGHUP]).map_err(|error| format!("cannot receive signals: {error}"))?;
    let systemd = Heir::systemd();
    let mut legacies = systemd.as_ref().map(Heir::take).unwrap_or_default();
    arguments.become_user()?;
    let threads = arguments.threads();
    let policy = Policy::read(arguments.config.as_deref())?;
    let rules = policy.to_string();
    let (mailboxes, mut inboxes) = Mailboxes::new(threads);
    let others = inboxes.split_off(1);
    let common = Common {
        arguments,
        counts: Counts::default(),
        policy: Mutex::new(Arc::new(policy)),
        mailboxes,
        reload,
        shared: Shared::default(),
        placement: Placement::new(threads),
        stop: StopAll::new(threads),
        systemd,
        end: Mutex::default(),
        files: OpenFiles::open(),
        threads,
        legacies: Mutex::default(),
    };
    common.shared.listeners.reserve(common.policy().metrics());
    room::reserve(&common.counts, threads);
    let first = Worker::open(&common, 0)?;
    let first_inbox = inboxes.remove(0);
    check_kernel_backend()?;
    // The running daemon stops only now, when nearly nothing can fail.
    let _lock = match arguments.replace {
        false => Lock::take(&arguments.lock_file)?,
        true => {
            legacies.extend(handover::replace(&arguments.control)?);
            Lock::wait(&arguments.lock_file)?
        }
    };
    if !legacies.is_empty() {
        log::info!("keeps {} listening sockets of the daemon before for guests", legacies.len());
    }
    common.shared.listeners.keep(legacies);
    let control = Server::open(first.runtime.reactor(), &arguments.control)?;
    sandbox::confine(&arguments.files())?;
    log::info!(
        "xensockd {} serves {} as the user {}; {threads} threads; {rules}",
        env!("CARGO_PKG_VERSION"),
        Dialect::ALL.map(Dialect::device).join(" and "),
        user::current(),
    );
    let ended = std::thread::scope(|scope| {
        let others: Vec<_> = (1..)
            .zip(others)
            .map(|(thread, inbox)| {
                let common = &common;
                scope.spawn(move || Worker::open(common, thread)?.run(inbox, None))
            })
            .collect();
        let ended = first.run(first_inbox, Some(control));
        let failed = |_| Err("a thread panicked; its message is above".to_string());
        let others = others.into_iter().map(|other| other.join().unwrap_or_else(failed));
        // The first error counts, but all threads have ended.
        others.fold(ended, |ended, other| ended.and(other))
    });
    let end = std::mem::take(&mut *lock(&common.end));
    let heir = match &end {
        End::HandOver(heir) => Some(heir),
        End::Stop | End::Restart => common.systemd.as_ref(),
    };
    if let Some(heir) = heir {
        let mut legacies = lock(&common.legacies);
        // And those that no guest has bound again so soon.
        legacies.extend(common.shared.listeners.take_kept());
        heir.leave(&legacies);
    }
    ended?;
    Ok(if matches!(end, End::Restart) { RESTART.into() } else { ExitCode::SUCCESS })
}

/// One thread, with its own event loop, device files and connection to xenstored.
struct Worker<'s> {
    common: &'s Common<'s>,
    _stops_all: StopsAll<'s>,
    thread: usize,
    runtime: Runtime,
    host: Dom0,
    driver: Driver,
    /// The first thread keeps the list of this domain's addresses.
    addresses: Option<Addresses>,
}

/// Stops the other threads when this one ends for any reason.
struct StopsAll<'s>(&'s StopAll);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.request();
    }
}

impl<'s> Worker<'s> {
    fn open(common: &'s Common<'s>, thread: usize) -> Result<Self, String> {
        let stops_all = StopsAll(&common.stop);
        let runtime = Runtime::new().map_err(|error| format!("cannot start: {error}"))?;
        let reactor = runtime.reactor();
        let (domain, driver) = Domain::open(reactor, &common.counts.xen)?;
        let guests = Guests::new(common.policy(), common.shared.clone());
        let sockets = Sockets::new(reactor, common.counts.sockets.clone(), guests);
        let host = Dom0 { domain, sockets };
        let addresses = (thread == 0).then(|| Addresses::new(reactor, common.shared.own.clone()));
        let addresses = addresses
            .transpose()
            .map_err(|error| format!("cannot read this domain's addresses: {error}"))?;
        Ok(Worker { common, _stops_all: stops_all, thread, runtime, host, driver, addresses })
    }

    fn run(
        self,
        mut inbox: UnboundedReceiver<Message>,
        control: Option<Server>,
    ) -> Result<(), String> {
        let Worker { common, thread, mut runtime, host, driver, addresses, .. } = self;
        let first = addresses.zip(control);
        let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
        let stop = Rc::new(Flag::default());
        let (store, guests) = (host.domain.store().clone(), host.sockets.guests().clone());
        let reloaded = Flag::default();
        let leave = || lock(&common.legacies).extend(guests.legacies());
        let served = runtime.block_on(async {
            let mut driver = pin!(driver.run());
            let answer = read_number(&store, "domid");
            let answer = pin!(timeout(&reactor, XENSTORED_TIMEOUT, answer));
            let own = match select(driver.as_mut(), answer).await {
                Either::Left((failure, _)) => return Err(failure),
                Either::Right((Some(Ok(own)), _)) => DomId(own),
                Either::Right((Some(Err(error)), _)) => return Err(format!("{NO_NUMBER}{error}")),
                Either::Right((None, _)) => return Err(NO_XENSTORED.to_string()),
            };
            if thread == 0 {
                log::info!("the devices are those below /local/domain/{own}/backend");
                if let Some(systemd) = &common.systemd {
                    systemd.ready();
                }
            }
            match select(driver.as_mut(), pin!(guests.check_kept(&store))).await {
                Either::Left((failure, _)) => return Err(failure),
                Either::Right(((), _)) => {}
            }
            let backend = Rc::new(Backend {
                store: store.clone(),
                host,
                own,
                guests: guests.clone(),
                extensions: common.arguments.extensions(),
                connected: common.counts.guests.clone(),
                stop: stop.clone(),
                seat: common.placement.seat(thread),
            });
            let mut finders =
                Dialect::ALL.map(|dialect| Finder::new(backend.clone(), &spawner, dialect));
            {
                let finding = select_all(finders.iter_mut().map(|finder| Box::pin(finder.run())));
                // The loop polls this whole future after each event, and these only if they were
                // woken.
                let mut work = FuturesUnordered::<LocalBoxFuture<'_, Result<(), String>>>::new();
                work.push(Box::pin(async {
                    let (error, ..) = finding.await;
                    Err(format!("cannot look for guests in xenstore: {error}"))
                }));
                work.push(Box::pin(async {
                    while let Some(message) = inbox.next().await {
                        let is_other_rules = matches!(message, Message::Rules(_));
                        receive_message(message, &guests, &store).await;
                        if is_other_rules {
                            reloaded.raise();
                        }
                    }
                    pending().await
                }));
                work.push(Box::pin(async {
                    if thread > 0 {
                        return pending().await;
                    }
                    let (at, text) = (|| common.policy().metrics(), async || numbers(common).await);
                    match metrics::serve(&reactor, at, &reloaded, text).await {}
                }));
                work.push(Box::pin(async {
                    if thread == 0 {
                        reactor.sleep(KEEP_TIME).await;
                        for (guest, at) in common.shared.listeners.close_kept() {
                            log::info!("{guest} does not listen at {at} again, which is closed");
                        }
                    }
                    pending().await
                }));
                work.push(Box::pin(async {
                    let asked = asked_to_stop(common, &reactor, thread, first).await;
                    asked.map_err(|error| format!("cannot receive signals: {error}"))
                }));
                match select(driver.as_mut(), work.next()).await {
                    Either::Left((failure, _)) => return Err(failure),
                    Either::Right((ended, _)) => ended.unwrap_or(Ok(()))?,
                }
            }
            if thread == 0 {
                log::info!("stopping; in use: {}", common.counts);
                if common.has_heir() {
                    match select(driver.as_mut(), pin!(finish_connections(common, &reactor))).await
                    {
                        Either::Left((failure, _)) => return Err(failure),
                        Either::Right(((), _)) => {}
                    }
                }
                common.stop.request();
            }
            leave();
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
        let served = served.map_err(|error| format!("cannot wait for events: {error}"));
        let served = served.and_then(|served| served);
        if served.is_err() {
            // The guests' sockets are still open.
            leave();
        }
        served
    }
}

/// Accepts no more connections, and gives those that are open a moment to end.
async fn finish_connections(common: &Common<'_>, reactor: &Reactor) {
    common.shared.leaving.store(true, Ordering::Relaxed);
    let none_is_open = async {
        while common.counts.sockets.get() > common.shared.listeners.count() as u64 {
            reactor.sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(reactor, LEAVE_TIME, none_is_open).await;
}

/// Waits for the request to stop, which the first thread also gets by SIGTERM or SIGINT. The first
/// thread also does what the other signals ask for, and watches this domain's addresses.
async fn asked_to_stop(
    common: &Common<'_>,
    reactor: &Reactor,
    thread: usize,
    first: Option<(Addresses, Server)>,
) -> io::Result<()> {
    let requested = pin!(common.stop.requested(thread));
    let Some((addresses, control)) = first else {
        requested.await;
        return Ok(());
    };
    let signals = try_join(report(common, reactor), reload(common, reactor));
    let asked = Flag::default();
    let answer = async |request, client: &OwnedFd| answer(common, request, client, &asked).await;
    let controlled = control.run(answer);
    let served = pin!(try_join3(signals, controlled, addresses.run()));
    let mut end = Signals::new(reactor, &[SIGTERM, SIGINT])?;
    let end = pin!(end.next());
    let asked = pin!(asked.raised());
    let requested = select(asked, requested);
    match select(served, select(end, requested)).await {
        Either::Left((result, _)) => result.map(|(_, never, _)| match never {}),
        Either::Right((Either::Left((result, _)), _)) => result,
        Either::Right((Either::Right(_), _)) => Ok(()),
    }
}

/// Logs the counts at each SIGUSR1.
async fn report(common: &Common<'_>, reactor: &Reactor) -> io::Result<Infallible> {
    let mut signals = Signals::new(reactor, &[SIGUSR1])?;
    loop {
        signals.next().await?;
        log::info!("{}", common.counts);
    }
}

/// Reads the rules again at each SIGHUP.
async fn reload(common: &Common<'_>, reactor: &Reactor) -> io::Result<Infallible> {
    let mut signals = Signals::watch(reactor, common.reload.try_clone()?)?;
    loop {
        signals.next().await?;
        // The log says what came of it.
        let _ = reload_rules(common);
    }
}
