//! The lab itself: commands, files and ports of dom0.

use crate::fixture::{Fixture, cases, free_port};
use anyhow::{Context, Result, bail, ensure};
use lab::dom0_port;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

cases![
    xl_works_in_dom0,
    a_command_returns_its_status_and_both_outputs,
    a_command_line_reaches_dom0_unchanged,
    a_command_that_does_not_end_is_given_up,
    a_file_is_unchanged_by_push_and_pull,
    a_pushed_program_stays_executable,
    a_missing_file_is_an_error_with_its_name,
    a_forwarded_port_reaches_dom0,
    a_port_in_use_is_not_forwarded,
    a_second_lab_in_the_same_folder_is_refused,
];

fn xl_works_in_dom0(fixture: &Fixture) -> Result<()> {
    let list = fixture.lab()?.run("xl list")?;
    ensure!(list.lines().any(|line| line.starts_with("Domain-0 ")), "{list}");
    let info = fixture.lab()?.run("xl info")?;
    ensure!(info.contains("xen_major") && info.contains("hvm-3.0-x86_64"), "{info}");
    Ok(())
}

fn a_command_returns_its_status_and_both_outputs(fixture: &Fixture) -> Result<()> {
    let output = fixture.lab()?.exec("echo out; echo err >&2; exit 42")?;
    ensure!(output.status == 42, "{output:?}");
    ensure!(output.stdout == b"out\n" && output.stderr == b"err\n", "{output:?}");
    ensure!(fixture.lab()?.exec("exit 255")?.status == 255);
    Ok(())
}

fn a_command_line_reaches_dom0_unchanged(fixture: &Fixture) -> Result<()> {
    let said = fixture.lab()?.run(r#"printf '%s|' "a  b" '$HOME' \* é"#)?;
    ensure!(said == "a  b|$HOME|*|é|", "{said}");
    Ok(())
}

fn a_command_that_does_not_end_is_given_up(fixture: &Fixture) -> Result<()> {
    let (dom0, start) = (fixture.lab()?, Instant::now());
    let endless = "echo $$ >/run/endless.pid; exec sleep 600";
    let error = dom0.run_within(endless, Duration::from_secs(2)).err().context("it has ended")?;
    ensure!(error.to_string().contains("did not end in 2 s"), "{error:#}");
    ensure!(start.elapsed() < Duration::from_secs(300), "{:?}", start.elapsed());
    dom0.run("kill $(cat /run/endless.pid)").map(drop)
}

fn a_file_is_unchanged_by_push_and_pull(fixture: &Fixture) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    // All byte values, without a period that would hide a lost or repeated block.
    let bytes: Vec<u8> =
        (0..1_000_003_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&sent, &bytes)?;
    let lab = fixture.lab()?;
    lab.push(&sent, "/tmp/a file")?;
    lab.pull("/tmp/a file", &got)?;
    ensure!(fs::read(&got)? == bytes, "1 MB changed on its way");
    lab.run("rm '/tmp/a file'")?;
    Ok(())
}

fn a_pushed_program_stays_executable(fixture: &Fixture) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("script");
    fs::write(&script, "#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    fixture.lab()?.push(&script, "/tmp/script")?;
    ensure!(fixture.lab()?.run("/tmp/script")? == "it runs");
    Ok(())
}

fn a_missing_file_is_an_error_with_its_name(fixture: &Fixture) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Err(error) = fixture.lab()?.pull("/no/such/file", &folder.path().join("x")) else {
        bail!("a file that does not exist was pulled");
    };
    ensure!(error.to_string().contains("/no/such/file"), "{error:#}");
    ensure!(!folder.path().join("x").exists(), "the failed pull left a file");
    ensure!(fixture.lab()?.push(&folder.path().join("none"), "/tmp/none").is_err());
    Ok(())
}

fn a_forwarded_port_reaches_dom0(fixture: &Fixture) -> Result<()> {
    let ports = fixture.port()?;
    let lab = fixture.lab()?;
    // -e: the program's output becomes the connection's.
    let line = format!("nc -l -p {} -e echo from dom0 >/dev/null 2>&1 &", ports.inner);
    lab.run(&line)?;
    for _ in 0..50 {
        let mut stream = TcpStream::connect(("127.0.0.1", ports.host))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut said = String::new();
        // Until nc listens, dom0 refuses and QEMU closes the connection at once.
        if stream.read_to_string(&mut said).is_ok() && !said.is_empty() {
            ensure!(said == "from dom0\n", "{said:?}");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("nothing answered on port {}", ports.host)
}

fn a_port_in_use_is_not_forwarded(fixture: &Fixture) -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let Err(error) = fixture.lab()?.forward(port, dom0_port(80)) else {
        bail!("port {port} was forwarded though it was taken");
    };
    ensure!(error.to_string().contains(&port.to_string()), "{error:#}");
    let free = free_port()?;
    fixture.lab()?.forward(free, dom0_port(80))?;
    ensure!(
        fixture.lab()?.forward(free, dom0_port(81)).is_err(),
        "port {free} was forwarded twice"
    );
    Ok(())
}

fn a_second_lab_in_the_same_folder_is_refused(fixture: &Fixture) -> Result<()> {
    let options = lab::Options::new(fixture.lab()?.folder());
    let Err(error) = lab::Lab::boot(&lab::Tree::here(), &options, &|_| {}) else {
        bail!("two labs run in one folder");
    };
    ensure!(error.to_string().contains("up already"), "{error:#}");
    // The first one still works.
    fixture.lab()?.run("true")?;
    Ok(())
}
