//! Two busy guests on two of the daemon's threads, and both on one.
//!
//! The threads, the placement of guests on them and the devices are the daemon's own. Guests, their
//! memory and the network are fakes within the process, and each thread has its own, as nothing is
//! shared. With a processor for each thread, two threads take half of the time of one.

#[path = "../tests/rig/mod.rs"]
mod rig;

use embedded_io_async::Write;
use futures_util::future::{join, join_all, select};
use rig::{DOM0, Guest, OPEN, back, backend, client, front, frontend};
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};
use xen::testing::{FakeStore, World};
use xen::{DomId, Errno, Flag};
use xen_linux::runtime::{Runtime, Spawner};
use xensock::testing::FakeNet;
use xensock::wire::Dialect;
use xensockd::counts::Counts;
use xensockd::finder::Finder;
use xensockd::threads::{Placement, Seat};

const GUESTS: [DomId; 2] = [DomId(1), DomId(2)];
/// Bytes that each guest sends.
const BYTES: usize = 256 << 20;
const CHUNK: usize = 64 << 10;
const ROUNDS: usize = 5;

fn main() {
    // Interleaved, so that other work on the machine slows both.
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (one, two) = (busy_guests(1), busy_guests(2));
            one.as_secs_f64() / two.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ROUNDS / 2];
    println!("two guests, speed on two threads / on one        {median:.2}");
}

/// How long all guests take on so many threads.
fn busy_guests(threads: usize) -> Duration {
    let placement = Placement::new(threads);
    let ready = Arc::new(Barrier::new(threads + 1));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let (seat, ready) = (placement.seat(thread), ready.clone());
                scope.spawn(move || serve(&seat, &ready))
            })
            .collect();
        ready.wait();
        let start = Instant::now();
        all.into_iter().for_each(|thread| thread.join().expect("a thread panicked"));
        start.elapsed()
    })
}

/// Serves, in one thread, the guests that it is to serve.
fn serve(seat: &Seat, ready: &Barrier) {
    let guests: Vec<_> =
        GUESTS.iter().filter_map(|guest| Some((*guest, seat.claim(*guest)?))).collect();
    let mut runtime = Runtime::new().expect("cannot start an event loop");
    let spawner = runtime.spawner().clone();
    let (world, tree, net) = (World::new(), FakeStore::new(), FakeNet::new());
    let stop = Rc::new(Flag::default());
    tree.add_domain(DOM0);
    let store = client(&tree, DOM0, &spawner);
    let counts = Counts::default();
    let backend =
        backend(DOM0, &world, store, net.clone(), rig::guests(OPEN), &counts, &stop, seat.clone());
    let mut finder = Finder::new(backend, &spawner, Dialect::PvCalls);
    let stopping = stop.clone();
    let finding = spawner.spawn(async move {
        select(pin!(finder.run()), pin!(stopping.raised())).await;
        finder.stopped().await;
    });
    let work = async {
        let frontends: Vec<_> =
            guests.iter().map(|(guest, _)| boot(&world, &tree, &spawner, *guest)).collect();
        join_all(frontends.iter().map(async |frontend| frontend.connected().await)).await;
        ready.wait();
        let transfers = frontends.iter().zip(9000..).map(async |(frontend, port)| {
            transfer(frontend, &net, port).await.expect("a transfer failed");
            frontend.shutdown().await;
        });
        join_all(transfers).await;
        stop.raise();
        finding.finished().await;
    };
    runtime.block_on(work).expect("the event loop failed");
}

fn boot(world: &World, tree: &FakeStore, spawner: &Spawner, guest: DomId) -> Guest {
    tree.add_domain(guest);
    tree.add_device((&front(guest), guest), (&back(guest), DOM0));
    let (frontend, driver) = frontend(world, client(tree, guest, spawner), guest);
    spawner.spawn(async move {
        driver.run().await;
    });
    frontend
}

/// From a guest to a peer that discards everything.
async fn transfer(guest: &Guest, net: &FakeNet, port: u16) -> Result<(), Errno> {
    let addr = ([127, 0, 0, 1], port).into();
    let server = net.listen(addr)?;
    let mut stream = guest.connect(addr).await?;
    let socket = server.accept().await;
    let sending = async {
        let chunk = vec![7; CHUNK];
        for _ in 0..BYTES / CHUNK {
            stream.write_all(&chunk).await?;
        }
        Ok::<_, Errno>(())
    };
    let receiving = async {
        let mut left = BYTES;
        while left > 0 {
            left -= socket.read_in_place(|some| some.len()).await?;
        }
        Ok(())
    };
    let (sent, received) = join(sending, receiving).await;
    sent.and(received)
}
