//! The numbers over HTTP.

use crate::clients;
use futures_util::future::select;
use rustix::net::{bind, listen, sockopt};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use xen::Flag;
use xen_linux::runtime::{READABLE, Reactor, Watched};
use xen_linux::tcp;

/// The clients that Linux keeps until they are accepted.
const BACKLOG: i32 = 16;

/// The most header lines of a request.
const MAX_HEADERS: usize = 32;

/// Serves the numbers over HTTP at the address that `at` returns, if any. Asks for the address
/// again each time that `changed` is raised.
pub async fn serve(
    reactor: &Reactor,
    at: impl Fn() -> Option<SocketAddr>,
    changed: &Flag,
    text: impl AsyncFn() -> String,
) -> Infallible {
    loop {
        let serving = async {
            let Some(at) = at() else { return pending().await };
            let serve = async || {
                let socket = open_at(reactor, at)?;
                log::info!("metrics are at http://{at}/metrics");
                let serve = async |client: &Watched| respond(client, &text).await;
                clients::serve_all(reactor, &socket, "metrics", serve).await
            };
            let Err(error) = serve().await;
            // The guests are served even so.
            log::error!("cannot serve metrics at {at}: {error}; a reload tries again");
            pending::<()>().await
        };
        select(pin!(serving), pin!(changed.take())).await;
    }
}

fn open_at(reactor: &Reactor, at: SocketAddr) -> io::Result<Watched> {
    let socket = tcp::open(at).map_err(|error| io::Error::from_raw_os_error(error.0))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &at)?;
    listen(&socket, BACKLOG)?;
    reactor.watch(Rc::new(socket), READABLE)
}

/// Answers the request of one client.
async fn respond(client: &Watched, text: impl AsyncFn() -> String) -> io::Result<()> {
    let is_complete = |bytes: &[u8]| bytes.windows(4).any(|end| end == b"\r\n\r\n");
    let request = clients::receive(client, is_complete).await?;
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = match parsed.parse(&request) {
        Ok(httparse::Status::Complete(_)) => match (parsed.method, parsed.path) {
            (Some("GET"), Some("/metrics")) => "200 OK",
            (Some("GET"), _) => "404 Not Found",
            _ => "405 Method Not Allowed",
        },
        _ => "400 Bad Request",
    };
    let (kind, body) = match status {
        "200 OK" => ("application/openmetrics-text; version=1.0.0; charset=utf-8", text().await),
        _ => ("text/plain", format!("{status}: the numbers are at /metrics\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    clients::send(client, (head + &body).as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;
    use std::time::Duration;
    use xen_linux::runtime::Runtime;

    #[test]
    fn clients_get_numbers_at_one_path_and_at_the_address_that_holds_now() {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let places = [free(), free()];
        let (place, changed) = (Cell::new(0), Flag::default());
        let get = |at: SocketAddr, line: &str| {
            let mut client = TcpStream::connect(at)?;
            write!(client, "{line} HTTP/1.1\r\nHost: dom0\r\n\r\n")?;
            let mut reply = String::new();
            client.read_to_string(&mut reply).map(|_| reply)
        };
        let mut runtime = Runtime::new().unwrap();
        let reactor = runtime.reactor().clone();
        thread::scope(|scope| {
            let test = async {
                let serving = serve(
                    &reactor,
                    || places.get(place.get()).copied(),
                    &changed,
                    async || "numbers".to_string(),
                );
                let asking = async {
                    for at in places {
                        // It is open after the first time that it runs.
                        reactor.sleep(Duration::from_millis(20)).await;
                        let asked = scope.spawn(move || {
                            ["GET /metrics", "GET /", "POST /metrics", "nonsense\r\n"]
                                .map(|line| get(at, line).unwrap())
                        });
                        while !asked.is_finished() {
                            reactor.sleep(Duration::from_millis(2)).await;
                        }
                        let replies = asked.join().unwrap();
                        let starts = ["200", "404", "405", "400"];
                        for (reply, status) in replies.iter().zip(starts) {
                            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
                        }
                        assert!(replies[0].ends_with("\r\n\r\nnumbers"), "{}", replies[0]);
                        place.set(place.get() + 1);
                        changed.raise();
                    }
                    reactor.sleep(Duration::from_millis(20)).await;
                };
                select(pin!(serving), pin!(asking)).await;
            };
            runtime.block_on(test).unwrap();
        });
        assert!(places.iter().all(|at| TcpStream::connect(at).is_err()), "both are closed");
    }
}
