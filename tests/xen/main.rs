//! Integration tests in real Xen. The first test that needs Xen boots it, once for all tests.
//!
//! Arguments are those of Rust's own test programs: `cargo test -p xen-tests -- NAME`.
#![forbid(unsafe_code)]

mod benchmark;
mod boot;
mod chromium;
mod datagrams;
mod draft1;
mod driver_domain;
mod ends;
mod events;
mod fair;
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
mod shortage;
mod sockets;
mod suspend;
mod tls;

use fixture::Machines;
use lab::{LinuxEnds, Tree};
use libtest_mimic::{Arguments, Trial};
use std::fs;
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
    let machines = Arc::new(Machines::default());
    let cases = [
        // These need neither examples nor programs, which are built meanwhile, and the first ones
        // no TLS either.
        machine::CASES,
        guests::CASES,
        serving::CASES,
        page::CASES,
        draft1::CASES,
        lifecycle::CASES,
        reconnect::CASES,
        suspend::CASES,
        tls::CASES,
        network::CASES,
        shortage::CASES,
        driver_domain::operators::CASES,
        sockets::CASES,
        platform::CASES,
        liar::CASES,
        images::CASES,
        faults::CASES,
        events::CASES,
        &idc::cases(),
        boot::CASES,
        memory::CASES,
        datagrams::CASES,
        datagrams::peers::CASES,
        datagrams::floods::CASES,
        operators::CASES,
        rights::operators::CASES,
        fair::operators::CASES,
        benchmark::CASES,
        linux_frontend::CASES,
        linux_backend::CASES,
        ends::CASES,
    ]
    .concat();
    let large = fixture::has_memory_for_large_guests();
    let times = Arc::new(Mutex::new(Vec::new()));
    let trials = cases.into_iter().map(|(path, case)| {
        let (machines, times) = (Arc::clone(&machines), Arc::clone(&times));
        // Without the name of this program.
        let name = path.split_once("::").map_or(path, |(_, name)| name);
        let run = move || {
            let (start, worked) = (Instant::now(), machines.current().processor_time());
            let result = machines.run(case).map_err(|error| format!("{error:#}").into());
            let worked = machines.current().processor_time().saturating_sub(worked);
            let mut times = times.lock().expect("no test panics here");
            times.push(Times { whole: start.elapsed(), worked, name });
            result
        };
        Trial::test(name, run).with_ignored_flag(!large && memory::needs_large_machine(name))
    });
    if arguments.filter.is_none() {
        // Later tests need the examples, and the last ones Linux's ends of PV Calls, which take
        // long to download and build. If that fails, these tests report it.
        let machine = machines.current();
        thread::spawn(move || {
            let booted = machine.lab().is_ok();
            drop(machine);
            if booted {
                for goal in fixture::GOALS {
                    let _ = fixture::build(goal);
                }
                let _ = LinuxEnds::get(&Tree::here(), &|_| ());
            }
        });
    }
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    show_slowest(&mut times.lock().expect("no test runs any more"));
    if conclusion.has_failed() {
        machines.keep_logs();
    }
    // The last reference to the machine: this ends it.
    drop(machines);
    conclusion.exit_code()
}

/// How long a test took.
struct Times {
    whole: Duration,
    /// The processor time of the emulated machine, which has two processors.
    worked: Duration,
    name: &'static str,
}

fn show_slowest(times: &mut [Times]) {
    times.sort_unstable_by_key(|times| std::cmp::Reverse(times.whole));
    let whole: Duration = times.iter().map(|times| times.whole).sum();
    println!("{} s in all; the slowest, and the machine's processor time:", whole.as_secs());
    let line = |times: &Times| {
        let [whole, worked] = [times.whole, times.worked].map(|time| time.as_secs_f64());
        format!("{whole:6.1} s {worked:6.1} s {}\n", times.name)
    };
    print!("{}", times.iter().take(SLOWEST).map(line).collect::<String>());
    let all: String = times.iter().map(line).collect();
    if let Err(error) = fs::write(Tree::here().target().join("test-logs/xen-times"), all) {
        println!("the times of all tests: {error}");
    }
}
