//! Models of rings, event channels and grants, in every order of the accesses of both ends.
//!
//! A model has one thread for each end; the other end of event channels and grants is Xen or a
//! peer. Loom runs a model again and again. It fails if an end reads what another writes at the
//! same time, if an assertion does not hold, or if both ends sleep: an event was lost. [`weakened`]
//! shows that the models notice a missing order.
//!
//! `LOOM_MAX_PREEMPTIONS` limits how often a thread is interrupted where it need not wait. Without
//! it, loom tries everything.

mod bytes;
mod events;
#[allow(unsafe_code, reason = "grants a page of a model")]
mod grant;
#[allow(unsafe_code, reason = "makes pages that live as long as a model")]
mod memory;
mod ring;
mod sleeper;
mod weakened;

use xen::testing::model::loom::model::Builder;

/// Checks a model.
fn check(model: fn()) {
    Builder::new().check(model);
}
