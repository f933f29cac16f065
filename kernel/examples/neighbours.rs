//! Two guests that share pages and an event channel: with the command line `grant`, one grants;
//! with `map`, the other one maps. They meet in xenstore.
//!
//! dom0 writes an order to each guest's node `data/order`: the other guest's number, a task, and a
//! number that both orders have in common.
//!
//! | task | |
//! |---|---|
//! | `exchange` | all that can be done with shared pages, and at the end nothing is shared |
//! | `hold` | the pages stay mapped until the next order |
//! | `rest` | nothing |
//! | `refuse` | the other guest is gone: what it offered cannot be mapped or bound any more |
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "gives back pages that it granted")]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Display;
use core::sync::atomic::Ordering::{Acquire, Release};
use embassy_time::{Instant, Timer};
use kernel::System;
use kernel::hypercall;
use kernel::machine::{Domain, ForeignPages, ForeignPort};
use xen::xenbus::read_number;
use xen::xenstore::{Access, Permission, Watch};
use xen::{
    Channel, DomId, Errno, GrantRef, Machine, Mapping, Neighbour, PAGE_SIZE, Pages, Port, Shared,
    Side, Signal,
};

kernel::entry!(main);

/// One page of words, and the largest data ring's.
const PAGES: usize = 513;
/// The events of an exchange, in each direction.
const ROUNDS: u32 = 200;
/// Words of the first page: the number of rounds that the granter and the mapper have begun.
const TURNS: [usize; 2] = [0, 64];

const ORDER: &str = "data/order";
const SAID: &str = "data/said";

/// The error of a task, as a text.
type Outcome<T = ()> = Result<T, String>;

async fn main(system: System) -> Outcome {
    let grants = system.command_line() == b"grant";
    let mut orders = system.store().watch(ORDER).await.map_err(failed("watch"))?;
    let mut order = Order::next(&system, &mut orders, 0).await?;
    // The last pages that were offered.
    let mut offer = None;
    loop {
        let guest = Guest { system: &system, domain: system.domain(), order: order.clone() };
        let before = guest.in_use();
        {
            let next = Order::next(&system, &mut orders, order.number);
            match order.task.as_str() {
                "exchange" if grants => guest.grant_and_exchange().await?,
                "exchange" => guest.map_and_exchange().await?,
                "hold" if grants => guest.grant_until(next).await?,
                "hold" => offer = Some(guest.map_until(next).await?),
                "refuse" => guest.is_refused(offer.take().ok_or("nothing was held")?)?,
                "rest" => {}
                other => return Err(format!("the task {other} is unknown")),
            }
        }
        expect("grants, foreign pages and ports in use", guest.in_use(), before)?;
        let free = system.snapshot().free_pages;
        log::info!("{} {} is done; {free} pages are free", order.task, order.number);
        order = Order::next(&system, &mut orders, order.number).await?;
    }
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

fn expect<T: PartialEq + core::fmt::Debug>(what: &str, got: T, wanted: T) -> Outcome {
    if got == wanted { Ok(()) } else { Err(format!("{what}: {got:?} and not {wanted:?}")) }
}

/// What dom0 asks for.
#[derive(Clone)]
struct Order {
    peer: DomId,
    task: String,
    number: u32,
}

impl Order {
    /// Waits for an order with another number than `last`.
    async fn next(system: &System, changes: &mut Watch, last: u32) -> Outcome<Order> {
        loop {
            let text = system.store().read_string(ORDER).await.unwrap_or_default();
            let mut words = text.split(' ');
            if let (Some(peer), Some(task), Some(number)) =
                (words.next(), words.next(), words.next())
            {
                let peer = DomId(peer.parse().map_err(failed(ORDER))?);
                let number = number.parse().map_err(failed(ORDER))?;
                if number != last {
                    return Ok(Order { peer, task: task.to_string(), number });
                }
            }
            changes.next().await;
        }
    }
}

/// Pages and a port, as the granter offers them.
#[derive(Clone)]
struct Offer {
    port: Port,
    refs: Vec<GrantRef>,
}

/// The granter's end.
struct Granted {
    pages: Pages,
    refs: Vec<GrantRef>,
    port: Port,
    signal: Arc<Signal>,
}

/// The mapper's end.
struct Mapped {
    pages: ForeignPages,
    channel: ForeignPort,
    signal: Arc<Signal>,
}

struct Guest<'s> {
    system: &'s System,
    domain: Domain,
    order: Order,
}

impl Guest<'_> {
    fn in_use(&self) -> [u64; 3] {
        let now = self.system.snapshot();
        [now.grants_in_use, now.foreign_pages, now.ports_open]
    }

    /// Shows the other guest a word and what belongs to it.
    async fn say(&self, word: &str, rest: &str) -> Outcome {
        let text = format!("{} {word} {rest}", self.order.number);
        let said = self.system.store().transact(async |nodes| {
            let own = DomId(read_number(nodes, "domid").await?);
            nodes.write(SAID, &text).await?;
            let permissions = [
                Permission { access: Access::None, domain: own },
                Permission { access: Access::Read, domain: self.order.peer },
            ];
            nodes.set_permissions(SAID, &permissions).await
        });
        said.await.map_err(failed(word))
    }

    /// Waits until the other guest shows this word, and returns what belongs to it.
    async fn hear(&self, word: &str) -> Outcome<String> {
        let (node, start) = (
            format!("/local/domain/{}/{SAID}", self.order.peer),
            format!("{} {word} ", self.order.number),
        );
        let mut changes = self.system.store().watch(&node).await.map_err(failed(word))?;
        loop {
            let text = self.system.store().read_string(&node).await.unwrap_or_default();
            if let Some(rest) = text.strip_prefix(&start) {
                return Ok(rest.to_string());
            }
            changes.next().await;
        }
    }

    /// Grants new pages, and offers them in an order of their own.
    async fn offer(&self) -> Outcome<Granted> {
        let (domain, peer) = (&self.domain, self.order.peer);
        let pages = domain.alloc(PAGES).map_err(failed("pages"))?;
        let refs = (0..PAGES).map(|page| domain.grant(peer, &pages, page));
        let refs = refs.collect::<Result<Vec<_>, _>>().map_err(failed("grants"))?;
        let signal = Arc::new(Signal::new());
        let port = domain.open_port(peer, signal.clone()).map_err(failed("port"))?;
        (0..PAGES).for_each(|page| fill(pages.shared(), page, page, 1));
        let mut offer = port.0.to_string();
        for place in 0..PAGES {
            offer += &format!(" {}", refs[offered(place)].0);
        }
        self.say("offer", &offer).await?;
        Ok(Granted { pages, refs, port, signal })
    }

    /// What the other guest offers.
    async fn offered(&self) -> Outcome<Offer> {
        let text = self.hear("offer").await?;
        let mut numbers = text.split(' ').map(|word| word.parse().map_err(failed("the offer")));
        let port = Port(numbers.next().ok_or("the offer has no port")??);
        let refs = numbers.map(|number| number.map(GrantRef)).collect::<Result<_, _>>()?;
        Ok(Offer { port, refs })
    }

    /// Maps the pages of an offer, with one hypercall, and checks what is in them.
    fn map(&self, refs: &[GrantRef], fills: u32) -> Outcome<ForeignPages> {
        let (calls, start) = (hypercall::calls(), Instant::now());
        let pages = self.domain.map(self.order.peer, refs).map_err(failed("map"))?;
        let calls = hypercall::calls() - calls;
        log::info!("{} pages mapped: {calls} hypercall, {} us", refs.len(), us(start));
        (1..PAGES).try_for_each(|place| holds(pages.shared(), place, offered(place), fills))?;
        Ok(pages)
    }

    /// Unmaps pages.
    fn unmap(&self, pages: ForeignPages) {
        let (calls, start) = (hypercall::calls(), Instant::now());
        drop(pages);
        let calls = hypercall::calls() - calls;
        log::info!("{PAGES} pages unmapped: {calls} hypercall, {} us", us(start));
    }

    fn bind(&self, offer: &Offer, pages: ForeignPages) -> Outcome<Mapped> {
        let signal = Arc::new(Signal::new());
        let channel = self.domain.bind_port(self.order.peer, offer.port, signal.clone());
        Ok(Mapped { pages, channel: channel.map_err(failed("bind"))?, signal })
    }

    /// Ends all grants, frees the pages and closes the port.
    async fn withdraw(&self, mut granted: Granted) -> Outcome {
        // The other guest may be about to end.
        while let Some(grant) = granted.refs.last() {
            match self.domain.revoke(*grant) {
                Ok(()) => drop(granted.refs.pop()),
                Err(Errno::EBUSY) => Timer::after_millis(10).await,
                Err(error) => return Err(format!("revoke: {error}")),
            }
        }
        // SAFETY: all grants were revoked.
        unsafe { self.domain.free(granted.pages) };
        self.domain.close_port(granted.port);
        Ok(())
    }

    async fn grant_and_exchange(&self) -> Outcome {
        let mut granted = self.offer().await?;
        let words = granted.pages.shared();
        for round in 1..=ROUNDS {
            words.store_u32(TURNS[0], round, Release);
            self.domain.notify(granted.port);
            let answered = || (words.load_u32(TURNS[1], Acquire) >= round).then_some(());
            granted.signal.until(Side::Rx, answered).await;
        }
        self.hear("written").await?;
        (1..PAGES).try_for_each(|page| holds(granted.pages.shared(), page, page, 2))?;
        for grant in &granted.refs {
            expect("revoke while mapped", self.domain.revoke(*grant), Err(Errno::EBUSY))?;
        }
        self.say("busy", "").await?;
        self.hear("unmapped").await?;
        // One page is missing now.
        let gone = granted.refs.remove(offered(300));
        self.domain.revoke(gone).map_err(failed("revoke"))?;
        self.say("incomplete", "").await?;
        self.hear("refused").await?;
        for grant in core::mem::take(&mut granted.refs) {
            self.domain.revoke(grant).map_err(failed("revoke after it was unmapped"))?;
        }
        self.withdraw(granted).await
    }

    async fn map_and_exchange(&self) -> Outcome {
        let offer = self.offered().await?;
        let mapped = self.bind(&offer, self.map(&offer.refs, 1)?)?;
        let (words, start) = (mapped.pages.shared(), Instant::now());
        for round in 1..=ROUNDS {
            let asked = || (words.load_u32(TURNS[0], Acquire) >= round).then_some(());
            mapped.signal.until(Side::Rx, asked).await;
            words.store_u32(TURNS[1], round, Release);
            mapped.channel.notify();
        }
        log::info!("{ROUNDS} events in each direction: {} us", us(start));
        (1..PAGES).for_each(|place| fill(mapped.pages.shared(), place, offered(place), 2));
        self.say("written", "").await?;
        self.hear("busy").await?;
        self.unmap(mapped.pages);
        self.unmap(self.map(&offer.refs, 2)?);
        self.say("unmapped", "").await?;
        self.hear("incomplete").await?;
        let refused = self.domain.map(self.order.peer, &offer.refs).err();
        expect("map an incomplete offer", refused, Some(Errno::EINVAL))?;
        self.say("refused", "").await
    }

    async fn grant_until(&self, next: impl Future<Output = Outcome<Order>>) -> Outcome {
        let granted = self.offer().await?;
        next.await?;
        self.withdraw(granted).await
    }

    /// Holds pages that the other guest offers until the next order, and returns the offer.
    async fn map_until(&self, next: impl Future<Output = Outcome<Order>>) -> Outcome<Offer> {
        let offer = self.offered().await?;
        let mapped = self.bind(&offer, self.map(&offer.refs, 1)?)?;
        log::info!("the pages of {} are held", self.order.peer);
        let next = next.await?;
        let pages = mapped.pages.shared();
        let read = (1..PAGES).try_for_each(|place| holds(pages, place, offered(place), 1));
        fill(pages, 1, offered(1), 2);
        let written = holds(pages, 1, offered(1), 2);
        mapped.channel.notify();
        let shown = |outcome: Outcome| outcome.err().unwrap_or_else(|| "right".to_string());
        log::info!("held until {}: read {}, written {}", next.task, shown(read), shown(written));
        self.unmap(mapped.pages);
        Ok(offer)
    }

    fn is_refused(&self, offer: Offer) -> Outcome {
        let map = self.domain.map(self.order.peer, &offer.refs).err();
        let port = self.domain.bind_port(self.order.peer, offer.port, Arc::default()).err();
        expect("both are refused", (map, port), (Some(Errno::ESRCH), Some(Errno::ESRCH)))
    }
}

fn us(since: Instant) -> u64 {
    since.elapsed().as_micros()
}

/// The page that is offered in this place. The first one is the first.
fn offered(place: usize) -> usize {
    place * 5 % PAGES
}

/// What a page is filled with: other words in each page, and each time.
fn content(page: usize, time: u32) -> Vec<u8> {
    let word = |index| time << 24 | (page as u32) << 12 | index;
    (0..PAGE_SIZE as u32 / 4).flat_map(|index| word(index).to_le_bytes()).collect()
}

fn fill(pages: Shared<'_>, place: usize, page: usize, time: u32) {
    // The first page has words of its own.
    if page > 0 {
        pages.slice(place * PAGE_SIZE, PAGE_SIZE).write(0, &content(page, time));
    }
}

fn holds(pages: Shared<'_>, place: usize, page: usize, time: u32) -> Outcome {
    let mut bytes = vec![0; PAGE_SIZE];
    pages.slice(place * PAGE_SIZE, PAGE_SIZE).read(0, &mut bytes);
    let wrong = content(page, time).iter().zip(&bytes).position(|(wanted, got)| wanted != got);
    wrong.map_or(Ok(()), |at| Err(format!("page {page} has {:#x} at {at}", bytes[at])))
}
