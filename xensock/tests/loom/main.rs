//! The rings as they are, in every order in which the accesses of their two ends can happen.
//!
//! Each model has two threads, one for each end. Loom runs it again and again, and fails when an end
//! reads what another writes at the same time, when anything asserted does not hold, or when both ends
//! sleep: an event was missed. [`weakened`] shows that these models notice each place that orders memory.
//!
//! `LOOM_MAX_PREEMPTIONS` bounds how often a thread is interrupted where it need not wait; without it
//! everything is tried.

mod command_ring;
mod data_ring;
mod event;
mod weakened;

use xen::testing::model::loom::model::Builder;

/// Checks a model.
fn check(model: fn()) {
    Builder::new().check(model);
}
