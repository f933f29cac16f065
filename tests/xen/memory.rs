//! A guest's memory: its size, the balloon, and too many connections for it.

use crate::boot::id;
use crate::fixture::{Fixture, cases};
use crate::images::image;
use crate::service::{HTTP, PATIENCE, Service, comes_back_to, pattern};
use anyhow::{Context, Result, ensure};
use lab::Domain;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

cases![
    a_guest_of_8_mib_serves,
    a_guest_of_4_gib_has_all_of_it,
    memory_beyond_the_target_is_given_back_before_it_is_touched,
    mem_set_takes_memory_and_gives_it_back,
    a_guest_of_8_mib_survives_300_connections_at_once,
];

/// Whether a test needs a machine with more memory than other tests.
pub fn needs_large_machine(name: &str) -> bool {
    name.ends_with("a_guest_of_4_gib_has_all_of_it")
}

const PAGES_PER_MIB: u64 = 256;

/// The pages of the image itself and of the loader's tables.
const IMAGE: u64 = 3 * PAGES_PER_MIB;

fn a_guest_of_8_mib_serves(fixture: &Fixture) -> Result<()> {
    let guest = Service::start(fixture, HTTP, "http", "memory = 8")?;
    let (status, bytes) = guest.get("/bytes/1000003")?;
    ensure!(status.contains("200") && bytes == pattern(1_000_003), "{status}: {}", bytes.len());
    ensure!(guest.get("/")?.0.contains("200"));
    Ok(())
}

/// A guest that touches all of its free memory.
struct Toucher {
    guest: Domain,
    turns: u32,
}

/// The pages that it found.
struct Touched {
    right: u64,
    high: u64,
}

impl Toucher {
    fn start(fixture: &Fixture, settings: &str) -> Result<Toucher> {
        let config = image(fixture, "memory", "log=debug")? + settings;
        Ok(Toucher { guest: Domain::create(fixture.lab()?, "toucher", &config)?, turns: 0 })
    }

    /// Makes it touch all its memory, and reads its report.
    fn touch(&mut self, fixture: &Fixture) -> Result<Touched> {
        if self.turns > 0 {
            let node = format!("/local/domain/{}/data/touch", id(&self.guest)?);
            fixture.lab()?.run(&format!("xenstore-write {node} {}", self.turns))?;
        }
        let line = self.guest.wait_for(&format!("turn {}: ", self.turns), PATIENCE)?;
        self.turns += 1;
        let number = |name: &str| -> Result<u64> {
            let rest = line.split_once(name).with_context(|| format!("no {name} in {line}"))?.1;
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            Ok(digits.parse()?)
        };
        ensure!(number("wrong: ")? == 0, "{line}");
        let (right, high) = (number("right: ")?, number("high: ")?);
        ensure!(line.ends_with(&format!("of {right} pages")), "{line}");
        Ok(Touched { right, high })
    }

    /// Sets its memory, in MiB.
    fn set(&self, fixture: &Fixture, mib: u64) -> Result<()> {
        fixture.lab()?.run(&format!("xl mem-set {} {mib}", self.guest.name())).map(drop)
    }

    /// Waits until it has given back `mib` MiB of its maximum.
    fn gives_back(&self, mib: u64) -> Result<()> {
        let line = format!("memory given back to Xen: {} KiB", mib * 1024);
        self.guest.wait_for(&line, PATIENCE).map(drop)
    }
}

fn a_guest_of_4_gib_has_all_of_it(fixture: &Fixture) -> Result<()> {
    let touched = Toucher::start(fixture, "memory = 4096\n")?.touch(fixture)?;
    let all = 4096 * PAGES_PER_MIB;
    ensure!(touched.right < all && touched.right > all - IMAGE, "{} pages", touched.right);
    // The special pages below 4 GiB move some memory above it.
    ensure!(touched.high > 0, "nothing above 4 GiB");
    Ok(())
}

fn memory_beyond_the_target_is_given_back_before_it_is_touched(fixture: &Fixture) -> Result<()> {
    let mut guest = Toucher::start(fixture, "memory = 32\nmaxmem = 200\n")?;
    let touched = guest.touch(fixture)?.right;
    let all = 32 * PAGES_PER_MIB;
    ensure!(touched < all && touched > all - IMAGE, "{touched} pages");
    // Exactly the toolstack's target, to the page.
    guest.gives_back(168)?;
    ensure!(guest.touch(fixture)?.right >= touched);
    // The guest can now have its maximum.
    guest.set(fixture, 200)?;
    guest.gives_back(0)?;
    let touched = guest.touch(fixture)?.right;
    ensure!(touched > 200 * PAGES_PER_MIB - IMAGE, "{touched} pages");
    Ok(())
}

fn mem_set_takes_memory_and_gives_it_back(fixture: &Fixture) -> Result<()> {
    let lab = fixture.lab()?;
    let mut guest = Toucher::start(fixture, "memory = 64\n")?;
    let before = guest.touch(fixture)?.right;
    guest.set(fixture, 24)?;
    guest.gives_back(40)?;
    ensure!(guest.touch(fixture)?.right == before - 40 * PAGES_PER_MIB);
    let pages = || -> Result<u64> {
        let line = lab.run(&format!("xl list {} | tail -n 1", guest.guest.name()))?;
        let mib = line.split_whitespace().nth(2).with_context(|| line.clone())?;
        Ok(mib.parse()?)
    };
    ensure!(pages()? == 24, "Xen says {} MiB", pages()?);

    // A target below the possible minimum: the guest gives what it can, and reports a reason.
    let node = format!("/local/domain/{}/data/balloon-error", id(&guest.guest)?);
    guest.set(fixture, 1)?;
    guest.guest.wait_for("the target of 1024 KiB: ", PATIENCE)?;
    comes_back_to(&true, || {
        let said = lab.exec(&format!("xenstore-read {node}"))?.text();
        Ok(said.contains("1024 KiB") && said.contains("2048 KiB that the guest keeps"))
    })?;
    let kept = guest.touch(fixture)?.right;
    ensure!((500..600).contains(&kept), "{kept} pages are left");

    guest.set(fixture, 64)?;
    guest.gives_back(0)?;
    ensure!(guest.touch(fixture)?.right == before);
    comes_back_to(&false, || Ok(lab.exec(&format!("xenstore-exists {node}"))?.status == 0))
}

fn a_guest_of_8_mib_survives_300_connections_at_once(fixture: &Fixture) -> Result<()> {
    // The limit allows more connections than fit into its memory.
    let guest = Service::start(fixture, HTTP, "http max-connections=1000", "memory = 8")?;
    let at_rest = || -> Result<(u64, u64)> {
        let numbers = guest.metrics()?;
        // Without the rings that are kept for new connections.
        let pages = numbers["free_pages"] + numbers["heap_total_bytes"] / 4096;
        Ok((pages, numbers["heap_used_bytes"]))
    };
    let (pages, heap) = at_rest()?;
    let requests = [
        "GET /metrics HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: guest\r\nX: {}\r\n\r\n", "x".repeat(20_000)),
        format!("GET /{} HTTP/1.1\r\nHost: guest\r\n\r\n", "x".repeat(20_000)),
        "GET /bytes/300000 HTTP/1.0\r\n\r\n".to_owned(),
    ];
    let mut open = Vec::new();
    for count in 0..300 {
        open.push(guest.connect().with_context(|| format!("connection {count}"))?);
        // QEMU's forwarder queues a single connection; the next ones would wait a second to try
        // again.
        thread::sleep(Duration::from_millis(20));
    }
    let served = thread::scope(|scope| {
        let clients = open.into_iter().zip(requests.iter().cycle()).map(|(mut stream, request)| {
            scope.spawn(move || {
                let mut answer = Vec::new();
                // An error means that the guest closed the connection.
                let _ = stream.write_all(request.as_bytes());
                let _ = stream.read_to_end(&mut answer);
                answer.starts_with(b"HTTP/1.1 ")
            })
        });
        let clients: Vec<_> = clients.collect();
        clients.into_iter().filter_map(|client| client.join().ok()).filter(|served| *served).count()
    });
    ensure!(served > 30, "{served} were served");
    ensure!(guest.get("/bytes/1000003")?.1 == pattern(1_000_003));
    let numbers = guest.metrics()?;
    ensure!(numbers["free_pages_least"] < pages / 2, "there was memory for all: {numbers:?}");
    comes_back_to(&true, || {
        let (now, used) = at_rest()?;
        // The pool has at most 1024 pages.
        let kept = guest.metrics()?["ring_pages"] + 1024;
        Ok(now + kept >= pages && used < heap + (64 << 10))
    })
    .with_context(|| format!("{served} were served"))
}
