//! `lab run`: one guest, served on this machine's loopback until Ctrl-C. The other commands work
//! while it runs, as after `lab up`.

use super::{disk, say};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use lab::{Interface, Kept, Lab, Options, Tree, dom0_port};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The time limit from a guest's creation to its first answer.
const START_TIME: Duration = Duration::from_secs(60);
/// The time limit of one attempt to get an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// Boots a lab, runs one guest in it, and ends both on Ctrl-C.
#[derive(Args)]
pub struct Run {
    /// The guest: a file xensockd/dist/APP.cfg, or disk: some guests that share one
    #[arg(long, default_value = "http")]
    app: String,
    /// The loopback port to forward to it
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Where its sockets live
    #[arg(long, value_enum, default_value_t = Stack::Xensock)]
    stack: Stack,
    #[command(flatten)]
    options: Options,
    /// The guest's command line, in place of the configuration's
    #[arg(last = true)]
    words: Vec<String>,
}

/// The file name of the image with the apps.
const APPS_IMAGE: &str = "xensock-kernel";

/// The choices of `--stack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stack {
    /// In dom0, where xensockd serves them
    Xensock,
    /// In the guest itself, over a network interface on dom0's bridge
    Netfront,
}

/// The guest that the command line selects.
#[derive(Debug, PartialEq, Eq)]
struct Guest {
    name: String,
    config: String,
    /// The service behind the forwarded port. Images other than the apps' have none.
    service: Option<Service>,
}

/// An app that serves on a port.
#[derive(Debug, PartialEq, Eq)]
struct Service {
    app: String,
    port: u16,
}

impl Run {
    /// Runs the guest in the foreground. The machine's folder is `folder`.
    pub fn execute(mut self, tree: &Tree, folder: PathBuf) -> Result<ExitCode> {
        if self.app == disk::APP {
            return disk::run(tree, Options { folder, ..self.options }, self.port);
        }
        let guest = self.guest(tree)?;
        let options = &mut self.options;
        options.folder = folder;
        options.add_built(tree)?;
        if options.kernel.is_none() {
            bail!("{} is missing; `make kernel` builds it", tree.kernel().display());
        }
        if options.package.is_none() {
            bail!("{} is missing; `make deb` builds it", tree.package().display());
        }
        if let Some(service) = &guest.service {
            let to = match self.stack {
                Stack::Xensock => dom0_port(service.port),
                Stack::Netfront => SocketAddrV4::new(Interface::FIRST.address(), service.port),
            };
            options.forwards.push((self.port, to));
        }

        // While Xen boots, signals end this process and so the machine.
        let lab = Lab::boot(tree, options, &say)?;
        let interrupted = interrupts()?;
        self.serve(&lab, &guest, &interrupted)
    }

    /// The app's configuration, changed by the other options.
    fn guest(&self, tree: &Tree) -> Result<Guest> {
        let apps = tree.guests()?;
        let Some(config) = apps.get(&self.app) else {
            let names: Vec<_> = apps.into_keys().collect();
            let names = names.join(", ");
            bail!("unknown app {:?}; the apps are {names} and {}", self.app, disk::APP);
        };
        let mut guest =
            Guest { name: self.app.clone(), config: fs::read_to_string(config)?, service: None };
        // xl uses the last of repeated settings.
        let image = self.options.kernel.as_ref().and_then(|file| file.file_name()?.to_str());
        let own_image = image.filter(|image| *image != APPS_IMAGE);
        if let Some(image) = own_image {
            guest.name = image.to_owned();
            guest.config += &format!("\nname = \"{image}\"\n");
        }
        if own_image.is_some() || !self.words.is_empty() {
            guest.config += &format!("\ncmdline = \"{}\"\n", self.words.join(" "));
        }
        if own_image.is_none() {
            guest.service = service(&guest.config);
        }
        if self.stack == Stack::Netfront {
            guest.config += &over_netfront(&guest.config);
        }
        Ok(guest)
    }

    fn serve(&self, lab: &Lab, guest: &Guest, interrupted: &AtomicBool) -> Result<ExitCode> {
        let name = &guest.name;
        say(&format!("creating the guest {name}"));
        let file = format!("/root/{name}.cfg");
        lab.write(&file, &guest.config)?;
        lab.run(&format!("xl create -q {file}"))?;
        let mut command = lab.follow_console(name)?;
        command.stdin(Stdio::null());
        let console = Kept::spawn(command)?;
        let deadline = Instant::now() + START_TIME;
        let mut pending = guest.service.as_ref();
        if pending.is_none() {
            self.invite(None);
        }
        while !interrupted.load(Ordering::Relaxed) {
            if !lab.is_running() {
                bail!("QEMU ended; its logs are in {}", lab.folder().display());
            }
            if console.ended().is_some() {
                let logs = lab.pull_logs()?;
                let text = format!("the guest ended; logs are in {}", logs.display());
                if guest.service.is_some() {
                    bail!("{text}");
                }
                say(&text);
                return Ok(ExitCode::SUCCESS);
            }
            if let Some(service) = pending {
                if service.answers(self.port).is_ok() {
                    self.invite(pending.take());
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

    /// Prints how to reach the guest.
    fn invite(&self, service: Option<&Service>) {
        let port = self.port;
        println!();
        match service.map(|service| &*service.app) {
            Some("http") => println!("    http://localhost:{port}/"),
            Some("echo") => println!("    nc localhost {port}     echoes every line"),
            Some(_) => println!("    localhost:{port}"),
            None => println!("    `target/lab forward {port}:PORT` forwards to a port of dom0"),
        }
        println!("    `target/lab exec xl list`, `target/lab shell`: dom0");
        println!("    Ctrl-C ends the guest and Xen; below is the guest's console");
        println!();
    }
}

/// A flag that the signals to end set from now on.
pub fn interrupts() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// The last command line of a guest's configuration.
fn cmdline(config: &str) -> Option<&str> {
    let line = config.lines().rfind(|line| line.trim_start().starts_with("cmdline"))?;
    Some(line.split_once('"')?.1.rsplit_once('"')?.0)
}

/// The app and the port in a guest's command line.
fn service(config: &str) -> Option<Service> {
    let words = cmdline(config)?;
    let value = |key: &str| {
        words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    Some(Service { app: value("app")?.to_owned(), port: value("port")?.parse().ok()? })
}

/// The settings that give a guest a network interface in place of dom0's sockets.
fn over_netfront(config: &str) -> String {
    let cmdline = cmdline(config).unwrap_or_default();
    format!(
        "\npvcalls = []\nvif = [\"{}\"]\ncmdline = \"{cmdline} stack=netfront\"\n",
        Interface::FIRST.vif()
    )
}

impl Service {
    /// Gets one answer from the guest. A connection alone proves nothing: QEMU accepts it.
    fn answers(&self, port: u16) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        let (request, start): (&[u8], &[u8]) = match &*self.app {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn guest(words: &[&str]) -> Guest {
        let line = Line::parse_from(["run"].iter().chain(words));
        line.run.guest(&Tree::here()).unwrap()
    }

    #[test]
    fn the_service_is_read_from_the_last_command_line_in_the_configuration() {
        let config = "# port=1\nname = \"x\"\ncmdline = \"app=http port=80 log=debug\"\n";
        assert_eq!(service(config), Some(Service { app: "http".into(), port: 80 }));
        let config = format!("{config}cmdline = \"app=echo port=7\"\n");
        assert_eq!(service(&config), Some(Service { app: "echo".into(), port: 7 }));
        assert_eq!(service("cmdline = \"app=http\"\n"), None);
    }

    #[test]
    fn a_guest_over_netfront_has_an_interface_and_no_pvcalls_device() {
        let config = "cmdline = \"app=http port=80\"\npvcalls = [\"backend=0\"]\n";
        assert_eq!(
            over_netfront(config),
            "\npvcalls = []\nvif = [\"mac=00:16:3e:00:02:82\"]\n\
             cmdline = \"app=http port=80 stack=netfront\"\n"
        );
    }

    #[test]
    fn every_example_configuration_names_its_app_and_port() {
        for (name, path) in Tree::here().guests().unwrap() {
            let service = service(&fs::read_to_string(path).unwrap()).unwrap();
            assert_eq!(service.app, name);
        }
    }

    #[test]
    fn the_arguments_are_the_command_line_of_an_image() {
        let built = "/somewhere/xensock-kernel";
        assert_eq!(guest(&["--kernel", built]), guest(&[]));
        let echo = guest(&["--kernel", built, "--", "app=echo", "port=7"]);
        assert_eq!(echo.service, Some(Service { app: "echo".into(), port: 7 }));
        let own = guest(&["--kernel", "/somewhere/hello", "--", "port=7"]);
        assert_eq!((&*own.name, &own.service), ("hello", &None));
        assert!(own.config.ends_with("name = \"hello\"\n\ncmdline = \"port=7\"\n"));
    }
}
