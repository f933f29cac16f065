//! `make bench`: all rivals side by side, in one boot of the lab.
//!
//! The rivals take turns, so that a disturbance of the machine meets them all, and the table has
//! the medians. The environment changes what is measured:
//!
//! | variable | |
//! |---|---|
//! | `ROUNDS` | the number of rounds |
//! | `MB` | the MiB of a bulk transfer |
//! | `IDLE` | the number of connections that stay open |
//! | `ORDER` | IDC's rings have two to that power pages |
//! | `ONLY` | some of the parts `sockets`, `tls` and `idc`, some rivals, or both: `tls,xensock` |

use anyhow::{Context, Result, bail};
use bench::idc::{self, Idc, Pair};
use bench::report::{self, NATIVE, Results};
use bench::{Bench, Figures, Part, Plan, Rival, Work, chart, medians, sum};
use lab::{Lab, LinuxEnds, Options, Tree};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

/// The number of round trips, requests and connections.
const COUNT: u32 = 1000;

/// The same for counting system calls, where each one is slow.
const TRACED_MB: u32 = 64;
const TRACED_COUNT: u32 = 300;

fn main() -> Result<()> {
    let rounds = variable("ROUNDS", 3)?;
    let (mb, idle) = (variable("MB", 192)?, variable("IDLE", 1000)?);
    let order = variable("ORDER", 5)?;
    let plan = Plan { mb, count: COUNT, idle };
    let only = std::env::var("ONLY").unwrap_or_default();
    let words: Vec<_> = only.split(',').filter(|word| !word.is_empty()).collect();
    let mut rivals = Rival::ALL.to_vec();
    rivals.retain(|rival| words.contains(&rival.name()));
    let mut parts = Part::ALL.to_vec();
    parts.retain(|part| words.contains(&part.name()));
    let with_idc = words.is_empty() || words.contains(&"idc");
    if rivals.len() + parts.len() + usize::from(with_idc) < words.len() {
        bail!("ONLY={only}: write sockets, tls, idc or names of rivals, with commas");
    }
    if words != ["idc"] {
        if rivals.is_empty() {
            rivals = Rival::ALL.to_vec();
        }
        if parts.is_empty() {
            parts = Part::ALL.to_vec();
        }
    }
    let pairs: &[Pair] = if with_idc { &Pair::ALL } else { &[] };
    let since = Instant::now();
    let say = |text: &str| println!("{:4} s  {text}", since.elapsed().as_secs());
    let tree = Tree::here();
    let folder = tree.target().join("bench");
    fs::create_dir_all(&folder)?;
    if rivals.contains(&Rival::PvcallsBack) {
        // Built before Xen runs. If that fails, each turn of the rival reports it.
        let _ = LinuxEnds::get(&tree, &|text| say(&format!("lab: {text}")));
    }
    let mut options = Options::new(tree.target().join("bench-lab"));
    options.add_built(&tree)?;
    let lab = Lab::boot(&tree, &options, &|text| say(&format!("lab: {text}")))?;
    let bench = Bench::prepare(&lab, &|text| say(&format!("lab: {text}")))?;
    let idc = match pairs {
        [] => None,
        _ => Some(Idc::prepare(&lab, order, &|text| say(&format!("lab: {text}")))?),
    };
    bench.tune()?;
    for rival in &rivals {
        say(&format!("{}: {}", rival.name(), rival.meaning()));
    }

    let mut all: BTreeMap<&str, Vec<Figures>> = BTreeMap::new();
    let mut results = Results::new();
    for round in 1..=rounds {
        for &rival in &rivals {
            say(&format!("round {round} of {rounds}: {}", rival.name()));
            let mut figures = Figures::new();
            for &part in &parts {
                match bench.measure(rival, part, plan) {
                    Ok(turn) => {
                        for failure in turn.failures {
                            say(&format!("  {} has no figure for {failure}", rival.name()));
                        }
                        figures.extend(turn.figures);
                    }
                    Err(error) => say(&format!("  {}, {part:?}: {error:#}", rival.name())),
                }
            }
            let said = [
                ("out_mib_per_s", "out", "MiB/s"),
                ("in_mib_per_s", "in", "MiB/s"),
                ("tls_out_mib_per_s", "over TLS", "MiB/s"),
                ("round_trip_us", "round trip", "us"),
            ];
            let said = said.into_iter().filter_map(|(name, what, unit)| {
                figures.get(name).map(|figure| format!("{what} {figure:.1} {unit}"))
            });
            say(&format!("  {}", said.collect::<Vec<_>>().join(", ")));
            all.entry(rival.name()).or_default().push(figures);
        }
        for &pair in pairs {
            let Some(idc) = &idc else { break };
            say(&format!("round {round} of {rounds}: {}", pair.meaning()));
            match idc.measure(pair, plan) {
                Ok(results) => {
                    for (name, figures) in results {
                        all.entry(name).or_default().push(figures);
                    }
                }
                Err(error) => say(&format!("  failed: {error:#}")),
            }
        }
        if round == rounds && rivals.contains(&Rival::XenSock) && parts.contains(&Part::Sockets) {
            say("counting xensockd's system calls");
            let mut figures = Figures::new();
            for work in Work::ALL {
                match bench.system_calls(work, "", TRACED_MB, TRACED_COUNT) {
                    Ok(calls) => {
                        figures.insert(work.figure().into(), sum(&calls));
                    }
                    Err(error) => say(&format!("  no {}: {error:#}", work.figure())),
                }
            }
            all.entry(Rival::XenSock.name()).or_default().push(figures);
        }
        // After each round: an interrupted run leaves the rounds that it has finished.
        results = summary(&bench, &all, &folder)?;
    }

    println!("\n{}\n{}", report::table(&results), report::idc_table(&results));
    println!("{:62} {:>15} {:>8}", "target", "limit", "figure");
    let measured = |target: &report::Target| target.value.is_some() || words.is_empty();
    for target in report::targets(&results).into_iter().filter(measured) {
        println!("{target}");
    }
    println!("\nresults.json and results.svg are in {}", folder.display());
    Ok(())
}

/// The medians, which are also written to files.
fn summary(
    bench: &Bench<'_>,
    all: &BTreeMap<&str, Vec<Figures>>,
    folder: &Path,
) -> Result<Results> {
    let mut results = Results::new();
    for rival in Rival::ALL {
        if let Some(rounds) = all.get(rival.name()) {
            let mut figures = medians(rounds);
            figures.extend(bench.sizes(rival)?);
            results.insert(rival.name().to_owned(), figures);
        }
    }
    for name in idc::COLUMNS {
        if let Some(rounds) = all.get(name) {
            results.insert(name.to_owned(), medians(rounds));
        }
    }
    if let Ok(output) = fs::read_to_string(folder.join("pair.txt")) {
        results.insert(NATIVE.to_owned(), report::native(&output));
    }
    fs::write(folder.join("results.json"), serde_json::to_string_pretty(&results)?)?;
    let svg = folder.join("results.svg");
    chart::draw(&results, &svg).context("cannot draw the chart")?;
    Ok(results)
}

/// A number from the environment.
fn variable(name: &str, default: u32) -> Result<u32> {
    match std::env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(default),
    }
}
