//! One end of the exam of IDC, or of its benchmark, in a process of Linux under Xen. The other end
//! is a guest: `kernel/examples/idc.rs`.
//!
//! The words are those of `idc::exam::run`. With `listen=IP:PORT`, the ends meet over TCP, and the
//! other end can reach this one at this address. `CLOCK` in the environment is a command that
//! prints how many nanoseconds of the processor's time this domain has used up.

use edge_nal::TcpBind;
use futures_util::future::{Either, join, select};
use idc::Node;
use idc::exam::bench::Used;
use idc::exam::{run, word};
use idc::tcp::Tcp;
use idc::xen::{DEFAULT_ORDER, XenTransport};
use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::{Command, ExitCode};
use std::time::Duration;
use xen::DomId;
use xen::xenbus::read_number;
use xen_linux::runtime::{Reactor, Runtime};
use xen_linux::tcp::Stack;
use xen_linux::{Counts, Domain, random};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let words = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let result = Runtime::new().map_err(text).and_then(|mut runtime| {
        let reactor = runtime.reactor().clone();
        runtime.block_on(work(&reactor, &words)).map_err(text)?
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn work(reactor: &Reactor, words: &str) -> Result<(), String> {
    if let Some(listen) = word::<SocketAddr>(words, "listen")? {
        let stack = Stack::new(reactor);
        let acceptor = stack.bind(listen).await.map_err(text)?;
        let transport = Tcp::new(&stack, Some(listen));
        let (door, node) = (transport.clone(), Node::new(transport, random));
        return match select(pin!(door.serve(&acceptor)), pin!(run(&node, words, used))).await {
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
        let node = Node::new(transport, random);
        let beside = join(run_transport, show_usage(reactor, &counts));
        match select(pin!(beside), pin!(run(&node, words, used))).await {
            Either::Left(((never, _), _)) => match never {},
            Either::Right((result, _)) => result,
        }
    };
    match select(pin!(driver.run()), pin!(through_domain)).await {
        Either::Left((error, _)) => Err(error),
        Either::Right((result, _)) => result,
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// What this domain has used up, as far as the clock tells.
fn used() -> Used {
    let clock = std::env::var("CLOCK").unwrap_or_default();
    let mut words = clock.split_whitespace();
    let Some(program) = words.next() else { return Used::default() };
    let output = Command::new(program).args(words).output().expect("the clock starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let cpu = Duration::from_nanos(text.trim().parse().expect("the clock prints a number"));
    Used { cpu, ..Used::default() }
}

/// Logs what is in use, whenever it has changed.
async fn show_usage(reactor: &Reactor, counts: &Counts) -> Infallible {
    let mut last = String::new();
    loop {
        let now = counts.to_string();
        if last != now {
            log::info!("in use: {now}");
            last = now;
        }
        reactor.sleep(Duration::from_millis(100)).await;
    }
}
