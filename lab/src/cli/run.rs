//! `lab run`: one guest, served on this machine's loopback until Ctrl-C.

use super::boot::{Boot, say};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lab::{Interface, Kept, Lab, Tree, dom0_port};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a guest may take from its creation to its first answer.
const START_TIME: Duration = Duration::from_secs(60);
/// How long one attempt to get an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// Boots a lab, runs one guest in it, and ends both on Ctrl-C.
#[derive(Args)]
pub struct Run {
    /// The guest: a file xensockd/dist/APP.cfg
    #[arg(long, default_value = "http")]
    app: String,
    /// The loopback port that leads to it
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where its sockets live
    #[arg(long, value_enum, default_value_t = Stack::Xensock)]
    stack: Stack,
    #[command(flatten)]
    boot: Boot,
}

/// The choices of `--stack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stack {
    /// In dom0, where xensockd serves them
    Xensock,
    /// In the guest itself, over a network interface on dom0's bridge
    Netfront,
}

impl Run {
    /// Runs it in the foreground.
    pub fn execute(&self, tree: &Tree) -> Result<ExitCode> {
        let guests = tree.guests()?;
        let Some(config) = guests.get(&self.app) else {
            let names: Vec<_> = guests.into_keys().collect();
            bail!("there is no app {:?}; there are: {}", self.app, names.join(", "));
        };
        let mut config = fs::read_to_string(config)?;
        let guest_port = guest_port(&config)
            .with_context(|| format!("{}.cfg has no port=NUMBER in its cmdline", self.app))?;
        let to = match self.stack {
            Stack::Xensock => dom0_port(guest_port),
            Stack::Netfront => {
                config += &over_netfront(&config);
                SocketAddrV4::new(Interface::FIRST.address(), guest_port)
            }
        };
        // A folder for each port, so that several may run.
        let folder = tree.target().join("lab-run").join(self.port.to_string());
        let mut options = self.boot.options(tree, &folder)?;
        if !options.has_kernel() {
            bail!("there is no {}; `make kernel` builds it", tree.kernel().display());
        }
        if options.xensockd.is_none() {
            bail!("there is no {}; `make xensockd` builds it", tree.xensockd().display());
        }
        options.forwards.push((self.port, to));

        // While Xen boots, signals have their usual effect: the machine dies with this process.
        let lab = Lab::boot(tree, &options, &say)?;
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&ended))?;
        }
        self.serve(&lab, &config, &ended)
    }

    fn serve(&self, lab: &Lab, config: &str, ended: &AtomicBool) -> Result<ExitCode> {
        say(&format!("creating the guest {}", self.app));
        let file = format!("/root/{}.cfg", self.app);
        lab.write(&file, config)?;
        lab.run(&format!("xl create -q {file}"))?;
        let mut command = lab.follow_console(&self.app)?;
        command.stdin(Stdio::null());
        let console = Kept::spawn(command)?;
        let deadline = Instant::now() + START_TIME;
        let mut answers = false;
        while !ended.load(Ordering::Relaxed) {
            if !lab.is_running() {
                bail!("QEMU ended; its logs are in {}", lab.folder().display());
            }
            if console.ended().is_some() {
                bail!("the guest ended; logs are in {}", lab.pull_logs()?.display());
            }
            if !answers {
                answers = answer(&self.app, self.port).is_ok();
                if answers {
                    self.invite();
                } else if Instant::now() > deadline {
                    let (time, logs) = (START_TIME.as_secs(), lab.pull_logs()?);
                    bail!("the guest did not answer in {time} s; logs are in {}", logs.display());
                }
            }
            thread::sleep(POLL);
        }
        console.kill();
        println!();
        say("ending the guest and Xen");
        Ok(ExitCode::SUCCESS)
    }

    fn invite(&self) {
        println!();
        match &*self.app {
            "http" => println!("    http://localhost:{}/", self.port),
            "echo" => {
                println!("    nc localhost {}     every line comes back", self.port);
            }
            _ => println!("    localhost:{}", self.port),
        }
        println!("    Ctrl-C ends the guest and Xen; below is the guest's console");
        println!();
    }
}

/// A guest's command line.
fn cmdline(config: &str) -> Option<&str> {
    let line = config.lines().find(|line| line.trim_start().starts_with("cmdline"))?;
    Some(line.split_once('"')?.1.rsplit_once('"')?.0)
}

/// What to add to a guest's configuration so that its sockets are its own. xl takes the last of each setting.
fn over_netfront(config: &str) -> String {
    let cmdline = cmdline(config).unwrap_or_default();
    format!(
        "\npvcalls = []\nvif = [\"{}\"]\ncmdline = \"{cmdline} stack=netfront\"\n",
        Interface::FIRST.vif()
    )
}

/// The port that a guest's command line names.
fn guest_port(config: &str) -> Option<u16> {
    let port = cmdline(config)?.split_once("port=")?.1;
    port.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Gets one answer from the guest. A connection alone proves nothing: QEMU accepts it.
fn answer(app: &str, port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    let (request, start): (&[u8], &[u8]) = match app {
        "http" => (b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n", b"HTTP/1."),
        _ => (b"hello\n", b"hello\n"),
    };
    stream.write_all(request)?;
    let mut got = vec![0; start.len()];
    stream.read_exact(&mut got)?;
    if got != start {
        bail!("unexpected answer {:?}", String::from_utf8_lossy(&got));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_the_command_line_in_the_configuration() {
        let config = "# port=1\nname = \"x\"\ncmdline = \"app=http port=80 log=debug\"\n";
        assert_eq!(guest_port(config), Some(80));
        assert_eq!(guest_port("cmdline = \"app=http\"\n"), None);
    }

    #[test]
    fn a_guest_with_sockets_of_its_own_has_an_interface_and_no_device_for_calls() {
        let config = "cmdline = \"app=http port=80\"\npvcalls = [\"backend=0\"]\n";
        assert_eq!(
            over_netfront(config),
            "\npvcalls = []\nvif = [\"mac=00:16:3e:00:02:82\"]\n\
             cmdline = \"app=http port=80 stack=netfront\"\n"
        );
    }

    #[test]
    fn every_guest_of_the_tree_names_its_port() {
        for (name, path) in Tree::here().guests().unwrap() {
            assert!(guest_port(&fs::read_to_string(path).unwrap()).is_some(), "{name}");
        }
    }
}
