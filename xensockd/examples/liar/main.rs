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
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;
use tokio::task::{LocalSet, spawn_local};
use xensockd::counts::Counts;
use xensockd::dom0::Dom0;
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => LocalSet::new().block_on(&runtime, tell_all(&arguments)),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("liar: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn tell_all(arguments: &Arguments) -> Result<(), String> {
    let counts = Counts::default();
    let host = Dom0::open(&counts, Sockets::default())?;
    let events = host.events().clone();
    spawn_local(async move {
        let error = events.run().await;
        eprintln!("liar: event channels failed: {error}");
    });
    let (reader, writer) = xensockd::xenstored::connect().await?;
    let (store, driver) = xen::xenstore::connect(reader, writer);
    spawn_local(async move {
        let error = driver.run().await;
        eprintln!("liar: the connection to xenstored was lost: {error}");
    });
    for lie in &arguments.lies {
        let name =
            lie.to_possible_value().map_or_else(String::new, |value| value.get_name().into());
        let liar = Liar::new(&host, &store, arguments.domain);
        let told = tokio::time::timeout(PATIENCE, pin!(lies::tell(*lie, liar))).await;
        told.map_err(|_| "the guest did not react in time".to_string())
            .and_then(|told| told.map_err(|error| error.to_string()))
            .map_err(|reason| format!("{name}: {reason}"))?;
        println!("{name}: the guest reacted correctly");
    }
    Ok(())
}
