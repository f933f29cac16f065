//! A service that greets, and its client, over TCP. In two shells:
//!
//! ```text
//! cargo run -p xen-idc --example greeter serve 127.0.0.1:9000
//! cargo run -p xen-idc --example greeter tcp:127.0.0.1:9000/greeter
//! ```
//!
//! Stop and start either of them: the other one notices, and goes on when it is back.

use edge_nal::TcpBind;
use edge_nal_std::{Stack, TcpAcceptor};
use futures_util::future::{Either, join, select};
use idc::tcp::Tcp;
use idc::transport::Transport;
use idc::{Address, Endpoint, Event, Events, Node, Quota};
use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::pin::pin;
use std::process::ExitCode;

/// What each end is ready to receive.
const QUOTA: Quota =
    Quota { messages: 0, message: 0, transactions: 4, parameters: 64, status: 128 };

/// Greets one client after the other.
async fn serve(mut events: Events) {
    while let Some(event) = events.next().await {
        match event {
            Event::Transaction(question) => {
                let name = question.parameters().to_vec();
                let answer = [b"Hello, ", &name[..], b"!"].concat();
                if let Err(error) = question.complete(0, answer) {
                    println!("no answer: {error}");
                }
            }
            event => println!("{event:?}"),
        }
    }
}

/// Asks once a second while there is a connection.
async fn visit(endpoint: Endpoint, mut events: Events) {
    let ask = async {
        loop {
            if let Ok(answer) = endpoint.transaction(b"world").await {
                println!("{}", answer.status().to_vec().escape_ascii());
            }
            embassy_time::Timer::after_secs(1).await;
        }
    };
    let follow = async {
        while let Some(event) = events.next().await {
            println!("{event:?}");
        }
    };
    select(pin!(ask), pin!(follow)).await;
}

/// Runs one end at an address. The same for all transports.
async fn run(node: &Node<impl Transport>, address: Address) -> Result<(), xen::Errno> {
    let (endpoint, events, drive) = Endpoint::create(node.resource(QUOTA)?, address.clone());
    if address.place == idc::Place::Anyone {
        join(drive, serve(events)).await;
    } else {
        join(drive, visit(endpoint, events)).await;
    }
    Ok(())
}

fn main() -> ExitCode {
    match try_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("greeter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let random = || {
        let mut bytes = [0; 16];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).unwrap();
        bytes
    };
    let stack = Stack::new();
    futures_executor::block_on(async {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["serve", at] => {
                let at = at.parse()?;
                let acceptor = stack.bind(at).await?;
                let transport = Tcp::new(&stack, Some(at));
                let node = Node::new(transport.clone(), random);
                let service = run(&node, "any/greeter".parse()?);
                match select(pin!(service), pin!(transport.serve(&acceptor))).await {
                    Either::Left((result, _)) => Ok(result?),
                    Either::Right((error, _)) => Err(error.into()),
                }
            }
            [address] => {
                let transport = Tcp::<_, TcpAcceptor>::new(&stack, None);
                Ok(run(&Node::new(transport, random), address.parse()?).await?)
            }
            _ => Err("write `serve IP:PORT`, or an address such as tcp:IP:PORT/greeter".into()),
        }
    })
}
