//! A guest's clock, console, xenstore, and the toolstack's requests.

use crate::fixture::{Fixture, cases, wait_until};
use crate::images::image;
use crate::service::{HTTP, PATIENCE, Service, sha256};
use anyhow::{Context, Result, ensure};
use lab::{Dom0, Domain};
use std::time::Duration;

cases![
    an_idle_guest_sleeps,
    thousands_of_timers_fire_in_order_and_none_early,
    a_paused_guest_resumes_with_the_right_time,
    a_megabyte_of_output_is_whole_and_in_order,
    unread_output_is_dropped_and_counted_and_delays_nothing,
    input_arrives_whole,
    the_log_level_can_be_changed_at_run_time,
    errors_of_xenstore_are_returned_and_nothing_leaks,
    a_guest_serves_while_xenstored_is_stopped,
    xenstore_works_after_a_live_update_of_xenstored,
    each_request_of_the_toolstack_is_acknowledged,
    random_numbers_come_from_the_processor_or_from_the_toolstack,
];

/// A guest that tests a part of the platform.
fn platform(fixture: &Fixture, test: &str) -> Result<Domain> {
    let config = image(fixture, "platform", &format!("test={test}"))?;
    Domain::create(fixture.lab()?, test, &config)
}

/// The console output of such a guest, after its end.
fn tried(fixture: &Fixture, test: &str) -> Result<String> {
    let guest = platform(fixture, test)?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(!console.contains("panic"), "{console}");
    Ok(console)
}

/// The number after a text in a console's output.
fn number(console: &str, text: &str) -> Result<u64> {
    let (_, rest) = console.split_once(text).with_context(|| format!("no {text:?}: {console}"))?;
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("no number behind {text:?}: {console}"))
}

/// A daemon of dom0 that is stopped until this value is dropped.
struct Stopped<'d>(&'d Dom0, &'static str);

impl<'d> Stopped<'d> {
    fn new(dom0: &'d Dom0, daemon: &'static str) -> Result<Self> {
        dom0.run(&format!("kill -STOP $(cat /run/xen/{daemon}.pid)"))?;
        Ok(Stopped(dom0, daemon))
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.run(&format!("kill -CONT $(cat /run/xen/{}.pid)", self.1)) {
            println!("{} is still stopped: {error:#}", self.1);
        }
    }
}

fn an_idle_guest_sleeps(fixture: &Fixture) -> Result<()> {
    let console = tried(fixture, "idle")?;
    let wakeups = number(&console, "wake-ups in 10 s:")?;
    ensure!(wakeups < 10, "{wakeups} wake-ups: {console}");
    Ok(())
}

fn thousands_of_timers_fire_in_order_and_none_early(fixture: &Fixture) -> Result<()> {
    let console = tried(fixture, "timers")?;
    ensure!(number(&console, "timers pending:")? >= 5000, "{console}");
    ensure!(console.contains("timers: 5000 fired, 0 early, 0 out of order"), "{console}");
    let slept = console.lines().find(|line| line.contains("100 sleeps of 1 ms"));
    ensure!(slept.is_some_and(|line| line.trim_end().ends_with("true")), "{console}");
    Ok(())
}

fn a_paused_guest_resumes_with_the_right_time(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    let before = guest.metrics()?;
    dom0.run(&format!("xl pause {0}; sleep 3; xl unpause {0}", guest.domain.name()))?;
    let after = guest.metrics()?;
    let passed = after["uptime_seconds"] - before["uptime_seconds"];
    ensure!((3..60).contains(&passed), "{passed} s have passed for the guest");
    let now: u64 = dom0.run("date +%s")?.parse()?;
    let guests = guest.metrics()?["unix_time_seconds"];
    ensure!(guests.abs_diff(now) < 30, "it is {now} in dom0 and {guests} in the guest");
    Ok(())
}

fn a_megabyte_of_output_is_whole_and_in_order(fixture: &Fixture) -> Result<()> {
    let console = tried(fixture, "output")?;
    let lines = console.lines().filter(|line| line.starts_with("out "));
    let text = lines.map(|line| format!("{line}\n")).collect::<String>();
    ensure!(text.len() == 1 << 20, "{} bytes", text.len());
    let wanted = format!("output: {}, 0 dropped", sha256(text.as_bytes()));
    ensure!(console.contains(&wanted), "{}", console.lines().last().unwrap_or_default());
    Ok(())
}

fn unread_output_is_dropped_and_counted_and_delays_nothing(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let config = image(fixture, "platform", "test=flood")?;
    let guest = Domain::create_paused(dom0, "flood", &config)?;
    let id = guest.id()?.context("it has no number")?;
    let stopped = Stopped::new(dom0, "xenconsoled")?;
    guest.unpause()?;
    let node = format!("/local/domain/{id}/data/flood");
    wait_until("the guest is through", PATIENCE, || {
        Ok(dom0.exec(&format!("xenstore-read {node}"))?.status == 0)
    })?;
    let dropped: u64 = dom0.run(&format!("xenstore-read {node}"))?.parse()?;
    // 4,000 messages are more than the ring and the backlog hold.
    ensure!(dropped > 100_000, "{dropped}");
    drop(stopped);
    dom0.run(&format!("xenstore-rm {node}"))?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    ensure!(console.contains(&format!("[{dropped} bytes of output lost]")), "{dropped}: {console}");
    ensure!(console.contains("after the flood"), "{console}");
    let kept = console.lines().filter_map(|line| line.split_once("flood "));
    // The last line may be incomplete.
    let whole = kept.map(|(_, number)| number.trim()).filter(|number| number.len() == 60);
    let numbers: Vec<usize> = whole.filter_map(|number| number.parse().ok()).collect();
    let in_order = numbers.iter().enumerate().all(|(at, number)| at == *number);
    ensure!(in_order && numbers.len() > 500, "{} lines: {console}", numbers.len());
    Ok(())
}

fn input_arrives_whole(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = platform(fixture, "input")?;
    guest.wait_for("waiting for input", PATIENCE)?;
    let id = guest.id()?.context("it has no number")?;
    let said = dom0.run(&format!(
        "tty=$(xenstore-read /local/domain/{id}/console/tty); \
         (i=0; while [ $i -lt 3000 ]; do echo \"line $i\"; i=$((i+1)); done; echo end) \
         >/tmp/input; \
         cat /tmp/input >$tty; wc -c </tmp/input; sha256sum </tmp/input"
    ))?;
    let (count, digest) = said.split_once('\n').context("no digest")?;
    let digest = digest.split_whitespace().next().unwrap_or_default();
    guest.wait_for(&format!("input: {} bytes, {digest}", count.trim()), PATIENCE)?;
    Ok(())
}

fn the_log_level_can_be_changed_at_run_time(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    let id = guest.domain.id()?.context("it has no number")?;
    let set = |level: &str| {
        dom0.run(&format!("xenstore-write /local/domain/{id}/control/log-level {level}"))
    };
    guest.get("/healthz")?;
    let console = guest.domain.console()?;
    ensure!(!console.contains("DEBUG"), "{console}");
    set("debug")?;
    guest.domain.wait_for("log level: DEBUG", PATIENCE)?;
    guest.get("/healthz")?;
    guest.domain.wait_for(": connected", PATIENCE)?;
    set("loud")?;
    let refused = guest.domain.wait_for("log level loud", PATIENCE)?;
    ensure!(refused.contains("off, error, warn, info, debug or trace"), "{refused}");
    Ok(())
}

fn errors_of_xenstore_are_returned_and_nothing_leaks(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let config = image(fixture, "platform", "test=xenstore")?;
    let guest = Domain::create_paused(dom0, "xenstore", &config)?;
    let id = guest.id()?.context("it has no number")?;
    // 12 KiB of names need three messages.
    dom0.run(&format!(
        "i=0; while [ $i -lt 200 ]; do printf '/local/domain/{id}/data/long/%060d x ' $i; \
         i=$((i+1)); done | xargs xenstore-write"
    ))?;
    guest.unpause()?;
    guest.wait_for_end(PATIENCE)?;
    let console = guest.console()?;
    for said in [
        "a list of 200 nodes",
        "no more watches than",
        "no more nodes than",
        "a long value:",
        "another's node: permission denied",
        "4 rivals counted to 20, 0 failed",
    ] {
        ensure!(console.contains(said), "no {said:?}: {console}");
    }
    let made = number(&console, "no more nodes than")?;
    ensure!(made > 10 && console.contains(&format!("{made}, {made} listed")), "{console}");
    Ok(())
}

fn a_guest_serves_while_xenstored_is_stopped(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    ensure!(guest.get("/healthz")?.0.contains("200"));
    let stopped = Stopped::new(dom0, "xenstored")?;
    for _ in 0..20 {
        ensure!(guest.get("/bytes/100000")?.1.len() == 100_000);
    }
    drop(stopped);
    dom0.run(&format!("xl shutdown -w {}", guest.domain.name()))?;
    guest.domain.wait_for_end(PATIENCE)
}

fn xenstore_works_after_a_live_update_of_xenstored(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    let guest = Service::http(fixture)?;
    dom0.run("xenstore-control live-update $(readlink -f $(which xenstored))")?;
    ensure!(guest.get("/healthz")?.0.contains("200"));
    let id = guest.domain.id()?.context("it has no number")?;
    dom0.run(&format!("xenstore-write /local/domain/{id}/control/log-level debug"))?;
    guest.domain.wait_for("log level: DEBUG", PATIENCE)?;
    dom0.run(&format!("xl shutdown -w {}", guest.domain.name()))?;
    guest.domain.wait_for_end(PATIENCE)
}

fn each_request_of_the_toolstack_is_acknowledged(fixture: &Fixture) -> Result<()> {
    let dom0 = fixture.lab()?;
    for (request, end) in [("poweroff", "Poweroff"), ("halt", "Poweroff"), ("reboot", "Reboot")] {
        let guest = Domain::create(dom0, "asked", HTTP)?;
        guest.wait_for("serving on port", PATIENCE)?;
        let id = guest.id()?.context("it has no number")?;
        let control = format!("/local/domain/{id}/control");
        for feature in ["poweroff", "reboot", "suspend"] {
            let node = format!("{control}/feature-{feature}");
            ensure!(dom0.run(&format!("xenstore-read {node}"))? == "1", "{node}");
        }
        // An unknown request is also acknowledged, and explained.
        dom0.run(&format!("xenstore-write {control}/shutdown dance"))?;
        guest.wait_for("\"dance\", which is unknown", PATIENCE)?;
        ensure!(dom0.run(&format!("xenstore-read {control}/shutdown"))?.is_empty());
        dom0.run(&format!("xenstore-write {control}/shutdown {request}"))?;
        guest.wait_for(&format!("shutting down: {end}"), PATIENCE)?;
        guest.wait_for_end(PATIENCE + Duration::from_secs(30))?;
    }
    Ok(())
}

fn random_numbers_come_from_the_processor_or_from_the_toolstack(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let config = image(fixture, "platform", "test=random")?;
    let without = config.clone() + "cpuid = \"host,rdrand=0\"\n";
    let run = |config: &str, seed: Option<&str>| -> Result<String> {
        let guest = Domain::create_paused(dom0, "random", config)?;
        let node = format!("/local/domain/{}/data/seed", guest.id()?.context("it has ended")?);
        if let Some(seed) = seed {
            dom0.run(&format!("xenstore-write {node} {seed}"))?;
        }
        guest.unpause()?;
        guest.wait_for_end(PATIENCE)?;
        guest.console()
    };
    let numbers = |console: &str| -> Result<[String; 2]> {
        let of = |name: &str| {
            let number = console.lines().find_map(|line| Some(line.split_once(name)?.1.to_owned()));
            number.with_context(|| console.to_owned())
        };
        Ok([of("random: ")?, of("system: ")?])
    };
    let (seed, other) = ("5a".repeat(32), "a5".repeat(32));
    let mut all: Vec<String> = Vec::new();
    for console in [
        run(&config, None)?,
        run(&config, None)?,
        // The processor's numbers need no seed.
        run(&config, Some(&seed))?,
        run(&without, Some(&seed))?,
        run(&without, Some(&other))?,
    ] {
        all.extend(numbers(&console)?);
    }
    let different = all.iter().collect::<std::collections::BTreeSet<_>>();
    ensure!(different.len() == all.len(), "{all:?}");
    // A seed decides all that follows, and nobody reads it later.
    ensure!(numbers(&run(&without, Some(&seed))?)?[0] == all[6], "{all:?}");

    let none = run(&without, None)?;
    ensure!(none.contains("no random numbers: ") && none.contains("none of the system"), "{none}");
    let bad = run(&without, Some("5a5a"))?;
    ensure!(bad.contains("data/seed is no seed: it must have 64 hexadecimal digits"), "{bad}");
    ensure!(bad.contains("no random numbers: "), "{bad}");
    Ok(())
}
