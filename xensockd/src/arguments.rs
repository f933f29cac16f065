//! The command line.

use crate::rules::DEFAULT;
use crate::sandbox::Files;
use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use xensock::wire::Extensions;

/// The most threads that are started without `--threads`.
const MAX_DEFAULT_THREADS: usize = 4;

/// Serves the sockets of Xen guests (PV Calls, XenSock) from this domain.
///
/// Requires the kernel modules xen-evtchn and xen-gntdev, and a running xenstored. A line
/// `pvcalls=["backend=0"]` in a guest's configuration gives it a device. A file of rules says what
/// each guest may do. SIGHUP reads it again; SIGUSR1 logs what is in use; SIGTERM and SIGINT close
/// all guests' sockets and stop the daemon.
#[derive(Clone, Debug, Parser)]
#[command(name = "xensockd", version, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do instead of serving guests
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The file of rules, which must exist [default: /etc/xensockd.toml, which need not]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The least severe messages to log: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,

    /// The threads that serve guests, each guest by one of them [default: one for each processor,
    /// at most 4]
    #[arg(long, value_name = "COUNT",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub threads: Option<usize>,

    /// Take over from a running daemon, if there is one: it stops, and its listening sockets stay
    /// open for the guests
    #[arg(long)]
    pub replace: bool,

    /// Offer no extensions: only PV Calls version 1 and XenSock draft 1
    #[arg(long)]
    pub plain: bool,

    /// The user as which xensockd runs if root starts it; root stays root [default: xensockd]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,

    /// The control socket, for xensockctl
    #[arg(long, value_name = "FILE", default_value = crate::control::DEFAULT)]
    pub control: PathBuf,

    /// The lock file, which prevents a second daemon
    #[arg(long, value_name = "FILE", default_value = "/run/xensockd/lock")]
    pub lock_file: PathBuf,
}

/// What the program does besides serving guests.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check a file of rules: prints the first mistake and its place, and exits with 1 if there is
    /// one
    Check {
        /// The file
        file: PathBuf,
    },
    /// Give up rights as the daemon does, try what must be refused, and print the outcome
    CheckSandbox {
        /// The user as which the daemon runs, if root starts it [default: xensockd]
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
}

impl Arguments {
    /// Gives up what the daemon does not need, before it starts threads. An error is a line for the
    /// user.
    pub fn become_user(&self) -> Result<(), String> {
        let files = [&self.lock_file, &self.control];
        let folders: Vec<_> = files.into_iter().filter_map(|file| file.parent()).collect();
        let user = match &self.command {
            Some(Command::CheckSandbox { user }) => user,
            _ => &self.user,
        };
        crate::user::become_user(user.as_deref(), &folders)
    }

    /// The files that the daemon opens or removes once it is confined.
    pub fn files(&self) -> Files<'_> {
        let rules = self.config.as_deref().unwrap_or(Path::new(DEFAULT));
        Files { rules, control: &self.control }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(|| processors().min(MAX_DEFAULT_THREADS))
    }

    /// The extensions to offer.
    pub fn extensions(&self) -> Extensions {
        if self.plain { Extensions::empty() } else { Extensions::all() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_arguments_the_defaults_hold() {
        let arguments = Arguments::try_parse_from(["xensockd"]).unwrap();
        assert!(arguments.command.is_none() && arguments.config.is_none());
        assert_eq!(arguments.log_level, log::LevelFilter::Info);
        assert!((1..=4).contains(&arguments.threads()));
    }

    #[test]
    fn invalid_values_are_refused() {
        for wrong in [["--threads", "0"], ["--log-level", "loud"], ["--config", ""], ["check", ""]]
        {
            assert!(Arguments::try_parse_from(["xensockd", wrong[0], wrong[1]]).is_err());
        }
    }
}
