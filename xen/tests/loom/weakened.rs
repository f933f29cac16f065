//! The models can fail: where some place orders memory no more, they notice.
//!
//! Not every place is missed by a model. Loom lets an update of a word see the latest value always, and
//! that hides the order of the accesses behind it.

use crate::{check, events, grant};
use std::thread;
use xen::testing::model::{Site, sites, weaken};

/// The places that order memory in a model, or how it fails when one of them does not.
fn outcome(model: fn(), weakened: Option<Site>) -> Result<Vec<Site>, String> {
    // A thread of its own: what is weakened there is weakened nowhere else.
    let checked = thread::spawn(move || {
        if let Some(site) = weakened {
            weaken(site);
        }
        check(model);
        sites()
    });
    checked.join().map_err(|panic| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(_) => "it panics".to_string(),
    })
}

/// Checks that a model of a file fails when one of the file's places orders nothing.
fn misses_some_order(model: fn(), file: &str) {
    let all = outcome(model, None).expect("all is well as it is");
    // The last ones are in what handles events.
    let mut places = all.into_iter().rev().filter(|site| site.file().ends_with(file));
    let missed = places.find_map(|site| Some((site, outcome(model, Some(site)).err()?)));
    let (site, failure) = missed.expect("nobody misses any of them");
    println!("{site}: {failure}");
}

#[test]
fn the_models_of_queues_notice_a_missing_order() {
    misses_some_order(events::fifo_masked_at_the_tail, "src/event/fifo.rs");
}

#[test]
fn the_models_of_bits_notice_a_missing_order() {
    misses_some_order(events::two_level_sent, "src/event/two_level.rs");
}

#[test]
fn the_model_of_grants_notices_a_missing_order() {
    misses_some_order(grant::ended, "src/grant.rs");
}
