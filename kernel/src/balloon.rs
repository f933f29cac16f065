//! The balloon: returns free pages to Xen and takes them back, to keep the guest's memory at the
//! toolstack's target (`xl mem-set`).
//!
//! All memory stays mapped. Pages in the balloon are not in use: they came from the [free
//! pages](crate::memory::pages), or never became free pages.

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

/// Pages that stay free for the guest's own work: 2 MiB.
const KEPT: usize = 512;

/// The most pages of one step, so that other tasks can run.
const STEP: u64 = 512;

/// The most special pages that Xen may count as the domain's memory.
const MAX_SPECIAL: u64 = 256;

/// The pages in the balloon. The record is in the image, so its own memory is never returned.
static BALLOON: Mutex<Balloon> = Mutex::new(Balloon::new());

/// The memory found at boot.
static FOUND: Mutex<Found> =
    Mutex::new(Found { loader_map: false, ram: 0, reservation: None, surplus: 0 });

/// The memory that was found at boot, in pages.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Whether the loader passed a memory map, in addition to Xen's.
    pub loader_map: bool,
    /// RAM in the memory map.
    pub ram: u64,
    /// The domain's current reservation, including special pages, if Xen reports it.
    pub reservation: Option<u64>,
    /// The pages that the memory map has beyond the reservation.
    pub surplus: u64,
}

/// The memory found at boot.
pub fn found() -> Found {
    *FOUND.lock()
}

/// The pages in the balloon.
pub fn pages() -> u64 {
    BALLOON.lock().pages()
}

/// Removes from `free` the pages that the memory map has beyond the domain's reservation, and
/// returns them to Xen.
///
/// With `maxmem` above `memory`, the map shows all the memory that the domain may ever have. Xen
/// populates it on demand, and kills a domain that touches more than its reservation. So the
/// surplus is returned before any of it is touched.
///
/// # Safety
/// At boot, while the free memory is not in use.
pub(crate) unsafe fn give_surplus(
    xen: &impl Operations,
    map: &[Region],
    loader_map: bool,
    free: &mut Free,
) {
    let ram = ram::pages(map);
    let reservation = xen.current_reservation().ok();
    let mut surplus = ram.saturating_sub(reservation.unwrap_or(ram));
    if surplus > 0 {
        // Xen's reservation includes special pages, which the map calls reserved. If this returns
        // too many pages, they come back once the toolstack's target is known.
        surplus += ram::reserved_pages(map, MAX_SPECIAL);
    }
    let mut balloon = BALLOON.lock();
    for piece in ram::cut(free, surplus, KEPT as u64) {
        // SAFETY: the piece is free memory (the caller's promise), and not in `free` any more.
        let result = unsafe { balloon.give(xen, run(piece.start, piece.len())) };
        if let Err((error, left)) = result {
            // The guest does not use these pages, so only Xen misses them.
            log::error!("Xen does not take back {} pages: {error}", left.count);
        }
    }
    *FOUND.lock() = Found { loader_map, ram, reservation, surplus: balloon.pages() };
}

/// Returns up to `count` pages to Xen, at most one step. The error is a text for the toolstack.
fn shrink(xen: &impl Operations, count: u64) -> Result<(), String> {
    let room = free_pages::figures().free.saturating_sub(KEPT) as u64;
    let mut size = count.min(room).min(STEP) as usize;
    let start = loop {
        if size == 0 {
            return Err(format!(
                "the rest is in use, but for {} KiB that the guest keeps for its own work",
                KEPT * PAGE_SIZE / 1024
            ));
        }
        match free_pages::alloc(size) {
            Some(start) => break start,
            // No piece is that large.
            None => size /= 2,
        }
    };
    let given = run(start.addr().get() as u64, (size * PAGE_SIZE) as u64);
    // SAFETY: the pages were allocated above, and nothing else uses them.
    let Err((error, left)) = (unsafe { BALLOON.lock().give(xen, given) }) else {
        return Ok(());
    };
    // SAFETY: these pages were not returned, and nothing uses them.
    unsafe { free_pages::add(region(left)) };
    match given.count - left.count {
        // Xen refused, or the balloon's record is full.
        0 => Err(format!("no more pages can be given back: {error}")),
        _ => Ok(()),
    }
}

/// Takes up to `count` pages back from Xen, at most one step. The error is a text for the
/// toolstack.
fn grow(xen: &impl Operations, count: u64) -> Result<(), String> {
    let taken = BALLOON.lock().take(xen, count.min(STEP));
    let taken = taken.map_err(|error| format!("Xen gives no more memory: {error}"))?;
    // SAFETY: Xen has populated the pages, and nothing uses them. They lie in a piece or at its
    // end, because the memory after a piece's end is returned lowest first.
    unsafe { free_pages::add(region(taken)) };
    Ok(())
}

fn run(start: u64, bytes: u64) -> Run {
    Run::new(Gfn(start / PAGE_SIZE as u64), bytes / PAGE_SIZE as u64)
}

fn region(run: Run) -> Region {
    Region::new(run.start.0 * PAGE_SIZE as u64, run.count * PAGE_SIZE as u64, Kind::Ram)
}

/// The delay before a failed step is retried: memory may have become free.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Follows the toolstack's target. Calls `trim` before memory is returned, so that frontends free
/// what they keep for later use.
pub async fn follow_target(store: Store, xen: Xen, trim: impl Fn()) {
    loop {
        let Err(error) = follow(&store, xen, &trim).await;
        log::warn!("cannot read the toolstack's memory target: {error}; retrying");
        Timer::after(RETRY_DELAY).await;
    }
}

async fn follow(store: &Store, xen: Xen, trim: &impl Fn()) -> Result<Infallible, Errno> {
    let mut target = Target::watch(store).await?;
    target.changed().await;
    let mut reported = None;
    loop {
        let mut complaint = None;
        if let Some(wanted) = target.read().await? {
            if wanted.absent > pages() {
                trim();
            }
            if let Err(reason) = reach(xen, wanted.absent).await {
                complaint = Some(format!("the target of {} KiB: {reason}", wanted.target));
            }
        }
        if let Some(text) = complaint.as_ref().filter(|text| reported.as_ref() != Some(*text)) {
            log::warn!("{text}");
        }
        target.complain(complaint.clone()).await;
        match complaint {
            // A new target ends the delay.
            Some(_) => drop(with_timeout(RETRY_DELAY, target.changed()).await),
            None => target.changed().await,
        }
        reported = complaint;
    }
}

/// Brings the balloon to `absent` pages, step by step. The error is a text for the toolstack.
async fn reach(xen: Xen, absent: u64) -> Result<(), String> {
    let before = pages();
    let result = loop {
        let now = pages();
        let step = if now < absent {
            shrink(&xen, absent - now)
        } else if now > absent {
            grow(&xen, now - absent)
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
