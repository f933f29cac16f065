//! The benchmark of the sockets: the same servers (`app=bench`) over each stack that a user could
//! choose, measured by one client in dom0, in one boot of the lab.
//!
//! [`Bench::prepare`] brings the programs into dom0, [`Bench::measure`] runs the servers of one
//! [`Rival`] once for one [`Part`] of the figures, [`Bench::system_calls`] counts those of
//! xensockd. [`Idc`](idc::Idc) compares ways to carry bytes between two domains. [`report`] makes
//! tables of the medians and compares them with the targets; [`chart`] draws them.
#![forbid(unsafe_code)]

pub mod chart;
pub mod idc;
pub mod report;
mod rivals;
mod strace;

pub use rivals::{Bench, Part, Plan, Rival, Turn, load_linux_backend};
pub use strace::{Calls, Strace, Work, sum};

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

/// Figures by name. The names end in their units, as the client prints them.
pub type Figures = BTreeMap<String, f64>;

/// Waits until `holds` returns true. The error contains `what`.
pub fn wait_until(what: &str, at_most: Duration, holds: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + at_most;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("timed out after {at_most:?}: {what}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Each figure's median over several rounds. A figure that is missing in a round has the median of
/// the others.
pub fn medians(rounds: &[Figures]) -> Figures {
    let mut all: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for (name, value) in rounds.iter().flatten() {
        all.entry(name).or_default().push(*value);
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        let half = values.len() / 2;
        if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
    };
    all.into_iter().map(|(name, values)| (name.clone(), median(values))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_that_of_the_rounds_that_have_the_figure() {
        let round = |figures: &[(&str, f64)]| -> Figures {
            figures.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
        };
        let medians = medians(&[
            round(&[("a", 3.0), ("b", 1.0)]),
            round(&[("a", 1.0)]),
            round(&[("a", 9.0), ("b", 2.0)]),
        ]);
        assert_eq!(medians, round(&[("a", 3.0), ("b", 1.5)]));
    }
}
