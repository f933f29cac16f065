//! An end of the exam as a program.

use super::bench::{self, Plan, Used};
use super::{Load, examine, load, serve};
use crate::transport::Transport;
use crate::{Address, Node, Service};
use alloc::format;
use alloc::string::{String, ToString};
use core::cell::Cell;
use core::fmt::Display;
use core::str::FromStr;
use embassy_time::Instant;
use futures_util::stream::{FuturesUnordered, StreamExt};

/// Runs an end as the words of a command line say, and logs what it does.
///
/// | word | |
/// |---|---|
/// | `serve=ADDRESS` | serves at an address, such as `any/exam` |
/// | `clients=N` | so many at a time |
/// | `examine=ADDRESS` | examines the service at an address, such as `xen:7/exam`, and ends |
/// | `load=ADDRESS` | keeps the service at an address busy |
/// | `instances=N` | through so many endpoints |
/// | `bench=ADDRESS` | serves the benchmark at an address |
/// | `measure=ADDRESS` | measures the benchmark at an address, and ends |
/// | `mib=N`, `count=N` | transfers so many MiB, and makes so many round trips |
///
/// `used` tells the benchmark what this end has used up.
pub async fn run<T: Transport>(
    node: &Node<T>,
    words: &str,
    used: impl Fn() -> Used,
) -> Result<(), String> {
    if let Some(address) = word::<Address>(words, "bench")? {
        log::info!("serving at {address}");
        return Err(bench::serve(node, &address, used).await.to_string());
    }
    if let Some(address) = word(words, "measure")? {
        let (mib, count) = (word(words, "mib")?.unwrap_or(8), word(words, "count")?.unwrap_or(10));
        let print = |way, name: &str, value: f64| log::info!("figure: {way} {name} {value:.6}");
        return bench::visit(node, &address, Plan { mib, count }, used, print).await;
    }
    if let Some(address) = word::<Address>(words, "serve")? {
        let clients = word(words, "clients")?.unwrap_or(1);
        log::info!("serving at {address}");
        return Err(serve(node, &address, clients).await.to_string());
    }
    if let Some(address) = word(words, "examine")? {
        let start = Instant::now();
        examine(node, &address, |step| log::info!("passed: {step}")).await?;
        log::info!("the exam is passed in {} ms", start.elapsed().as_millis());
        return Ok(());
    }
    let address: Address =
        word(words, "load")?.ok_or("write serve=, examine=, load=, bench= or measure=")?;
    let instances = word(words, "instances")?.unwrap_or(1);
    let busy = Cell::new(0);
    let report = |load: &Load| {
        if instances == 1 {
            log::info!("{load}");
        }
        busy.set(busy.get() + u32::from(!load.is_over));
        if busy.get() == instances {
            log::info!("all are busy");
        }
    };
    let loads = (0..instances).map(|instance| {
        let service = Service::new(address.service.name(), instance);
        let service = service.map_err(|error| error.to_string())?;
        Ok((Address { service, ..address }, report))
    });
    let loads = loads.collect::<Result<alloc::vec::Vec<_>, String>>()?;
    let loads = loads.iter().map(|(address, report)| load(node, address, report));
    match loads.collect::<FuturesUnordered<_>>().next().await {
        Some(Err(error)) => Err(error),
        None => Err("write instances= and a number that is not 0".to_string()),
    }
}

/// The value of one of the words, `NAME=VALUE`.
pub fn word<V: FromStr<Err: Display>>(words: &str, name: &str) -> Result<Option<V>, String> {
    let value = |word: &str| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_string());
    let value = words.split_whitespace().find_map(value);
    let parse = |value: String| value.parse().map_err(|error| format!("{name}={value}: {error}"));
    value.map(parse).transpose()
}
