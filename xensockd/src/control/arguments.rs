//! The command line of `xensockctl`.

use super::DEFAULT;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Controls xensockd. Only root and the members of the group xensockd may.
#[derive(Parser)]
#[command(name = "xensockctl", version)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub command: Command,

    /// The daemon's control socket
    #[arg(long = "socket", value_name = "FILE", default_value = DEFAULT, global = true)]
    pub control: PathBuf,
}

/// What the program does.
#[derive(Subcommand)]
pub enum Command {
    /// Show the guests and how much of their limits they use
    Status {
        /// Print a line of JSON
        #[arg(long)]
        json: bool,
        /// Show it again every two seconds, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Show a guest's rules and its sockets
    Guest {
        /// Its name, or its domain's number
        name: String,
        /// Print a line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Print numbers for Prometheus, in the OpenMetrics format
    Metrics,
    /// End a socket of a guest, which gets an error
    Close {
        /// The guest's name, or its domain's number
        guest: String,
        /// The socket's number, which `guest` shows
        socket: u64,
    },
    /// Read the rules again
    Reload,
    /// Restart the daemon, if systemd has started it. Clients of guests wait meanwhile
    Restart,
    /// Log messages of this level from now on: off, error, warn, info, debug or trace
    LogLevel {
        /// The level
        level: log::LevelFilter,
    },
}
