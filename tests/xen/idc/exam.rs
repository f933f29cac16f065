//! The exam of IDC: whatever the ends are, and whatever is between them.

use super::ends::{Process, guest, id, is_busy};
use crate::fixture::{Fixture, cases};
use crate::service::PATIENCE;
use anyhow::{Context, Result, ensure};
use lab::Dom0;
use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

cases![
    a_guest_and_a_process_of_dom0_pass_the_exam_in_either_part,
    two_guests_pass_the_exam,
    a_guest_and_a_process_pass_the_exam_over_tcp,
    two_guests_exchange_data_without_dom0,
];

const PASSED: &str = "the exam is passed";

fn a_guest_and_a_process_of_dom0_pass_the_exam_in_either_part(fixture: &Fixture) -> Result<()> {
    let serves = guest(fixture, "serve=any/exam")?;
    let examines = Process::start(fixture, &format!("examine=xen:{}/exam", id(&serves)?))?;
    examines.wait_for(PASSED)?;
    println!("{}", examines.log()?.lines().last().unwrap_or_default());
    drop(serves);
    let serves = Process::start(fixture, "serve=any/exam")?;
    let examines = guest(fixture, "examine=xen:0/exam")?;
    println!("{}", examines.wait_for(PASSED, PATIENCE)?);
    examines.wait_for_end(PATIENCE)?;
    serves.kill();
    Ok(())
}

fn two_guests_pass_the_exam(fixture: &Fixture) -> Result<()> {
    let serves = guest(fixture, "serve=any/exam")?;
    let examines = guest(fixture, &format!("examine=xen:{}/exam", id(&serves)?))?;
    println!("{}", examines.wait_for(PASSED, PATIENCE)?);
    examines.wait_for_end(PATIENCE)?;
    Ok(())
}

fn a_guest_and_a_process_pass_the_exam_over_tcp(fixture: &Fixture) -> Result<()> {
    let ports = [fixture.port()?.inner, fixture.port()?.inner];
    let listen = ports.map(|port| format!("listen=127.0.0.1:{port}"));
    let at = format!("tcp:127.0.0.1:{}/exam", ports[0]);
    let serves = guest(fixture, &format!("serve=any/exam {}", listen[0]))?;
    serves.wait_for("serving at", PATIENCE)?;
    let examines = Process::start(fixture, &format!("examine={at} {}", listen[1]))?;
    examines.wait_for(PASSED)?;
    println!("{}", examines.log()?.lines().last().unwrap_or_default());
    drop(serves);
    let serves = Process::start(fixture, &format!("serve=any/exam {}", listen[0]))?;
    let examines = guest(fixture, &format!("examine={at} {}", listen[1]))?;
    println!("{}", examines.wait_for(PASSED, PATIENCE)?);
    serves.kill();
    Ok(())
}

fn two_guests_exchange_data_without_dom0(fixture: &Fixture) -> Result<()> {
    let dom0: &Dom0 = fixture.lab()?;
    let service = guest(fixture, "serve=any/exam")?;
    let client = guest(fixture, &format!("load=xen:{}/exam", id(&service)?))?;
    is_busy(&client, 1)?;
    let before = processor_time(dom0)?;
    thread::sleep(Duration::from_secs(5));
    let after = processor_time(dom0)?;
    let used = |name: &str| {
        let (before, after) = before.get(name).zip(after.get(name)).context("a guest has ended")?;
        anyhow::Ok(after - before)
    };
    let [of_dom0, of_service, of_client] = ["Domain-0", service.name(), client.name()].map(used);
    let (of_dom0, of_guests) = (of_dom0?, of_service? + of_client?);
    service.destroy();
    println!("{}", client.wait_for("is over", PATIENCE)?);
    println!("dom0 used {of_dom0:.1} s, the guests {of_guests:.1} s");
    // dom0 also runs the commands of this test.
    ensure!(of_guests > 2.0 * of_dom0, "dom0 used {of_dom0} s, the guests {of_guests} s");
    Ok(())
}

/// The seconds of processor time that each domain has used, by its name.
fn processor_time(dom0: &Dom0) -> Result<BTreeMap<String, f64>> {
    let list = dom0.run("xl list")?;
    let time = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.last()?.parse().ok()?))
    };
    Ok(list.lines().skip(1).filter_map(time).collect())
}
