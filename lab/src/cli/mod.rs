//! The command line: one file for each command that is more than a call.

mod disk;
mod run;
mod up;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use lab::{Dom0, Options, Tree, dom0_port};
use std::io::IsTerminal;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus};

/// Boots real Xen in QEMU and drives it.
#[derive(Parser)]
#[command(name = "lab", version)]
pub struct Cli {
    /// The machine's folder, with its logs [default: target/lab-state]
    #[arg(long, global = true, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots Xen and dom0, and leaves them running
    Up(Options),
    /// Ends the machine that `up` or `run` keeps
    Down,
    /// Runs a command in dom0: one word is a shell's command line, more are a program and its
    /// arguments
    Exec {
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Copies a file into dom0
    Push {
        /// The file of this machine
        from: PathBuf,
        /// Its path in dom0
        to: String,
    },
    /// Copies a file out of dom0
    Pull {
        /// The path in dom0
        from: String,
        /// The file of this machine
        to: PathBuf,
    },
    /// Forwards a loopback port of this machine to dom0, or to a guest on its bridge
    Forward {
        /// HOSTPORT:DOM0PORT, or HOSTPORT:ADDRESS:PORT
        #[arg(value_parser = parse_forward)]
        ports: (u16, SocketAddrV4),
    },
    /// Shows a domain's console, and takes input when on a terminal (Ctrl-] ends it)
    Console {
        /// The domain's name
        domain: String,
    },
    /// Opens a shell in dom0, and boots a lab for it if none is up
    Shell(Options),
    /// Boots a lab, runs one guest in it, and ends both on Ctrl-C
    Run(run::Run),
}

impl Cli {
    /// Runs the command and returns the exit status.
    pub fn execute(self) -> Result<ExitCode> {
        let tree = Tree::here();
        let folder = self.state.unwrap_or_else(|| tree.state());
        match self.command {
            Command::Up(options) => up::up(&tree, Options { folder, ..options }),
            Command::Down => up::down(&folder),
            Command::Exec { words } => {
                let line = match &words[..] {
                    [line] => line.clone(),
                    words => shlex::try_join(words.iter().map(String::as_str))?,
                };
                Ok(passed_on(Dom0::attach(folder)?.stream(&line)?))
            }
            Command::Push { from, to } => {
                Dom0::attach(folder)?.push(&from, &to)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Pull { from, to } => {
                Dom0::attach(folder)?.pull(&from, &to)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Forward { ports: (host, to) } => {
                Dom0::attach(folder)?.forward(host, to)?;
                println!("localhost:{host} is forwarded to {to}");
                Ok(ExitCode::SUCCESS)
            }
            Command::Console { domain } => console(&Dom0::attach(folder)?, &domain),
            Command::Shell(options) => shell(&tree, Options { folder, ..options }),
            Command::Run(run) => run.execute(&tree, folder),
        }
    }
}

fn console(dom0: &Dom0, domain: &str) -> Result<ExitCode> {
    let name = shlex::try_quote(domain)?;
    if dom0.exec(&format!("xl domid {name}"))?.status != 0 {
        bail!("no domain {domain:?} is running; `lab exec xl list` lists all domains");
    }
    if std::io::stdin().is_terminal() {
        return Ok(passed_on(dom0.interact(&format!("xl console -t pv {name}"))?));
    }
    Ok(passed_on(dom0.follow_console(domain)?.status()?))
}

fn shell(tree: &Tree, mut options: Options) -> Result<ExitCode> {
    if lab::keeper(&options.folder)?.is_some() {
        return Ok(passed_on(Dom0::attach(options.folder)?.interact("")?));
    }
    options.add_built(tree)?;
    let lab = lab::Lab::boot(tree, &options, &say)?;
    println!("`exit` ends the lab");
    Ok(passed_on(lab.interact("")?))
}

/// Prints what the lab does.
fn say(text: &str) {
    println!("lab: {text}");
}

/// The exit status for the outcome of a command in dom0.
fn passed_on(status: ExitStatus) -> ExitCode {
    // Without a code, a signal has ended the client.
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn parse_forward(text: &str) -> Result<(u16, SocketAddrV4), String> {
    let ports = text.split_once(':').and_then(|(host, to)| {
        let to = to.parse().or_else(|_| to.parse().map(dom0_port)).ok()?;
        Some((host.parse::<u16>().ok()?, to))
    });
    match ports {
        Some((host, to)) if host != 0 && to.port() != 0 => Ok((host, to)),
        _ => Err("expected HOSTPORT:DOM0PORT, such as 8080:80, or HOSTPORT:ADDRESS:PORT".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ports_are_numbers_and_never_zero() {
        assert_eq!(parse_forward("8080:80"), Ok((8080, dom0_port(80))));
        let guest = "10.0.2.130:80".parse().unwrap();
        assert_eq!(parse_forward("8080:10.0.2.130:80"), Ok((8080, guest)));
        for wrong in
            ["80", "0:80", "80:0", "x:80", "80:70000", "1:2:3", "80:10.0.2.130", "80::1:80"]
        {
            assert!(parse_forward(wrong).is_err(), "{wrong}");
        }
    }
}
