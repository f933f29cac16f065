//! `lab up` and `lab down`: a machine that outlives the command.
//!
//! `up` starts a process, the keeper, which boots and keeps the machine. A pipe connects them. If
//! `up` ends while the machine boots, the pipe closes and the keeper ends, too. Once the machine is
//! up, `up` sends a line that makes the keeper stay.

use super::say;
use anyhow::{Context, Result, bail};
use lab::{Lab, Options, Tree};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, setsid};
use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// If this is set in the environment, `up` is the keeper.
const KEEPER: &str = "LAB_KEEPER";
/// The keeper's line when the machine is up.
const UP: &str = "up";
/// The answer of `up`.
const STAY: &str = "stay";
/// The time limit for a keeper to end.
const DOWN_TIME: Duration = Duration::from_secs(10);

/// Boots a machine and leaves it running.
pub fn up(tree: &Tree, mut options: Options) -> Result<ExitCode> {
    if env::var_os(KEEPER).is_some() {
        options.add_built(tree)?;
        return keep(tree, &options);
    }
    let folder = &options.folder;
    if lab::keeper(folder)?.is_some() {
        println!("lab: the lab is up already ({})", folder.display());
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    let log = folder.join("keeper.log");
    let mut keeper = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(KEEPER, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(File::create(&log)?)
        .spawn()
        .context("cannot start the lab's keeper")?;
    let (Some(mut lifeline), Some(output)) = (keeper.stdin.take(), keeper.stdout.take()) else {
        bail!("the lab's keeper has no pipes");
    };
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line == UP {
            writeln!(lifeline, "{STAY}").context("the lab's keeper ended too early")?;
            println!(
                "lab: use `lab exec`, `lab shell`, `lab down`; logs are in {}",
                folder.display()
            );
            return Ok(ExitCode::SUCCESS);
        }
        println!("{line}");
    }
    let status = keeper.wait()?;
    let error = fs::read_to_string(&log).unwrap_or_default();
    let error = error.trim().trim_start_matches("lab: ");
    if error.is_empty() {
        bail!("the lab's keeper ended ({status})");
    }
    bail!("{error}")
}

/// The keeper: boots a machine and keeps it.
fn keep(tree: &Tree, options: &Options) -> Result<ExitCode> {
    // Leaves the terminal: its Ctrl-C and its hang-up are for `up`.
    setsid().context("cannot leave the terminal")?;
    thread::spawn(|| {
        let mut line = String::new();
        let _ = stdin().read_line(&mut line);
        if line.trim_end() != STAY {
            // This ends the machine.
            std::process::exit(1);
        }
    });
    let lab = Lab::boot(tree, options, &say)?;
    writeln!(stdout(), "{UP}")?;
    while lab.is_running() {
        thread::sleep(Duration::from_millis(200));
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends the machine, booted or booting.
pub fn down(folder: &Path) -> Result<ExitCode> {
    let Some(keeper) = lab::keeper(folder)? else {
        bail!("no lab is up ({})", folder.display());
    };
    let keeper = i32::try_from(keeper).ok().and_then(Pid::from_raw);
    let keeper = keeper.context("the lab's lock contains no process id")?;
    // The machine ends with the keeper, whatever the signal.
    for signal in [Signal::TERM, Signal::KILL] {
        match kill_process(keeper, signal) {
            // The keeper has ended already.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error).context("cannot end the lab's keeper"),
        }
        let deadline = Instant::now() + DOWN_TIME;
        while Instant::now() < deadline {
            if lab::keeper(folder)?.is_none() {
                println!("lab: down; logs are in {}", folder.display());
                return Ok(ExitCode::SUCCESS);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    bail!("the lab's keeper (process {}) does not end", keeper.as_raw_nonzero())
}
