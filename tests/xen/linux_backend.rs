//! Linux's own PV Calls backend in place of xensockd: how this project's guests work over it. Each
//! of its bugs has a test that expects it, so a test fails when its bug is fixed or harms a guest.
//!
//! These tests come last, because a bug in Linux may crash the machine.

use crate::fixture::{Fixture, cases, wait_until};
use crate::images::image;
use crate::service::{self, Device, HTTP, PATIENCE, Service, pattern, sha256};
use anyhow::{Context, Result, ensure};
use bench::load_linux_backend;
use lab::{Dom0, Domain, Tree};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

cases![
    linux_s_backend_serves_pages_to_several_clients_at_once,
    linux_s_backend_echoes_both_ways,
    linux_s_backend_has_no_datagrams_and_streams_go_on,
    linux_s_backend_lets_guests_connect_and_reports_refusals,
    linux_s_backend_maps_at_most_16_pages_and_gets_no_more,
    linux_s_backend_reports_the_end_of_a_stream_only_when_it_comes_alone,
    linux_s_backend_never_announces_what_a_server_sends_at_once,
    linux_s_backend_loses_no_byte_of_a_guest_that_closes,
    linux_s_backend_never_answers_a_poll_of_an_unknown_socket,
    linux_s_backend_refuses_a_second_accept,
    linux_s_backend_loses_what_is_in_the_ring_at_release,
    linux_s_backend_may_answer_a_connect_after_the_guest_timed_out,
    linux_s_backend_gives_way_to_xensockd_again,
];

/// The idle timeout of the guests here, in seconds. It is short, but no machine stands still for so
/// long.
const IDLE: u64 = 15;

/// The guests that these tests share.
struct Guests {
    http: Service,
    echo: Service,
    /// The console output of the image `requests`, after it has run.
    requests: Option<String>,
}

static GUESTS: Mutex<Option<Guests>> = Mutex::new(None);

/// Guests over Linux's backend, which the first test loads.
struct OverLinux(MutexGuard<'static, Option<Guests>>);

impl OverLinux {
    fn get(fixture: &Fixture) -> Result<Self> {
        // A test that panicked with the lock has left no partial state.
        let mut guests = GUESTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if guests.is_none() {
            load_linux_backend(fixture.lab()?, &Tree::here())?;
            let (http, echo) = (serve(fixture, "http")?, serve(fixture, "echo")?);
            *guests = Some(Guests { http, echo, requests: None });
        }
        Ok(OverLinux(guests))
    }

    fn guests(&mut self) -> Result<&mut Guests> {
        self.0.as_mut().context("the guests are gone")
    }
}

/// A guest that requests larger rings than Linux supports, with a short idle timeout.
fn serve(fixture: &Fixture, app: &str) -> Result<Service> {
    let app = format!("{app} ring-order=9 idle-timeout={IDLE} log=debug");
    Service::start(fixture, HTTP, &app, "")
}

/// Fetches a URL in a new guest and returns its console output.
fn fetch(dom0: &Dom0, url: &str) -> Result<String> {
    service::fetch(dom0, Device::PvCalls, &format!("url={url} idle-timeout={IDLE}"))
}

fn linux_s_backend_serves_pages_to_several_clients_at_once(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let http = &linux.guests()?.http;
    let page = String::from_utf8(http.curl(&["--include", &http.url("/")])?)?;
    ensure!(page.starts_with("HTTP/1.1 200") && page.contains("XenSock"), "{page}");
    let wanted = pattern(2_000_003);
    thread::scope(|scope| {
        let downloads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| http.curl(&[&http.url("/bytes/2000003")]))).collect();
        for download in downloads {
            let got = download.join().expect("a download's thread panicked")?;
            ensure!(got == wanted, "{} bytes came, or others", got.len());
        }
        Ok(())
    })
}

fn linux_s_backend_echoes_both_ways(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let mut stream = linux.guests()?.echo.connect()?;
    let sent = pattern(3_000_017);
    let mut got = vec![0; sent.len()];
    thread::scope(|scope| {
        let mut half = stream.try_clone()?;
        let writer = scope.spawn(move || half.write_all(&pattern(3_000_017)));
        stream.read_exact(&mut got)?;
        writer.join().expect("the writer panicked")
    })?;
    ensure!(sha256(&got) == sha256(&sent), "other bytes came back");
    Ok(())
}

fn linux_s_backend_has_no_datagrams_and_streams_go_on(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let echo = &linux.guests()?.echo;
    echo.domain.wait_for("no datagrams on port", PATIENCE)?;
    let console = echo.domain.console()?;
    ensure!(console.contains("operation not supported"), "{console}");
    let mut stream = echo.connect()?;
    stream.write_all(b"still here")?;
    let mut got = [0; 10];
    stream.read_exact(&mut got)?;
    ensure!(got == *b"still here", "{got:?}");
    Ok(())
}

fn linux_s_backend_lets_guests_connect_and_reports_refusals(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let dom0 = fixture.lab()?;
    let port = linux.guests()?.http.inner_port;
    let console = fetch(dom0, &format!("http://127.0.0.1:{port}/bytes/1000003"))?;
    let digest = sha256(&pattern(1_000_003));
    ensure!(console.contains("1000003") && console.contains(&digest), "{console}");
    let console = fetch(dom0, "http://127.0.0.1:1/")?;
    ensure!(console.contains("refused"), "{console}");
    Ok(())
}

fn linux_s_backend_maps_at_most_16_pages_and_gets_no_more(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let http = &linux.guests()?.http;
    let id = http.domain.id()?.context("the guest is gone")?;
    let node = format!("/local/domain/0/backend/pvcalls/{id}/0/max-page-order");
    let order = fixture.lab()?.run(&format!("xenstore-read {node}"))?;
    ensure!(order == "4", "Linux maps rings of order {order} now");
    // The command line asks for order 9, 513 pages. Besides the command ring, the guest has granted
    // rings of 16 pages with an indexes page, in use or kept for new connections.
    let grants = http.metrics()?["grants_in_use"];
    ensure!(grants > 1 && (grants - 1) % 17 == 0, "{grants} pages are granted");
    Ok(())
}

fn linux_s_backend_reports_the_end_of_a_stream_only_when_it_comes_alone(
    fixture: &Fixture,
) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let dom0 = fixture.lab()?;
    let echo = &linux.guests()?.echo;

    let mut stream = echo.connect()?;
    stream.write_all(b"all has come")?;
    stream.read_exact(&mut [0; 12])?;
    let took = until_end(&mut stream, &[])?;
    ensure!(took < Duration::from_secs(IDLE - 1), "the end alone took {took:?} to come");

    // While the guest is paused, data and the end of the stream collect in dom0's socket, so Linux
    // reads the last bytes and the end together.
    let sent = pattern(100_003);
    let name = echo.domain.name();
    let mut stream = echo.connect()?;
    dom0.run(&format!("xl pause {name}"))?;
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    let port = echo.inner_port;
    // The second column is the number of unread bytes.
    let closed = format!("netstat -tn | grep ':{port} .*CLOSE_WAIT' | grep -qv '^tcp *0 '");
    let there = || Ok(dom0.exec(&closed)?.status == 0);
    let arrived = wait_until("the end has come to dom0", PATIENCE, there);
    dom0.run(&format!("xl unpause {name}"))?;
    arrived?;
    let took = until_end(&mut stream, &sent)?;
    // The guest's time began when it was unpaused, a little earlier.
    ensure!(took >= Duration::from_secs(IDLE / 2), "the end came after {took:?} already");
    echo.domain.wait_for("did nothing for too long", PATIENCE)?;
    still_echoes(echo)
}

/// Closes the writing half, checks that `rest` follows, and returns the time until the end.
fn until_end(stream: &mut TcpStream, rest: &[u8]) -> Result<Duration> {
    let since = Instant::now();
    stream.shutdown(Shutdown::Write)?;
    let mut got = Vec::new();
    stream.read_to_end(&mut got)?;
    ensure!(got == rest, "{} bytes came instead of {}", got.len(), rest.len());
    Ok(since.elapsed())
}

/// Checks that an echo guest still serves.
fn still_echoes(echo: &Service) -> Result<()> {
    let mut stream = echo.connect()?;
    stream.write_all(b"still there?")?;
    let mut got = [0; 12];
    stream.read_exact(&mut got)?;
    ensure!(&got == b"still there?", "{got:?}");
    Ok(())
}

fn linux_s_backend_never_announces_what_a_server_sends_at_once(fixture: &Fixture) -> Result<()> {
    let _linux = OverLinux::get(fixture)?;
    let (dom0, port) = (fixture.lab()?, fixture.port()?.inner);
    dom0.push("/usr/bin/chrt".as_ref(), "/tmp/chrt")?;
    // With a priority above the backend's, the server sends before the backend has set its socket
    // callbacks.
    dom0.run(&format!(
        "printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello' >/tmp/answer; \
         /tmp/chrt -f 99 nc -l -p {port} </tmp/answer >/dev/null 2>&1 & \
         until netstat -ltn | grep -q ':{port} '; do sleep 0.1; done"
    ))?;
    let console = fetch(dom0, &format!("http://127.0.0.1:{port}/"))?;
    ensure!(console.contains("did nothing for too long"), "{console}");
    ensure!(!console.contains("panic"), "{console}");
    Ok(())
}

fn linux_s_backend_loses_no_byte_of_a_guest_that_closes(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let http = &linux.guests()?.http;
    // The client is slower than the guest, so the ring and all later buffers are full when the
    // guest closes.
    let url = http.url("/bytes/9000011");
    let got = http.curl(&["--limit-rate", "2500K", "--header", "Connection: close", &url])?;
    ensure!(got == pattern(9_000_011), "{} bytes came, or others", got.len());
    Ok(())
}

/// The output of the image `requests` over Linux's backend. It runs once.
fn requests(fixture: &Fixture) -> Result<String> {
    let mut linux = OverLinux::get(fixture)?;
    let said = &mut linux.guests()?.requests;
    if let Some(said) = said {
        return Ok(said.clone());
    }
    let dom0 = fixture.lab()?;
    let (first, second, slow) =
        (fixture.port()?.inner, fixture.port()?.inner, fixture.port()?.inner);
    ensure!(second == first + 1, "ports {first} and {second} are not neighbours");
    // A stopped server whose backlog is full.
    let server = dom0.run(&format!(
        "nc -ll -p {slow} -e true >/dev/null 2>&1 & server=$!; \
         until netstat -ltn | grep -q ':{slow} '; do sleep 0.1; done; kill -STOP $server; \
         until netstat -tn | grep -q ':{slow} .*SYN_SENT'; do \
         sleep 60 | nc 127.0.0.1 {slow} >/dev/null 2>&1 & sleep 0.2; done; echo $server"
    ))?;
    let config = image(fixture, "requests", &format!("port={first} slow={slow}"))?;
    let guest = Domain::create(dom0, "requests", &config)?;
    let waited = guest.wait_for("meanwhile", PATIENCE);
    dom0.run(&format!("kill -CONT {server}"))?;
    waited?;
    guest.wait_for("afterwards", PATIENCE)?;
    guest.wait_for_end(PATIENCE)?;
    dom0.run(&format!("kill {server}"))?;
    Ok(said.insert(guest.console()?).clone())
}

/// The rest of the line that contains `what`.
fn line<'a>(said: &'a str, what: &str) -> Result<&'a str> {
    let line = said.lines().find_map(|line| line.split_once(what));
    Ok(line.with_context(|| format!("no {what:?} in {said}"))?.1)
}

fn linux_s_backend_never_answers_a_poll_of_an_unknown_socket(fixture: &Fixture) -> Result<()> {
    let said = requests(fixture)?;
    ensure!(line(&said, "POLL of an unknown socket: ")? == "no answer", "{said}");
    Ok(())
}

fn linux_s_backend_refuses_a_second_accept(fixture: &Fixture) -> Result<()> {
    let said = requests(fixture)?;
    ensure!(line(&said, "a second ACCEPT: ")?.contains("EINTR"), "{said}");
    Ok(())
}

fn linux_s_backend_loses_what_is_in_the_ring_at_release(fixture: &Fixture) -> Result<()> {
    let said = requests(fixture)?;
    let lost = line(&said, "RELEASE with a full ring: ")?;
    // Exactly the half of the ring for this direction.
    ensure!(lost.starts_with("32768 of ") && lost.ends_with("are lost"), "{said}");
    Ok(())
}

fn linux_s_backend_may_answer_a_connect_after_the_guest_timed_out(fixture: &Fixture) -> Result<()> {
    let said = requests(fixture)?;
    ensure!(line(&said, "a slow CONNECT: ")?.contains("ETIMEDOUT"), "{said}");
    ensure!(line(&said, "meanwhile: ")? == "over and over", "{said}");
    // The backend maps the ring long after the guest has abandoned it, and survives.
    ensure!(line(&said, "afterwards: ")? == "over and over", "{said}");
    Ok(())
}

fn linux_s_backend_gives_way_to_xensockd_again(fixture: &Fixture) -> Result<()> {
    let mut linux = OverLinux::get(fixture)?;
    let dom0 = fixture.lab()?;
    let guests = linux.0.take().context("the guests are gone")?;
    let ids = [guests.http.domain.id()?, guests.echo.domain.id()?];
    drop(guests);
    let gone = || {
        let left = dom0.exec("xenstore-list /local/domain/0/backend/pvcalls 2>/dev/null")?.text();
        Ok(!left.lines().any(|id| ids.contains(&id.parse().ok())))
    };
    wait_until("the guests' devices are gone", PATIENCE, gone)?;
    dom0.run("rmmod pvcalls_back && start-xensockd")?;
    let messages = dom0.run("dmesg")?;
    for bad in ["BUG:", "kernel BUG", "Oops", "WARNING:"] {
        ensure!(!messages.contains(bad), "{messages}");
    }
    let guest = Service::http(fixture)?;
    ensure!(guest.get("/healthz")?.0.contains("200"));
    Ok(())
}
