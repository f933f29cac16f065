//! A guest that serves to clients on the host.

use crate::fixture::{Fixture, cases};
use crate::service::{ECHO, HTTP, Held, InUse, Service, comes_back_to, pattern, rounds, sha256};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

cases![
    a_page_is_served_to_curl,
    twenty_parallel_downloads_have_the_right_digest,
    a_body_of_100_mb_has_the_right_digest,
    nc_gets_its_10_mb_echo_after_half_closing,
    hundreds_of_connections_leave_nothing_behind,
    a_guest_of_16_mb_serves,
    destroying_a_guest_in_mid_transfer_disturbs_no_other_guest,
];

fn a_page_is_served_to_curl(fixture: &Fixture) -> Result<()> {
    let guest = Service::http(fixture)?;
    let page = String::from_utf8(guest.curl(&["--include", &guest.url("/")])?)?;
    ensure!(page.starts_with("HTTP/1.1 200"), "{page}");
    ensure!(page.contains("<html") && page.contains("XenSock"), "{page}");
    let status = |arguments: &[&str], path: &str| -> Result<String> {
        let mut all = vec!["--output", "/dev/null", "--write-out", "%{http_code}"];
        all.extend(arguments);
        let url = guest.url(path);
        all.push(&url);
        Ok(String::from_utf8(guest.curl(&all)?)?)
    };
    ensure!(status(&[], "/nothing")? == "404");
    ensure!(status(&["--request", "DELETE"], "/")? == "405");
    ensure!(status(&[], "/bytes/many")? == "400");
    ensure!(status(&["--head"], "/bytes/1099511627776")? == "200");
    // The connection is used again.
    let url = guest.url("/healthz");
    let count = guest.curl(&["--write-out", "%{num_connects} ", &url, &url, &url])?;
    let count = String::from_utf8(count)?;
    ensure!(count.matches("1 ").count() == 1 && count.matches("0 ").count() == 2, "{count}");
    Ok(())
}

fn twenty_parallel_downloads_have_the_right_digest(fixture: &Fixture) -> Result<()> {
    let guest = Service::http(fixture)?;
    let wanted = sha256(&pattern(10_000_000));
    thread::scope(|scope| {
        let downloads: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| -> Result<String> {
                    Ok(sha256(&guest.curl(&[&guest.url("/bytes/10000000")])?))
                })
            })
            .collect();
        for download in downloads {
            let got = download.join().expect("a download's thread panicked")?;
            ensure!(got == wanted, "a download's digest is {got}, not {wanted}");
        }
        Ok(())
    })
}

fn a_body_of_100_mb_has_the_right_digest(fixture: &Fixture) -> Result<()> {
    let guest = Service::http(fixture)?;
    let body = pattern(100_000_000);
    let got = guest.sum(&body)?;
    ensure!(got == sha256(&body), "the guest says {got:?}");
    Ok(())
}

fn nc_gets_its_10_mb_echo_after_half_closing(fixture: &Fixture) -> Result<()> {
    let guest = Service::start(fixture, ECHO, "echo", "")?;
    let sent = pattern(10_000_000);
    let mut nc = Command::new("nc")
        .args(["-N", "-w", "120", "127.0.0.1", &guest.port.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = nc.stdin.take().context("nc has no input")?;
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            let result = input.write_all(&sent);
            drop(input);
            result
        });
        nc.wait_with_output()
    })?;
    ensure!(output.stdout.len() == sent.len(), "{} bytes came back", output.stdout.len());
    ensure!(output.stdout == sent, "the bytes that came back are not those that were sent");
    Ok(())
}

fn hundreds_of_connections_leave_nothing_behind(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    // The first connections fill pools.
    for _ in 0..3 {
        guest.get("/healthz")?;
    }
    let resources = || InUse::by(&guest, dom0);
    let before = InUse::at_rest(&guest, dom0)?;
    let heap = guest.metrics()?["heap_used_bytes"];

    for count in 0..100 * rounds()? {
        let (status, _) = guest.get("/healthz")?;
        ensure!(status.contains("200"), "connection {count}: {status}");
    }
    comes_back_to(&before, resources)?;

    // All connections are open before the first request.
    let mut open = Vec::new();
    for count in 0..200 {
        let stream = guest.connect().with_context(|| format!("connection {count}"))?;
        open.push(stream);
        // QEMU's forwarder queues a single connection; the next ones would wait a second to try
        // again.
        thread::sleep(Duration::from_millis(20));
    }
    for stream in &mut open {
        stream.write_all(b"GET /bytes/1000 HTTP/1.1\r\nHost: guest\r\n\r\n")?;
    }
    for (count, stream) in open.iter_mut().enumerate() {
        let answer = exactly_one_answer(stream).with_context(|| format!("connection {count}"))?;
        ensure!(answer == pattern(1000), "connection {count} got {} bytes", answer.len());
    }
    ensure!(guest.metrics()?["sockets_open"] >= 200, "they were not open at once");
    for stream in &open {
        stream.shutdown(Shutdown::Both)?;
    }
    comes_back_to(&before, resources)?;
    // Timers keep a little memory of ended connections until the time limit. A leak of 200 bytes
    // for each of 400 connections would show.
    let heap_is_back = || Ok(guest.metrics()?["heap_used_bytes"] < heap + (64 << 10));
    comes_back_to(&true, heap_is_back).context("the heap")?;
    Ok(())
}

/// Reads a body of 1,000 bytes and its head, and leaves the connection open.
fn exactly_one_answer(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let mut body = vec![0; 1000];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn a_guest_of_16_mb_serves(fixture: &Fixture) -> Result<()> {
    let guest = Service::start(fixture, HTTP, "http", "memory = 16")?;
    let (status, page) = guest.get("/")?;
    ensure!(status.contains("200") && !page.is_empty(), "{status}");
    let (_, bytes) = guest.get("/bytes/1000003")?;
    ensure!(bytes == pattern(1_000_003), "{} bytes came", bytes.len());
    Ok(())
}

fn destroying_a_guest_in_mid_transfer_disturbs_no_other_guest(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let before = Held::by_backend(dom0)?;
    let steady = Service::http(fixture)?;
    let doomed = Service::http(fixture)?;
    let (mut kept, mut cut) = (steady.connect()?, doomed.connect()?);
    for stream in [&mut kept, &mut cut] {
        stream.write_all(b"GET /bytes/20000000 HTTP/1.0\r\n\r\n")?;
        stream.read_exact(&mut [0; 1000])?;
    }
    doomed.domain.destroy();
    let mut lost = Vec::new();
    // An error or an early end is fine, but the transfer must not look complete.
    let _ = cut.read_to_end(&mut lost);
    ensure!(lost.len() < 20_000_000, "the transfer went on without its guest");
    let mut rest = Vec::new();
    kept.read_to_end(&mut rest)?;
    let all = pattern(20_000_000);
    ensure!(rest.len() > 19_000_000 && all.ends_with(&rest[1000..]), "{} bytes came", rest.len());
    ensure!(steady.get("/healthz")?.0.contains("200"));
    steady.domain.destroy();
    comes_back_to(&before, || Held::by_backend(dom0))
}
