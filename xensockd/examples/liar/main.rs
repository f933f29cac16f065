//! A lying backend that tests a frontend: run it in dom0 instead of xensockd.
//!
//! It connects to the guest as a backend should, and acts as the network itself: the client of a
//! connection is this program. Then it tells the given lies, and succeeds if the guest reacts to
//! each as it should.

mod backend;
mod lies;

use backend::Liar;
use clap::{Parser, ValueEnum};
use lies::Lie;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use xen_linux::Domain;
use xen_linux::runtime::{Reactor, Runtime, Spawner, timeout};
use xensockd::counts::Counts;
use xensockd::dom0::Dom0;
use xensockd::guests::{Guests, Shared};
use xensockd::rules::{DEFAULT, Policy};
use xensockd::sockets::Sockets;

/// How long a guest may take to react.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lies to a guest as its backend for sockets (PV Calls). The guest must run `app=http`, and
/// xensockd must not run.
#[derive(Parser)]
#[command(name = "liar")]
struct Arguments {
    /// The guest's domain id
    domain: u16,
    /// The lies, one after the other; the backend connects again for each
    #[arg(required = true)]
    lies: Vec<Lie>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match tell(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("liar: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn tell(arguments: &Arguments) -> Result<(), String> {
    let mut runtime = Runtime::new().map_err(|error| error.to_string())?;
    let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
    let told = runtime.block_on(tell_all(arguments, &reactor, &spawner));
    told.map_err(|error| error.to_string())?
}

async fn tell_all(
    arguments: &Arguments,
    reactor: &Reactor,
    spawner: &Spawner,
) -> Result<(), String> {
    let counts = Counts::default();
    let policy = Arc::new(Policy::built_in(Path::new(DEFAULT)));
    let guests = Guests::new(policy, Shared::default());
    let sockets = Sockets::new(reactor, counts.sockets.clone(), guests);
    let (domain, driver) = Domain::open(reactor, &counts.xen)?;
    spawner.spawn(async move {
        eprintln!("liar: {}", driver.run().await);
    });
    let host = Dom0 { domain, sockets };
    for lie in &arguments.lies {
        let name =
            lie.to_possible_value().map_or_else(String::new, |value| value.get_name().into());
        let liar = Liar::new(&host, host.domain.store(), arguments.domain);
        let told = timeout(reactor, PATIENCE, pin!(lies::tell(*lie, liar))).await;
        told.ok_or("the guest did not react in time".to_string())
            .and_then(|told| told.map_err(|error| error.to_string()))
            .map_err(|reason| format!("{name}: {reason}"))?;
        println!("{name}: the guest reacted correctly");
    }
    Ok(())
}
