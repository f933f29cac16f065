//! Event channels and grants as they are, against Xen and a peer that act at the same time, in every order
//! in which their accesses to the shared words can happen.
//!
//! Loom runs each model again and again. It fails when an event is lost (the virtual CPU then halts for
//! ever), when a port is handled that is masked, and when a page is reached through a grant that was ended.
//! [`weakened`] shows that these models notice each place that orders memory.
//!
//! `LOOM_MAX_PREEMPTIONS` bounds how often a thread is interrupted where it need not wait; without it
//! everything is tried.

mod events;
#[allow(unsafe_code, reason = "grants a page of a model")]
mod grant;
#[allow(unsafe_code, reason = "makes pages that live as long as a model")]
mod memory;
mod weakened;

use xen::testing::model::loom::model::Builder;

/// Checks a model.
fn check(model: fn()) {
    Builder::new().check(model);
}
