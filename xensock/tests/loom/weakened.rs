//! The models can fail: where one place orders memory no more, some model notices.

use crate::{check, command_ring, data_ring};
use std::collections::BTreeMap;
use std::thread;
use xen::testing::model::{Site, sites, weaken};

/// The cheapest ones first.
const MODELS: [fn(); 7] = [
    command_ring::one_by_one,
    data_ring::last_byte,
    data_ring::plain_input,
    data_ring::plain_output,
    data_ring::suppressed,
    data_ring::suppressed_by_halves,
    command_ring::once_round,
];

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

#[test]
fn every_fence_and_every_ordering_is_needed() {
    let mut all = BTreeMap::<Site, Vec<fn()>>::new();
    for model in MODELS {
        for site in outcome(model, None).expect("all is well as it is") {
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
    assert!(unneeded.is_empty(), "nobody misses what these order: {unneeded:#?}");
}
