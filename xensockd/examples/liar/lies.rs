//! The lies, each with the guest's correct reaction.

use crate::backend::{Client, Connected, Failure, Liar};
use clap::ValueEnum;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use xen::Errno;
use xen::xenbus::State;
use xen_linux::runtime::timeout;
use xensock::wire::{Command, Response};

/// The producer's index of responses in the command ring's page (`ring.h`).
const RSP_PROD: usize = 8;

/// The duration of a lie that is repeated.
const LONG: Duration = Duration::from_secs(1);

/// The kinds of lies.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Lie {
    /// A response to a request that was never made
    WrongId,
    /// A response with another command than the request's
    WrongCommand,
    /// A response with another socket than the request's
    WrongSocket,
    /// Two responses to the same request
    Twice,
    /// More responses than requests
    TooManyAnswers,
    /// Fewer responses than before
    AnswersTakenBack,
    /// Random bytes in the whole command ring
    RingOfGarbage,
    /// More data in a ring than it holds
    InTooFar,
    /// Data that is taken back
    InTakenBack,
    /// More bytes read from a ring than were written
    OutTooFar,
    /// A data ring's index that changes all the time
    InFlickers,
    /// Random bytes in a data ring's indexes page, repeatedly
    IndexesOfGarbage,
    /// Error words that are not error numbers
    OddErrors,
    /// As many events as possible, on the command ring and on a connection
    Storm,
    /// An ACCEPT that is answered without a connection, repeatedly
    EmptyAccepts,
    /// A ring that stays mapped although its connection failed
    KeepsPages,
    /// No response to any request
    Silence,
    /// The state Connected, before the frontend's nodes were read
    ConnectedAtOnce,
    /// A state that does not exist
    NoState,
    /// A protocol version that does not exist
    NoVersion,
    /// A ring order that is not a number
    NoOrder,
    /// An extension's node that is neither 0 nor 1
    NoFeature,
}

/// Tells a lie.
pub async fn tell(lie: Lie, liar: Liar<'_>) -> Result<(), Failure> {
    match lie {
        Lie::ConnectedAtOnce => connected_at_once(liar).await,
        Lie::NoState => no_state(liar).await,
        Lie::NoVersion => nonsense(liar, &[("versions", "2,3")]).await,
        Lie::NoOrder => nonsense(liar, &[("max-page-order", "many")]).await,
        Lie::NoFeature => nonsense(liar, &[("feature-names", "perhaps")]).await,
        lie => tell_connected(lie, liar.connect().await?).await,
    }
}

async fn tell_connected(lie: Lie, mut backend: Connected<'_>) -> Result<(), Failure> {
    match lie {
        Lie::WrongId => wrong(backend, |answer| answer.id += 1000).await,
        Lie::WrongCommand => wrong(backend, |answer| answer.command = Command::Bind).await,
        Lie::WrongSocket => wrong(backend, |answer| answer.socket ^= 1 << 40).await,
        Lie::Twice => {
            // Of two waiting requests, one is answered twice and the other never.
            let accept = backend.until_accept().await?;
            let first = backend.map(&accept)?;
            backend.answer(accept.answer(Ok(0)));
            let second = backend.until_accept().await?;
            backend.answer(accept.answer(Ok(0)));
            drop((first, second));
            backend.leave().await
        }
        Lie::TooManyAnswers => {
            backend.until_accept().await?;
            let now = backend.page().load_u32(RSP_PROD, Ordering::Relaxed);
            backend.page().store_u32(RSP_PROD, now.wrapping_add(1000), Ordering::Release);
            backend.notify();
            backend.until_closed().await
        }
        Lie::AnswersTakenBack => {
            backend.until_accept().await?;
            let now = backend.page().load_u32(RSP_PROD, Ordering::Relaxed);
            backend.page().store_u32(RSP_PROD, now.wrapping_sub(2), Ordering::Release);
            backend.notify();
            backend.until_closed().await
        }
        Lie::RingOfGarbage => {
            backend.until_accept().await?;
            fill(backend.page(), 1);
            backend.notify();
            backend.until_closed().await
        }
        Lie::InTooFar => {
            indexes(backend, |client| {
                let direction = client.layout.input;
                client.region().indexes.store_u32(
                    direction.prod,
                    direction.size + 1,
                    Ordering::Release,
                );
            })
            .await
        }
        Lie::InTakenBack => {
            indexes(backend, |client| {
                let direction = client.layout.input;
                client.region().indexes.store_u32(direction.prod, u32::MAX, Ordering::Release);
            })
            .await
        }
        Lie::OutTooFar => {
            indexes(backend, |client| {
                let direction = client.layout.output;
                client.region().indexes.store_u32(direction.cons, 1 << 30, Ordering::Release);
                // The guest reads the index when it has something to send.
                let _ = client.say("GET / HTTP/1.1\r\nHost: guest\r\n\r\n");
            })
            .await
        }
        Lie::InFlickers => {
            let mut client = backend.connection().await?;
            client.say("GET / HTTP/1.1\r\n")?;
            let direction = client.layout.input;
            let start = Instant::now();
            let mut index = 0u32;
            while start.elapsed() < LONG {
                index = index.wrapping_add(977);
                let value = index & (2 * direction.size - 1);
                client.region().indexes.store_u32(direction.prod, value, Ordering::Release);
                client.notify();
                backend.sleep(Duration::ZERO).await;
            }
            backend.until_release(client.id).await?;
            backend.leave().await
        }
        Lie::IndexesOfGarbage => {
            let client = backend.connection().await?;
            let start = Instant::now();
            let mut seed = 7;
            while start.elapsed() < LONG {
                seed += 1;
                fill(client.region().indexes, seed);
                client.notify();
                backend.sleep(Duration::ZERO).await;
            }
            backend.until_release(client.id).await?;
            backend.leave().await
        }
        Lie::OddErrors => {
            for word in [i32::MIN, -1, 1, 12345, i32::MAX] {
                let client = backend.connection().await?;
                let (input, output) = (client.layout.input, client.layout.output);
                let page = client.region().indexes;
                page.store_u32(output.error, word as u32, Ordering::Release);
                page.store_u32(input.error, word as u32, Ordering::Release);
                client.notify();
                backend.until_release(client.id).await?;
            }
            backend.leave().await
        }
        Lie::Storm => storm(backend).await,
        Lie::EmptyAccepts => {
            let start = Instant::now();
            let mut count = 0u32;
            while start.elapsed() < LONG {
                let accept = backend.until_accept().await?;
                backend.answer(accept.answer(Err(Errno::EMFILE)));
                count += 1;
            }
            // A guest that retries at once would have sent thousands of ACCEPTs.
            if count > 1000 {
                return Err(Failure(format!("the guest sent {count} ACCEPTs in {LONG:?}")));
            }
            backend.leave().await
        }
        Lie::KeepsPages => keeps_pages(backend).await,
        Lie::Silence => {
            let reactor = backend.liar.host.sockets.reactor();
            let requests = async {
                loop {
                    backend.next().await?;
                }
            };
            match timeout(reactor, LONG, requests).await {
                Some(failed) => failed,
                None => backend.leave().await,
            }
        }
        _ => Err(Failure("this lie comes before the connection".to_string())),
    }
}

/// Pseudo-random bytes.
fn fill(page: xen::Shared<'_>, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for at in (0..page.len()).step_by(4) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page.store_u32(at, state as u32, Ordering::Relaxed);
    }
}

/// A response with one wrong field: the guest ignores it and continues to wait.
async fn wrong(mut backend: Connected<'_>, spoil: impl Fn(&mut Response)) -> Result<(), Failure> {
    let accept = backend.until_accept().await?;
    let mut answer = accept.answer(Ok(0));
    spoil(&mut answer);
    backend.answer(answer);
    backend.sleep(Duration::from_millis(300)).await;
    backend.leave().await
}

/// Impossible indexes: the guest closes that socket, and accepts another connection.
async fn indexes(mut backend: Connected<'_>, spoil: impl Fn(&mut Client)) -> Result<(), Failure> {
    let mut client = backend.connection().await?;
    spoil(&mut client);
    client.notify();
    backend.until_release(client.id).await?;
    let mut next = backend.connection().await?;
    next.get("/healthz", "ok").await?;
    backend.leave().await
}

/// The guest continues to serve during a flood of events.
async fn storm(mut backend: Connected<'_>) -> Result<(), Failure> {
    let mut client = backend.connection().await?;
    let (mut events, mut pages) = (0u64, 0u32);
    let start = Instant::now();
    while start.elapsed() < LONG || pages < 3 {
        {
            let mut getting = std::pin::pin!(client.get("/healthz", "ok"));
            loop {
                for _ in 0..100 {
                    backend.notify();
                }
                events += 100;
                let reactor = backend.liar.host.sockets.reactor();
                if let Some(page) = timeout(reactor, Duration::ZERO, getting.as_mut()).await {
                    page?;
                    pages += 1;
                    break;
                }
            }
        }
        for _ in 0..1000 {
            client.notify();
        }
        events += 1000;
    }
    println!("storm: {events} events, {pages} pages served");
    backend.leave().await
}

/// The guest keeps pages in quarantine until they are unmapped, and continues to serve with others.
async fn keeps_pages(mut backend: Connected<'_>) -> Result<(), Failure> {
    let accept = backend.until_accept().await?;
    let kept = backend.map(&accept)?;
    backend.answer(accept.answer(Err(Errno::EMFILE)));
    let quarantined = |page: &str| -> Result<usize, Failure> {
        let line = page.lines().find_map(|line| line.strip_prefix("xensock_quarantined_pages "));
        line.and_then(|number| number.trim().parse().ok())
            .ok_or_else(|| Failure(format!("the page has no number of quarantined pages: {page}")))
    };
    let mut client = backend.connection().await?;
    const LAST: &str = "xensock_app_sent_bytes_total ";
    let count = quarantined(&client.get("/metrics", LAST).await?)?;
    if count != kept.pages {
        return Err(Failure(format!("{count} pages are in quarantine, {} are mapped", kept.pages)));
    }
    drop(kept);
    loop {
        backend.sleep(Duration::from_millis(200)).await;
        // A page can end in the middle of a line; the rest belongs to the next page.
        if quarantined(&client.get("/metrics", LAST).await?)? == 0 {
            return backend.leave().await;
        }
    }
}

async fn connected_at_once(liar: Liar<'_>) -> Result<(), Failure> {
    let (_, mut front) = liar.front().await?;
    liar.write_nodes(&[]).await?;
    liar.say(State::InitWait).await?;
    front.wait_for(|state| state == State::Initialised).await?;
    // It has mapped nothing, so it cannot answer. Then it closes.
    liar.say(State::Connected).await?;
    front.wait_for(|state| state == State::Connected).await?;
    liar.say(State::Closed).await?;
    front.wait_for(|state| state == State::Closed).await?;
    Ok(())
}

async fn no_state(liar: Liar<'_>) -> Result<(), Failure> {
    let (store, node) = (liar.store.clone(), format!("{}/state", liar.path));
    let mut backend = liar.connect().await?;
    backend.until_accept().await?;
    store.write(&node, "banana").await?;
    backend.until_closed().await
}

/// Invalid nodes: the guest waits for a better backend.
async fn nonsense(liar: Liar<'_>, lies: &[(&str, &str)]) -> Result<(), Failure> {
    liar.write_nodes(lies).await?;
    let (_, mut front) = liar.front().await?;
    liar.say(State::InitWait).await?;
    front.wait_for(|state| state == State::Initialising).await?;
    // The guest reads the nodes again every two seconds.
    let believed = front.wait_for(|state| state == State::Initialised);
    if timeout(liar.host.sockets.reactor(), LONG * 4, believed).await.is_some() {
        return Err(Failure("the guest accepted the invalid node".to_string()));
    }
    for (name, _) in lies {
        let _ = liar.store.rm(&format!("{}/{name}", liar.path)).await;
    }
    liar.say(State::Closed).await?;
    Ok(())
}
