//! The exam of IDC: whatever the ends are, and whatever is between them.

use super::ends::{Process, guest, id};
use crate::fixture::{Fixture, cases};
use crate::service::PATIENCE;
use anyhow::Result;

cases![
    a_guest_and_a_process_of_dom0_pass_the_exam_in_either_part,
    two_guests_pass_the_exam,
    a_guest_and_a_process_pass_the_exam_over_tcp,
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
