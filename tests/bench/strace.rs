//! Counts the daemon's system calls, by strace in dom0.

use crate::rivals::{READY, Servers};
use crate::{Bench, wait_until};
use anyhow::{Context, Result, ensure};
use lab::Dom0;
use std::collections::BTreeMap;

/// System calls: how many of each.
pub type Calls = BTreeMap<String, f64>;

/// strace, attached to xensockd.
pub struct Strace<'a>(&'a Dom0);

impl<'a> Strace<'a> {
    /// Attaches it. Calls count from now on.
    pub fn attach(dom0: &'a Dom0) -> Result<Self> {
        dom0.run(
            "strace -c -f -p $(cat /run/xensockd.pid) -o /tmp/strace >/tmp/strace.log 2>&1 & \
             echo $! >/run/strace.pid",
        )?;
        let attached = || Ok(dom0.exec("grep -q attached /tmp/strace.log")?.status == 0);
        wait_until("strace is attached", READY, attached)?;
        Ok(Strace(dom0))
    }

    /// Detaches it, and returns the calls.
    pub fn detach(self) -> Result<Calls> {
        let table = self.0.run(
            "pid=$(cat /run/strace.pid); kill -INT $pid; \
             while kill -0 $pid 2>/dev/null; do sleep 0.1; done; cat /tmp/strace",
        )?;
        parse(&table).with_context(|| table.clone())
    }
}

/// Reads strace's table, whose columns are share, seconds, microseconds, calls, errors (or nothing)
/// and name.
fn parse(table: &str) -> Result<Calls> {
    let mut calls = Calls::new();
    for line in table.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let (Some(number), Some(name)) = (words.get(3), words.last()) else { continue };
        if let Ok(number) = number.parse::<f64>() {
            calls.insert((*name).to_owned(), number);
        }
    }
    let total = calls.remove("total").unwrap_or_default();
    ensure!(calls.values().sum::<f64>() == total, "the calls do not add up to {total}");
    Ok(calls)
}

/// The sum of all calls.
pub fn sum(calls: &Calls) -> f64 {
    calls.values().sum()
}

/// What the daemon's calls are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A MiB out of the guest.
    Out,
    /// A MiB into the guest.
    In,
    /// A round trip of 64 bytes.
    RoundTrip,
    /// A request on one of 64 kept connections.
    Request,
}

impl Work {
    /// All of them.
    pub const ALL: [Work; 4] = [Work::Out, Work::In, Work::RoundTrip, Work::Request];

    /// The name of its figure.
    pub fn figure(self) -> &'static str {
        match self {
            Work::Out => "out_system_calls_per_mib",
            Work::In => "in_system_calls_per_mib",
            Work::RoundTrip => "round_trip_system_calls_each",
            Work::Request => "request_system_calls_each",
        }
    }

    fn phase(self) -> &'static str {
        match self {
            Work::Out => "out",
            Work::In => "in",
            Work::RoundTrip => "round-trip",
            Work::Request => "requests-64",
        }
    }
}

impl Bench<'_> {
    /// xensockd's system calls for each MiB, round trip or request of a guest with more `words` on
    /// its command line. They are counted over `mb` MiB, or over `count` of the others.
    ///
    /// strace makes the daemon slow, so no time is measured.
    pub fn system_calls(&self, work: Work, words: &str, mb: u32, count: u32) -> Result<Calls> {
        let servers = self.xensock(&format!("mb={mb} {words}"))?;
        let each = match work {
            Work::Out | Work::In => f64::from(mb),
            Work::RoundTrip | Work::Request => f64::from(count),
        };
        // What a measurement costs besides its repetitions is the same in both runs.
        let run = |times: u32| {
            let (phase, count) = (work.phase(), count * times);
            self.traced(&servers, &format!("bare=yes times={times} mb={mb} count={count} {phase}"))
        };
        let (less, mut calls) = (run(1)?, run(2)?);
        for (name, number) in less {
            *calls.entry(name).or_default() -= number;
        }
        calls.values_mut().for_each(|number| *number /= each);
        Ok(calls)
    }

    fn traced(&self, servers: &Servers<'_>, words: &str) -> Result<Calls> {
        let strace = Strace::attach(self.dom0)?;
        let output = self.dom0.run(&format!("/root/client {} {words}", servers.at));
        let calls = strace.detach()?;
        let output = output?;
        ensure!(!output.contains("failed"), "{output}");
        Ok(calls)
    }

    /// xensockd's system calls in some seconds while a guest has this many idle connections.
    pub fn idle_system_calls(&self, idle: u32, seconds: u32) -> Result<Calls> {
        let servers = self.xensock("")?;
        let dom0 = self.dom0;
        let at = &servers.at;
        let client = dom0.run(&format!(
            "/root/client {at} idle={idle} bare=yes hold >/tmp/held 2>&1 & echo $!"
        ))?;
        let held = || Ok(dom0.exec("grep -q . /tmp/held")?.status == 0);
        let calls = wait_until("the client holds its connections", READY, held).and_then(|()| {
            let said = dom0.run("cat /tmp/held")?;
            ensure!(said.contains("holding"), "{said}");
            let strace = Strace::attach(dom0)?;
            dom0.run(&format!("sleep {seconds}"))?;
            strace.detach()
        });
        dom0.run(&format!("kill {client}"))?;
        calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_strace_is_read_with_and_without_errors() {
        let table = "\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.05    0.002171         217        10           epoll_wait
 20.11    0.000715          42        17         3 read
  0.00    0.000000           0         1           write
------ ----------- ----------- --------- --------- ----------------
100.00    0.003556         127        28         3 total
";
        let calls = parse(table).unwrap();
        assert_eq!(calls["epoll_wait"], 10.0);
        assert_eq!(calls["read"], 17.0);
        assert_eq!(sum(&calls), 28.0);
        assert!(parse("").unwrap().is_empty());
        assert!(parse(&table.replace("28", "29")).is_err());
    }
}
