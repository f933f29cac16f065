//! The daemon: opens what it needs, serves guests, and closes their devices when it stops.

use crate::addresses::Addresses;
use crate::arguments::Arguments;
use crate::control::{Reply, Request, Server, Status};
use crate::counts::Counts;
use crate::device::Backend;
use crate::dom0::Dom0;
use crate::finder::Finder;
use crate::guests::{Guests, Shared};
use crate::lock::{Lock, check_kernel_backend};
use crate::rules::Policy;
use crate::sockets::Sockets;
use crate::threads::{Mailboxes, Message, Placement, StopAll};
use crate::{sandbox, user};
use futures_channel::mpsc::UnboundedReceiver;
use futures_util::StreamExt;
use futures_util::future::{
    Either, LocalBoxFuture, join_all, select, select_all, try_join, try_join3,
};
use futures_util::stream::FuturesUnordered;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use xen::xenstore::Store;
use xen::{DomId, Flag, Side};
use xen_linux::runtime::{READABLE, Reactor, Runtime, Watched, timeout};
use xen_linux::{Domain, Driver};
use xensock::wire::Dialect;

/// How long xenstored may take for its first answer.
const XENSTORED_TIMEOUT: Duration = Duration::from_secs(10);

/// How long closing all guests' devices may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The reason why the daemon does not start without xenstored.
const NO_XENSTORED: &str = "xenstored does not answer: start it, by `systemctl start xenstored` or \
                            `/etc/init.d/xen start`, and then xensockd";

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
}

impl Common<'_> {
    fn policy(&self) -> Arc<Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Runs until a signal stops the daemon. An error is a line for the user.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    arguments.become_user()?;
    let threads = arguments.threads();
    let policy = Policy::read(arguments.config.as_deref())?;
    // From now on, it does not end the daemon.
    let reload = receive(&[SIGHUP]).map_err(|error| format!("cannot receive signals: {error}"))?;
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
    };
    let first = Worker::open(&common, 0)?;
    let first_inbox = inboxes.remove(0);
    let _lock = Lock::take(&arguments.lock_file)?;
    check_kernel_backend()?;
    let control = Server::open(first.runtime.reactor(), &arguments.control)?;
    raise_file_limit();
    sandbox::confine(&arguments.files())?;
    log::info!(
        "xensockd {} serves {} as the user {}; {threads} threads; {rules}",
        env!("CARGO_PKG_VERSION"),
        Dialect::ALL.map(Dialect::device).join(" and "),
        user::current(),
    );
    std::thread::scope(|scope| {
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
    })
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
        let backend = Rc::new(Backend {
            store: store.clone(),
            host,
            guests: guests.clone(),
            extensions: common.arguments.extensions(),
            connected: common.counts.guests.clone(),
            stop: stop.clone(),
            seat: common.placement.seat(thread),
        });
        let mut finders =
            Dialect::ALL.map(|dialect| Finder::new(backend.clone(), &spawner, dialect));
        let served = runtime.block_on(async {
            let mut driver = pin!(driver.run());
            let answer = pin!(timeout(&reactor, XENSTORED_TIMEOUT, store.read("domid")));
            match select(driver.as_mut(), answer).await {
                Either::Left((failure, _)) => return Err(failure),
                Either::Right((Some(_), _)) => {}
                Either::Right((None, _)) => return Err(NO_XENSTORED.to_string()),
            }
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
                        receive_message(message, &guests, &store).await;
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
                common.stop.request();
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
    let controlled = control.run(async |request| answer(common, request).await);
    let served = pin!(try_join3(signals, controlled, addresses.run()));
    let mut end = Signals::new(reactor, &[SIGTERM, SIGINT])?;
    let end = pin!(end.next());
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

/// Carries out a message from another thread.
async fn receive_message(message: Message, guests: &Guests, store: &Store) {
    match message {
        Message::Rules(policy) => guests.apply(store, policy).await,
        Message::Status(to) => {
            let _ = to.send(guests.status());
        }
        Message::Close(guest, socket, to) => {
            if let Ok(guest) = guests.get(guest) {
                let _ = to.send(guest.close(socket));
            }
        }
    }
}

/// Answers a request on the control socket.
async fn answer(common: &Common<'_>, request: Request) -> Reply {
    let done = match request {
        Request::Status => return Reply::Status(status(common).await),
        Request::Reload => reload_rules(common),
        Request::LogLevel(level) => match level.parse() {
            Ok(level) => {
                log::set_max_level(level);
                Ok(format!("the log level is {level}"))
            }
            Err(_) => Err(format!("`{level}` is not a log level")),
        },
        Request::Close { guest, socket } => {
            let domain = status(common).await.guest(&guest).map(|guest| DomId(guest.domain));
            let closed = match domain {
                Some(domain) => {
                    let ask = |to| Message::Close(domain, socket, to);
                    common.mailboxes.ask(ask).await.contains(&true)
                }
                None => false,
            };
            match (domain, closed) {
                (None, _) => Err(format!("no guest {guest} has a device for sockets")),
                (_, false) => Err(format!("{guest} has no socket {socket}")),
                (_, true) => Ok(format!("socket {socket} of {guest} has ended")),
            }
        }
    };
    done.map_or_else(Reply::Failed, Reply::Done)
}

async fn status(common: &Common<'_>) -> Status {
    let all = common.mailboxes.ask(Message::Status).await;
    let mut guests: Vec<_> = all.into_iter().flatten().collect();
    guests.sort_by_key(|guest| guest.domain);
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        rules: common.policy().to_string(),
        mappings: common.counts.xen.mappings.get(),
        ports: common.counts.xen.ports.get(),
        guests,
    }
}

/// Reads the rules again. If there is a mistake, the former ones stay. The result is a line for the
/// user.
fn reload_rules(common: &Common<'_>) -> Result<String, String> {
    match common.policy().read_again() {
        Ok(policy) => {
            let said = format!("reloaded: {policy}");
            log::info!("{said}");
            let policy = Arc::new(policy);
            *common.policy.lock().unwrap_or_else(PoisonError::into_inner) = policy.clone();
            common.mailboxes.send(|| Message::Rules(policy.clone()));
            Ok(said)
        }
        Err(reason) => {
            let reason = format!("{reason}; the former rules stay");
            log::error!("{reason}");
            Err(reason)
        }
    }
}

/// Unix signals, each of which makes a socket readable.
struct Signals(Watched);

impl Signals {
    fn new(reactor: &Reactor, signals: &[i32]) -> io::Result<Self> {
        Signals::watch(reactor, receive(signals)?)
    }

    fn watch(reactor: &Reactor, receiver: UnixStream) -> io::Result<Self> {
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

/// A socket that becomes readable at each of these signals.
fn receive(signals: &[i32]) -> io::Result<UnixStream> {
    let (receiver, sender) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, sender.try_clone()?)?;
    }
    receiver.set_nonblocking(true)?;
    Ok(receiver)
}

/// Raises the limit of open files to its maximum: each socket is a file.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit of open files from {:?}: {error}", limit.current);
    }
}
