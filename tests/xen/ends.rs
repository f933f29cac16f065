//! Labs end with the process that owns them, no matter how it ends.

use crate::fixture::{Fixture, cases, free_port, wait_until};
use anyhow::{Context, Result, bail, ensure};
use lab::{Booting, Options, Tree};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::Duration;

cases![
    nothing_survives_a_killed_owner,
    nothing_survives_an_interrupted_up,
    the_command_line_boots_drives_and_ends_a_lab,
    run_serves_a_guest_and_leaves_the_lab_reachable_until_it_is_interrupted,
];

/// If this is set in the environment, this program owns a lab in that folder instead of testing.
const OWNER: &str = "LAB_TEST_OWNER";
/// The time limit for processes to end.
const END_TIME: Duration = Duration::from_secs(20);
/// The time limit until a machine writes to its serial console.
const START_TIME: Duration = Duration::from_secs(120);

/// Owns a lab until this process is killed, if [`OWNER`] is set.
pub fn be_the_owner() -> Option<ExitCode> {
    let folder = PathBuf::from(std::env::var_os(OWNER)?);
    match Booting::start(&Tree::here(), &Options::new(folder), &|_| {}) {
        Ok(booting) => {
            println!("{}", booting.qemu_id());
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("{error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn nothing_survives_a_killed_owner(_: &Fixture) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut owner = Command::new(std::env::current_exe()?)
        .env(OWNER, folder.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(owner.stdout.take().context("no pipe")?).read_line(&mut line)?;
    let process = PathBuf::from(format!("/proc/{}", line.trim()));
    let outcome = wait_until("QEMU runs", START_TIME, || is_qemu(&process));
    owner.kill()?;
    owner.wait()?;
    outcome?;
    wait_until("QEMU ends", END_TIME, || Ok(!process.exists()))?;
    wait_until("the folder is free", END_TIME, || Ok(lab::keeper(folder.path())?.is_none()))
}

fn nothing_survives_an_interrupted_up(_: &Fixture) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // A shell makes background processes and their children ignore Ctrl-C.
    let mut up = Command::new("env");
    up.arg("--default-signal=INT").arg(Tree::here().lab()).arg("--state");
    let mut up = up.arg(folder.path()).arg("up").stdout(Stdio::null()).spawn()?;
    let serial = folder.path().join("serial.log");
    let outcome = wait_until("Xen starts", START_TIME, || {
        Ok(serial.metadata().is_ok_and(|file| file.len() > 0))
    });
    interrupt(&up)?;
    up.wait()?;
    outcome?;
    // QEMU also holds the folder's lock: once it is free, all processes have ended.
    wait_until("the machine ends", END_TIME, || Ok(lab::keeper(folder.path())?.is_none()))
}

fn the_command_line_boots_drives_and_ends_a_lab(_: &Fixture) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let refused = run(folder, &["exec", "true"])?;
    ensure!(!refused.status.success() && text(&refused).contains("no lab is up"), "{refused:?}");

    let up = run(folder, &["up"])?;
    ensure!(up.status.success(), "{}", text(&up));
    let end = End(folder);
    ensure!(text(&up).contains("qemu-system-x86_64 "), "no command line: {}", text(&up));
    let again = run(folder, &["up"])?;
    ensure!(again.status.success() && text(&again).contains("up already"), "{}", text(&again));

    let exec = run(folder, &["exec", "cat; echo err >&2; exit 42"])?;
    ensure!(exec.status.code() == Some(42), "{exec:?}");
    ensure!(exec.stdout == b"input" && exec.stderr == b"err\n", "{exec:?}");
    let words = run(folder, &["exec", "printf", "%s|", "a  b", "$HOME"])?;
    ensure!(words.stdout == b"a  b|$HOME|", "{words:?}");
    let unknown = run(folder, &["console", "nobody"])?;
    ensure!(!unknown.status.success() && text(&unknown).contains("nobody"), "{unknown:?}");

    let process = PathBuf::from(format!("/proc/{}", lab::qemu_id(folder)?));
    ensure!(is_qemu(&process)?, "the published process is not QEMU");
    drop(end);
    // The process has ended, but its parent may still have to reap it.
    wait_until("QEMU is gone", END_TIME, || Ok(!process.exists()))?;
    let down = run(folder, &["down"])?;
    ensure!(!down.status.success() && text(&down).contains("no lab is up"), "{down:?}");
    Ok(())
}

fn run_serves_a_guest_and_leaves_the_lab_reachable_until_it_is_interrupted(
    _: &Fixture,
) -> Result<()> {
    let port = free_port()?;
    let folder = Tree::here().target().join("test-logs/lab-run");
    let mut serving = Command::new("env");
    serving.arg("--default-signal=INT").arg(Tree::here().lab()).arg("--state").arg(&folder);
    serving.args(["run", "--stack", "netfront", "--port", &port.to_string()]);
    let mut serving = serving.stdout(Stdio::null()).spawn()?;
    let outcome = wait_until("the page is served", START_TIME, || {
        let mut page = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(END_TIME))?;
            let asked = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
            let _ = asked.and_then(|()| stream.read_to_string(&mut page));
        }
        Ok(page.starts_with("HTTP/1.1 200") && page.contains("XenSock"))
    });
    let outcome = outcome.and_then(|()| {
        let list = run(&folder, &["exec", "xl", "list"])?;
        ensure!(list.status.success() && text(&list).contains("http"), "{list:?}");
        let second = run(&folder, &["run", "--port", &free_port()?.to_string()])?;
        ensure!(!second.status.success() && text(&second).contains("up already"), "{second:?}");
        Ok(())
    });
    interrupt(&serving)?;
    let status = serving.wait()?;
    outcome.with_context(|| format!("logs are in {}", folder.display()))?;
    ensure!(status.success(), "Ctrl-C ends it with {status}");
    wait_until("the machine ends", END_TIME, || Ok(lab::keeper(&folder)?.is_none()))?;
    let list = run(&folder, &["exec", "xl", "list"])?;
    ensure!(!list.status.success() && text(&list).contains("no lab is up"), "{list:?}");
    Ok(std::fs::remove_dir_all(folder)?)
}

/// Ends a detached lab, even if a test fails.
struct End<'a>(&'a Path);

impl Drop for End<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(self.0, &["down"]) {
            println!("lab down: {error:#}");
        }
    }
}

fn command(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(Tree::here().lab());
    command.arg("--state").arg(folder).args(words);
    command
}

fn run(folder: &Path, words: &[&str]) -> Result<Output> {
    let input = folder.join("input");
    std::fs::write(&input, "input")?;
    Ok(command(folder, words).stdin(std::fs::File::open(input)?).output()?)
}

fn text(output: &Output) -> String {
    let (stdout, stderr) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(stdout).into_owned() + &String::from_utf8_lossy(stderr)
}

fn is_qemu(process: &Path) -> Result<bool> {
    if !process.exists() {
        bail!("there is no process {}", process.display());
    }
    let line = std::fs::read(process.join("cmdline"))?;
    // The shell that executes QEMU also has its name, but not first.
    Ok(line.starts_with(b"qemu-system-x86_64\0"))
}

fn interrupt(child: &Child) -> Result<()> {
    let id = i32::try_from(child.id())?;
    let pid = rustix::process::Pid::from_raw(id).context("no process")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::INT)?)
}
