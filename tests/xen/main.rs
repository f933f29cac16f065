//! Integration tests in real Xen. The first test that needs Xen boots it, once for all tests.
//!
//! Arguments are those of Rust's own test programs: `cargo test -p xen-tests -- NAME`.
#![forbid(unsafe_code)]

mod benchmark;
mod boot;
mod chromium;
mod draft1;
mod ends;
mod events;
mod faults;
mod fixture;
mod guests;
mod idc;
mod images;
mod liar;
mod lifecycle;
mod linux_backend;
mod linux_frontend;
mod machine;
mod memory;
mod network;
mod operators;
mod page;
mod platform;
mod reconnect;
mod rights;
mod service;
mod serving;
mod sockets;
mod suspend;

use fixture::Fixture;
use lab::{LinuxEnds, Tree};
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The number of the slowest tests that are listed at the end.
const SLOWEST: usize = 12;

fn main() -> ExitCode {
    if let Some(code) = ends::be_the_owner() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // The tests share an emulated machine: side by side, they would exceed each other's time
    // limits.
    arguments.test_threads = Some(1);
    let fixture = Arc::new(Fixture::default());
    let cases = [
        machine::CASES,
        guests::CASES,
        serving::CASES,
        page::CASES,
        sockets::CASES,
        draft1::CASES,
        lifecycle::CASES,
        platform::CASES,
        reconnect::CASES,
        suspend::CASES,
        liar::CASES,
        images::CASES,
        faults::CASES,
        events::CASES,
        &idc::cases(),
        boot::CASES,
        memory::CASES,
        network::CASES,
        operators::CASES,
        rights::operators::CASES,
        benchmark::CASES,
        linux_frontend::CASES,
        linux_backend::CASES,
        ends::CASES,
    ]
    .concat();
    let large = fixture::has_memory_for_large_guests();
    let times = Arc::new(Mutex::new(Vec::new()));
    let trials = cases.into_iter().map(|(path, case)| {
        let (fixture, times) = (Arc::clone(&fixture), Arc::clone(&times));
        // Without the name of this program.
        let name = path.split_once("::").map_or(path, |(_, name)| name);
        let run = move || {
            let start = Instant::now();
            let faults = fixture.triple_faults();
            let mut result = case(&fixture);
            if let Err(error) = &result
                && fixture.triple_faults() > faults
            {
                println!("runs again, as QEMU's processor has ended a guest: {error:#}");
                result = case(&fixture);
            }
            let result = result.map_err(|error| format!("{error:#}").into());
            times.lock().expect("no test panics here").push((start.elapsed(), name));
            result
        };
        Trial::test(name, run).with_ignored_flag(!large && memory::needs_large_machine(name))
    });
    if arguments.filter.is_none() {
        // Later tests need the examples, and the last ones Linux's ends of PV Calls, which take
        // long to download and build. If that fails, these tests report it.
        let fixture = Arc::clone(&fixture);
        thread::spawn(move || {
            let booted = fixture.lab().is_ok();
            drop(fixture);
            if booted {
                let _ = fixture::build_examples();
                let _ = LinuxEnds::get(&Tree::here(), &|_| ());
            }
        });
    }
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    show_slowest(&mut times.lock().expect("no test runs any more"));
    if conclusion.has_failed() {
        fixture.keep_logs();
    }
    // The last reference to the machine: this ends it.
    drop(fixture);
    conclusion.exit_code()
}

fn show_slowest(times: &mut [(Duration, &str)]) {
    times.sort_unstable_by_key(|(time, _)| std::cmp::Reverse(*time));
    let whole: Duration = times.iter().map(|(time, _)| *time).sum();
    println!("{} s in all; the slowest:", whole.as_secs());
    for (time, name) in times.iter().take(SLOWEST) {
        println!("{:6.1} s {name}", time.as_secs_f64());
    }
}
