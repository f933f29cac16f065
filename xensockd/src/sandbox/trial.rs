//! Tries what the sandbox must refuse, and what it must not.

use super::{Files, confine};
use crate::linux::datagrams::{Message, REST, receive_all, send_all};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Pid, chroot, test_kill_process};
use std::cell::UnsafeCell;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use xen::Shared;

/// A program that every system has.
const PROGRAM: &str = "/bin/true";

/// Something to try.
type Attempt<'a> = (&'a str, Box<dyn Fn() -> io::Result<()> + 'a>);

/// Confines this process, tries, and prints each outcome. An error is a line for the user.
pub fn run(files: &Files<'_>) -> Result<(), String> {
    let before = system_call();
    confine(files)?;
    let mut wrong = 0;
    for (what, attempt) in refused() {
        let outcome = attempt();
        wrong += usize::from(outcome.is_ok());
        report(what, outcome);
    }
    for (what, attempt) in allowed(files.rules) {
        let outcome = attempt();
        wrong += usize::from(outcome.is_err());
        report(what, outcome);
    }
    println!("a system call takes {:?}, and took {before:?} without the sandbox", system_call());
    println!("{wrong} outcomes are wrong");
    // Last, as it does not return if it is allowed.
    report("become another program", Err(Command::new(PROGRAM).exec()));
    if wrong == 0 { Ok(()) } else { Err("the sandbox is not as it should be".into()) }
}

fn report(what: &str, outcome: io::Result<()>) {
    match outcome {
        Ok(()) => println!("{what}: done"),
        Err(error) => println!("{what}: refused, {error}"),
    }
}

fn refused() -> Vec<Attempt<'static>> {
    vec![
        ("open /etc/shadow", Box::new(|| File::open("/etc/shadow").map(drop))),
        ("open /proc/self/mem", Box::new(|| File::open("/proc/self/mem").map(drop))),
        ("write a file", Box::new(|| fs::write("/tmp/xensockd-trial", ""))),
        ("list a folder", Box::new(|| fs::read_dir("/").map(drop))),
        (
            "change permissions",
            Box::new(|| fs::set_permissions("/tmp", Permissions::from_mode(0o1777))),
        ),
        ("run a program", Box::new(|| Command::new(PROGRAM).status().map(drop))),
        ("signal a process", Box::new(|| Ok(test_kill_process(Pid::INIT)?))),
        ("change the root", Box::new(|| Ok(chroot("/")?))),
        (
            "open a packet socket",
            Box::new(|| Ok(socket(AddressFamily::PACKET, SocketType::RAW, None).map(drop)?)),
        ),
    ]
}

fn allowed(rules: &Path) -> Vec<Attempt<'_>> {
    let read = move || {
        // Device files are opened by another system call than files of the standard library.
        let file = open(rules, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let read = file.map_err(io::Error::from).and_then(|_| fs::read(rules).map(drop));
        match read {
            // The rules may come later.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            read => read,
        }
    };
    vec![
        ("read the rules", Box::new(read)),
        (
            "open a socket",
            Box::new(|| Ok(socket(AddressFamily::INET, SocketType::STREAM, None).map(drop)?)),
        ),
        ("send and receive datagrams", Box::new(datagrams)),
        (
            "start a thread",
            Box::new(|| {
                let thread = std::thread::Builder::new().spawn(|| ())?;
                thread.join().map_err(|_| io::Error::other("it panicked"))
            }),
        ),
    ]
}

/// Sends a datagram to itself by the system calls for several.
fn datagrams() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let bytes = [const { UnsafeCell::new(7) }; 2];
    let memory = Shared::from_cells(&bytes);
    let [data, room] = [0, 1].map(|at| [memory.slice(at, 1), memory.slice(at, 0)]);
    send_all(&socket, std::iter::once((Some(socket.local_addr()?), data)))?;
    let mut messages = [Message::default(); 1];
    receive_all(&socket, &[room], &mut vec![0; REST], &mut messages).map(drop)
}

/// The time of a system call that does nothing: the shortest of some averages, as other processes
/// run, too.
fn system_call() -> Duration {
    const CALLS: u32 = 10_000;
    let average = |_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            let _ = rustix::thread::gettid();
        }
        start.elapsed() / CALLS
    };
    (0..10).map(average).min().unwrap_or_default()
}
