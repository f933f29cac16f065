//! The daemon: opens what it needs, serves guests, and closes their devices when it stops.

use crate::arguments::Arguments;
use crate::counts::Counts;
use crate::device::Backend;
use crate::dom0::Dom0;
use crate::finder::Finder;
use crate::lock::{Lock, check_kernel_backend};
use crate::sockets::Sockets;
use crate::xenstored;
use futures_util::future::{Either, join_all, select, select_all};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::future::pending;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;
use xen::xenstore;
use xensock::wire::Dialect;

/// How long closing all guests' devices may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs until a signal stops the daemon. An error is a line for the user.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let result = LocalSet::new().block_on(&runtime, serve(arguments));
    // No task is left to wait for.
    runtime.shutdown_background();
    result
}

async fn serve(arguments: &Arguments) -> Result<(), String> {
    let counts = Counts::default();
    let sockets = Sockets::new(counts.sockets.clone(), arguments.reuse_port);
    let host = Dom0::open(&counts, sockets)?;
    let (reader, writer) = xenstored::connect().await?;
    let _lock = Lock::take(&arguments.lock_file)?;
    check_kernel_backend()?;
    raise_file_limit();

    let events = host.events().clone();
    let (store, driver) = xenstore::connect(reader, writer);
    let (stop, stopping) = watch::channel(false);
    let backend = Rc::new(Backend {
        store,
        host,
        limits: arguments.limits(),
        extensions: arguments.extensions(),
        guests: counts.guests.clone(),
        stop: stopping,
    });
    let mut finders = Dialect::ALL.map(|dialect| Finder::new(backend.clone(), dialect));
    log::info!(
        "xensockd {} serves {}; rings up to order {}, {} sockets per guest",
        env!("CARGO_PKG_VERSION"),
        Dialect::ALL.map(Dialect::device).join(" and "),
        arguments.max_page_order,
        arguments.max_sockets
    );

    let mut background = pin!(async {
        match select(pin!(driver.run()), pin!(events.run())).await {
            Either::Left((error, _)) => {
                format!("the connection to xenstored was lost: {error}; start it, then xensockd")
            }
            Either::Right((error, _)) => format!("event channels failed: {error}"),
        }
    });
    {
        let finding = select_all(finders.iter_mut().map(|finder| Box::pin(finder.run())));
        let asked = pin!(asked_to_stop(&counts));
        match select(background.as_mut(), select(finding, asked)).await {
            Either::Left((failure, _)) => return Err(failure),
            Either::Right((Either::Left(((error, ..), _)), _)) => {
                return Err(format!("cannot look for guests in xenstore: {error}"));
            }
            Either::Right((Either::Right((asked, _)), _)) => {
                asked.map_err(|error| format!("cannot receive signals: {error}"))?;
            }
        }
    }
    log::info!("stopping; in use: {counts}");
    stop.send_replace(true);
    let stopped = pin!(join_all(finders.iter_mut().map(Finder::stopped)));
    match select(background, pin!(tokio::time::timeout(STOP_TIMEOUT, stopped))).await {
        Either::Left((failure, _)) => return Err(failure),
        Either::Right((Ok(_), _)) => {}
        Either::Right((Err(_), _)) => log::warn!("some frontends did not close in time"),
    }
    Ok(())
}

/// Waits for SIGTERM or SIGINT, and logs `counts` at each SIGUSR1.
async fn asked_to_stop(counts: &Counts) -> io::Result<()> {
    let mut report = signal(SignalKind::user_defined1())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let reports = async {
        loop {
            match report.recv().await {
                Some(()) => log::info!("{counts}"),
                None => pending().await,
            }
        }
    };
    let (terminate, interrupt) = (pin!(terminate.recv()), pin!(interrupt.recv()));
    select(pin!(reports), select(terminate, interrupt)).await;
    Ok(())
}

/// Raises the limit of open files to its maximum: each socket is a file.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::warn!("cannot raise the limit of open files from {:?}: {error}", limit.current);
    }
}
