//! Keeps the guest's memory at what the toolstack wants: `xl mem-set`.

use crate::boot::stages::{self, Stage};
use crate::memory::balloon::{self, KEPT, Refusal};
use alloc::format;
use alloc::string::String;
use core::convert::Infallible;
use core::future::poll_fn;
use core::task::Poll;
use embassy_time::{Duration, Timer, with_timeout};
use xen::balloon::Target;
use xen::hypercall::Xen;
use xen::xenstore::Store;
use xen::{Errno, PAGE_SIZE};

/// How long to wait before what failed is tried again: memory may have become free meanwhile.
const AGAIN: Duration = Duration::from_secs(5);

/// Follows the toolstack's target for ever. `spare` is called when memory is to be given back, so that those
/// who keep some for later use part with it.
pub async fn run(store: Store, xen: Xen, spare: impl Fn()) {
    loop {
        let Err(error) = follow(&store, xen, &spare).await;
        log::warn!("the toolstack's target for memory is not heard: {error}");
        Timer::after(AGAIN).await;
    }
}

async fn follow(store: &Store, xen: Xen, spare: &impl Fn()) -> Result<Infallible, Errno> {
    let mut target = Target::watch(store).await?;
    stages::mark(Stage::Xenstore);
    target.changed().await;
    let mut said = None;
    loop {
        let mut complaint = None;
        if let Some(wanted) = target.read().await? {
            if wanted.absent > balloon::pages() {
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
            Some(_) => drop(with_timeout(AGAIN, target.changed()).await),
            None => target.changed().await,
        }
        said = complaint;
    }
}

/// Has as many pages given back as are wanted, step by step. The error is a reason for whoever set the target.
async fn reach(xen: Xen, absent: u64) -> Result<(), String> {
    let before = balloon::pages();
    let result = loop {
        let now = balloon::pages();
        let step = if now < absent {
            balloon::shrink(&xen, absent - now).map_err(|refusal| match refusal {
                Refusal::Kept => format!(
                    "the rest is in use, but for {} KiB that the guest keeps for its own work",
                    KEPT * PAGE_SIZE / 1024
                ),
                Refusal::Failed(error) => format!("no more pages can be given back: {error}"),
            })
        } else if now > absent {
            balloon::grow(&xen, now - absent)
                .map_err(|error| format!("Xen gives no more memory: {error}"))
        } else {
            break Ok(());
        };
        if let Err(reason) = step {
            break Err(reason);
        }
        give_way().await;
    };
    let now = balloon::pages();
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
