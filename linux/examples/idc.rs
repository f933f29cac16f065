//! One end of the exam of IDC (`idc::exam`), or of its load, in a process of Linux under Xen. The
//! other end is a guest: `kernel/examples/idc.rs`, whose words are also those of this program.

use edge_nal::TcpBind;
use futures_util::future::{Either, join, select};
use idc::exam::{examine, load, serve};
use idc::tcp::Tcp;
use idc::transport::Transport;
use idc::xen::{DEFAULT_ORDER, XenTransport};
use idc::{Address, Node};
use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};
use xen::DomId;
use xen::xenbus::read_number;
use xen_linux::runtime::{Reactor, Runtime};
use xen_linux::tcp::Stack;
use xen_linux::{Counts, Domain, random};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let result = Runtime::new().map_err(text).and_then(|mut runtime| {
        let reactor = runtime.reactor().clone();
        runtime.block_on(work(&reactor)).map_err(text)?
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(reactor: &Reactor) -> Result<(), String> {
    if let Some(listen) = word::<SocketAddr>("listen=")? {
        let stack = Stack::new(reactor);
        let acceptor = stack.bind(listen).await.map_err(text)?;
        let transport = Tcp::new(&stack, Some(listen));
        let door = transport.clone();
        return match select(pin!(door.serve(&acceptor)), pin!(run(transport))).await {
            Either::Left((error, _)) => Err(text(error)),
            Either::Right((result, _)) => result,
        };
    }
    let counts = Counts::default();
    let (domain, driver) = Domain::open(reactor, &counts)?;
    let through_domain = async {
        let store = domain.store().clone();
        let own = DomId(read_number(&store, "domid").await.map_err(text)?);
        let (transport, run_transport) =
            XenTransport::<Infallible, _>::new(own, store, None, Some(domain), DEFAULT_ORDER);
        let beside = join(run_transport, show_usage(reactor, &counts));
        match select(pin!(beside), pin!(run(transport))).await {
            Either::Left(((never, _), _)) => match never {},
            Either::Right((result, _)) => result,
        }
    };
    match select(pin!(driver.run()), pin!(through_domain)).await {
        Either::Left((error, _)) => Err(error),
        Either::Right((result, _)) => result,
    }
}

async fn run(transport: impl Transport) -> Result<(), String> {
    let node = Node::new(transport, random);
    if let Some(address) = word::<Address>("serve=")? {
        let clients = word("clients=")?.unwrap_or(1);
        log::info!("serving at {address}");
        return Err(text(serve(&node, &address, clients).await));
    }
    if let Some(address) = word("examine=")? {
        let start = Instant::now();
        examine(&node, &address, |step| log::info!("passed: {step}")).await?;
        log::info!("the exam is passed in {} ms", start.elapsed().as_millis());
        return Ok(());
    }
    match word("load=")? {
        Some(address) => {
            let Err(error) = load(&node, &address, |load| log::info!("{load}")).await;
            Err(error)
        }
        None => Err("write serve=, examine= or load=, and an address".to_string()),
    }
}

/// The value of a word of the command line.
fn word<T: FromStr<Err: Display>>(name: &str) -> Result<Option<T>, String> {
    let value = std::env::args().find_map(|word| word.strip_prefix(name).map(str::to_owned));
    value.map(|value| value.parse().map_err(text)).transpose()
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// Logs, again and again, what is in use.
async fn show_usage(reactor: &Reactor, counts: &Counts) -> Infallible {
    let mut last = String::new();
    loop {
        let now = counts.to_string();
        if last != now {
            log::info!("in use: {now}");
            last = now;
        }
        reactor.sleep(Duration::from_millis(200)).await;
    }
}
