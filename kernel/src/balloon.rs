//! The balloon: gives free pages back to Xen, takes them again, and so keeps the guest's memory
//! at the toolstack's target (`xl mem-set`).
//!
//! All memory stays mapped. Nobody has the address of pages that were given back: they came from
//! the [free pages](crate::memory::pages), or were cut off before there were any.

use crate::hypercall::Xen;
use crate::memory::pages as free_pages;
use crate::memory::ram::{self, Free, Kind, Region};
use alloc::format;
use alloc::string::String;
use core::convert::Infallible;
use core::future::poll_fn;
use core::task::Poll;
use embassy_time::{Duration, Timer, with_timeout};
use spin::Mutex;
use xen::balloon::{Balloon, Run, Target};
use xen::hypercall::Operations;
use xen::xenstore::Store;
use xen::{Errno, Gfn, PAGE_SIZE};

/// Pages that stay free for the guest's own work when the toolstack wants memory back: 2 MiB.
pub const KEPT: usize = 512;

/// The most pages of one step, so that steps are short.
const STEP: u64 = 512;

/// The most special pages that Xen may count as the domain's memory.
const MAX_SPECIAL: u64 = 256;

/// Outside of all memory that it tells of: the kernel's image.
static BALLOON: Mutex<Balloon> = Mutex::new(Balloon::new());

/// What was found at boot, in pages.
static FOUND: Mutex<Found> =
    Mutex::new(Found { loader_map: false, ram: 0, reservation: None, surplus: 0 });

/// The memory that was found at boot, in pages.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whether the loader passed a memory map; Xen has one, too.
    pub loader_map: bool,
    /// RAM in the memory map.
    pub ram: u64,
    /// What Xen has set aside for the domain, special pages included, if it says so.
    pub reservation: Option<u64>,
    /// What was given back, since it was not there.
    pub surplus: u64,
}

/// What was found at boot.
pub fn found() -> Found {
    *FOUND.lock()
}

/// Pages that are given back now.
pub fn pages() -> u64 {
    BALLOON.lock().pages()
}

/// Takes from `free` what the memory map has beyond the memory that is there, and tells Xen so.
///
/// With `maxmem` above `memory` the map shows all that the domain may once have. Xen populates it
/// on demand, and ends a domain that demands more than it has: a page that was touched can be
/// given back as well, but only as long as there are enough for all that are touched at once. So
/// what is not there is given back before any of it is touched.
///
/// # Safety
/// At boot, while nobody uses the free memory.
pub unsafe fn give_surplus(
    xen: &impl Operations,
    map: &[Region],
    loader_map: bool,
    free: &mut Free,
) {
    let ram = ram::pages(map);
    let reservation = xen.current_reservation().ok();
    let mut surplus = ram.saturating_sub(reservation.unwrap_or(ram));
    if surplus > 0 {
        // Xen counts its special pages as the domain's, and the map calls those reserved. What this
        // makes too much comes back once the toolstack's target is known.
        surplus += ram::reserved_pages(map, MAX_SPECIAL);
    }
    let mut balloon = BALLOON.lock();
    for piece in ram::cut(free, surplus, KEPT as u64) {
        // SAFETY: the piece is free memory (the caller's promise), and not in `free` any more.
        let result = unsafe { balloon.give(xen, run(piece.start, piece.len())) };
        if let Err((error, left)) = result {
            // Nobody gets this memory, so all that is lost is that Xen has less of it.
            log::error!("Xen does not take {} pages back: {error}", left.count);
        }
    }
    *FOUND.lock() = Found { loader_map, ram, reservation, surplus: balloon.pages() };
}

/// Why no more memory is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What is free is the least that is kept.
    Kept,
    /// Xen refuses, or the record is full.
    Failed(Errno),
}

/// Gives at most `count` pages back, and not more than what is quickly done. Says how many.
pub fn shrink(xen: &impl Operations, count: u64) -> Result<u64, Refusal> {
    let room = free_pages::figures().free.saturating_sub(KEPT) as u64;
    let mut size = count.min(room).min(STEP) as usize;
    let start = loop {
        if size == 0 {
            return Err(Refusal::Kept);
        }
        match free_pages::alloc(size) {
            Some(start) => break start,
            // In pieces, then.
            None => size /= 2,
        }
    };
    let given = run(start.addr().get() as u64, (size * PAGE_SIZE) as u64);
    // SAFETY: the pages were allocated just now, and nobody else has them.
    let Err((error, left)) = (unsafe { BALLOON.lock().give(xen, given) }) else {
        return Ok(given.count);
    };
    // SAFETY: the pages are memory still, and nobody has them.
    unsafe { free_pages::add(region(left)) };
    match given.count - left.count {
        0 => Err(Refusal::Failed(error)),
        done => Ok(done),
    }
}

/// Takes at most `count` pages from Xen again, and not more than what is quickly done. Says how
/// many; [`Errno::ENOENT`] when all are there, [`Errno::ENOMEM`] when Xen has none for this
/// domain.
pub fn grow(xen: &impl Operations, count: u64) -> Result<u64, Errno> {
    let taken = BALLOON.lock().take(xen, count.min(STEP))?;
    // SAFETY: the pages are memory again and nobody has them. They lie in a piece or where one
    // ends, for what lies behind a piece's end comes back lowest first.
    unsafe { free_pages::add(region(taken)) };
    Ok(taken.count)
}

fn run(start: u64, bytes: u64) -> Run {
    Run::new(Gfn(start / PAGE_SIZE as u64), bytes / PAGE_SIZE as u64)
}

fn region(run: Run) -> Region {
    Region::new(run.start.0 * PAGE_SIZE as u64, run.count * PAGE_SIZE as u64, Kind::Ram)
}

/// How long to wait before what failed is tried again: memory may have become free meanwhile.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Follows the toolstack's target for ever. `spare` is called when memory is to be given back, so
/// that those who keep some for later use part with it.
pub async fn follow_target(store: Store, xen: Xen, spare: impl Fn()) {
    loop {
        let Err(error) = follow(&store, xen, &spare).await;
        log::warn!("the toolstack's target for memory is not heard: {error}");
        Timer::after(RETRY_DELAY).await;
    }
}

async fn follow(store: &Store, xen: Xen, spare: &impl Fn()) -> Result<Infallible, Errno> {
    let mut target = Target::watch(store).await?;
    target.changed().await;
    let mut said = None;
    loop {
        let mut complaint = None;
        if let Some(wanted) = target.read().await? {
            if wanted.absent > pages() {
                spare();
            }
            if let Err(reason) = reach(xen, wanted.absent).await {
                complaint = Some(format!("the target of {} KiB: {reason}", wanted.target));
            }
        }
        if let Some(text) = complaint.as_ref().filter(|text| said.as_ref() != Some(*text)) {
            log::warn!("{text}");
        }
        target.complain(complaint.clone()).await;
        match complaint {
            // A new target is heard at once.
            Some(_) => drop(with_timeout(RETRY_DELAY, target.changed()).await),
            None => target.changed().await,
        }
        said = complaint;
    }
}

/// Has as many pages given back as are wanted, step by step. The error is a reason for whoever
/// set the target.
async fn reach(xen: Xen, absent: u64) -> Result<(), String> {
    let before = pages();
    let result = loop {
        let now = pages();
        let step = if now < absent {
            shrink(&xen, absent - now).map_err(|refusal| match refusal {
                Refusal::Kept => format!(
                    "the rest is in use, but for {} KiB that the guest keeps for its own work",
                    KEPT * PAGE_SIZE / 1024
                ),
                Refusal::Failed(error) => format!("no more pages can be given back: {error}"),
            })
        } else if now > absent {
            grow(&xen, now - absent).map_err(|error| format!("Xen gives no more memory: {error}"))
        } else {
            break Ok(());
        };
        if let Err(reason) = step {
            break Err(reason);
        }
        give_way().await;
    };
    let now = pages();
    if now != before {
        log::info!("memory given back to Xen: {} KiB, before {} KiB", now * 4, before * 4);
    }
    result
}

/// Lets the other tasks run.
async fn give_way() {
    let mut first = true;
    poll_fn(|context| {
        if !core::mem::take(&mut first) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
