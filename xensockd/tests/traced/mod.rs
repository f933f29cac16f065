//! The system calls of a test's thread, seen by `ptrace`.
//!
//! A process cannot trace its own threads, so the test runs once more in a process of its own.

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Set in the process that is traced.
const TRACED: &str = "XENSOCKD_TRACED";

/// What the traced thread says before it waits for the tracer.
const READY: &str = "thread ";

/// Separates what is counted from the rest: a system call that is made for nothing else.
pub fn mark() {
    let _ = rustix::process::getppid();
}

/// Runs `work` in another process, as the test of this name. Returns the numbers of the system
/// calls that its thread makes between each pair of [`mark`]s; in the other process, nothing.
///
/// # Panics
/// If the test fails there.
pub fn calls(test: &str, work: impl FnOnce()) -> Option<Vec<Vec<i64>>> {
    if env::var_os(TRACED).is_some() {
        let thread = rustix::thread::gettid().as_raw_nonzero();
        // Not by `println`, which the test's harness captures.
        io::stdout().write_all(format!("\n{READY}{thread}\n").as_bytes()).unwrap();
        io::stdin().read_line(&mut String::new()).unwrap();
        work();
        return None;
    }
    let mut child = Command::new(env::current_exe().unwrap())
        .args([test, "--exact"])
        .env(TRACED, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let thread = output.find_map(|line| line.strip_prefix(READY)?.parse().ok());
    let thread = Pid::from_raw(thread.expect("the traced test has started"));
    ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD).unwrap();
    ptrace::interrupt(thread).unwrap();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let calls = trace(thread);
    let output = output.collect::<Vec<_>>().join("\n");
    assert!(child.wait().unwrap().success(), "{output}");
    let parts: Vec<_> = calls.split(|call| *call == libc::SYS_getppid).collect();
    assert!(parts.len() % 2 == 1, "a mark is missing");
    Some(parts.into_iter().skip(1).step_by(2).map(<[i64]>::to_vec).collect())
}

/// The system calls of a thread until it ends.
fn trace(thread: Pid) -> Vec<i64> {
    let (mut calls, mut is_entry) = (Vec::new(), true);
    loop {
        let signal = match waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceSyscall(_) => {
                if is_entry {
                    calls.push(ptrace::getregs(thread).unwrap().orig_rax as i64);
                }
                is_entry = !is_entry;
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            WaitStatus::PtraceEvent(..) => None,
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return calls,
            status => unreachable!("{status:?}"),
        };
        ptrace::syscall(thread, signal).unwrap();
    }
}
