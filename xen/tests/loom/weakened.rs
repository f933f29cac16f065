//! The models can fail: they notice if a place in the code no longer orders memory.
//!
//! The models of rings notice each such place. Those of events and grants do not: loom lets an
//! update of a word always see the latest value, which hides the order of the accesses behind it.

use crate::{bytes, check, events, grant, ring};
use std::collections::BTreeMap;
use std::thread;
use xen::testing::model::{Site, sites, weaken};

/// The places that order memory in a model, or how it fails when one of them does not.
fn outcome(model: fn(), weakened: Option<Site>) -> Result<Vec<Site>, String> {
    // In a thread of its own, because the place is weakened per thread.
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
    let all = outcome(model, None).expect("the model holds as it is");
    // The last ones are in the code that handles events.
    let mut places = all.into_iter().rev().filter(|site| site.file().ends_with(file));
    let missed = places.find_map(|site| Some((site, outcome(model, Some(site)).err()?)));
    let (site, failure) = missed.expect("the model needs none of them");
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

/// The models of rings, the cheapest ones first.
const RINGS: [fn(); 7] = [
    ring::one_by_one,
    bytes::last_byte,
    bytes::plain_input,
    bytes::plain_output,
    bytes::suppressed,
    bytes::suppressed_by_halves,
    ring::once_round,
];

#[test]
fn the_models_of_rings_need_every_fence_and_every_ordering() {
    let mut all = BTreeMap::<Site, Vec<fn()>>::new();
    for model in RINGS {
        for site in outcome(model, None).expect("the model holds as it is") {
            all.entry(site).or_default().push(model);
        }
    }
    let mut unneeded = Vec::new();
    for (site, models) in all {
        match models.into_iter().find_map(|model| outcome(model, Some(site)).err()) {
            Some(failure) => println!("{site}: {failure}"),
            None => unneeded.push(site.to_string()),
        }
    }
    assert!(unneeded.is_empty(), "no model fails without these: {unneeded:#?}");
}
