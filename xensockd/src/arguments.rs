//! The command line.

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use std::path::PathBuf;
use xensock::back::Limits;
use xensock::wire::Extensions;

/// The most threads that are started without `--threads`.
const MAX_DEFAULT_THREADS: usize = 4;

/// Serves the sockets of Xen guests (PV Calls, XenSock) from this domain.
///
/// Requires root, the kernel modules xen-evtchn and xen-gntdev, and a running xenstored. A line
/// `pvcalls=["backend=0"]` in a guest's configuration gives it a device. SIGUSR1 logs what is in
/// use; SIGTERM and SIGINT close all guests' sockets and stop the daemon.
#[derive(Clone, Debug, Parser)]
#[command(name = "xensockd", version)]
pub struct Arguments {
    /// The least severe messages to log: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,

    /// The largest data ring of a connection: two to this power pages. Rings begin small and grow
    /// under load. Linux's frontend requires at least 4. XenSock draft 1 without extensions always
    /// uses 6
    #[arg(long, value_name = "ORDER", default_value = "9",
          value_parser = RangedU64ValueParser::<u32>::new().range(1..=9))]
    pub max_page_order: u32,

    /// The most sockets that each device of a guest may have at a time
    #[arg(long, value_name = "COUNT", default_value = "1024",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub max_sockets: usize,

    /// The threads that serve guests, each guest by one of them [default: one for each processor,
    /// at most 4]
    #[arg(long, value_name = "COUNT",
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    pub threads: Option<usize>,

    /// Let several guests listen on the same port and share its connections
    #[arg(long)]
    pub reuse_port: bool,

    /// Offer no extensions: only PV Calls version 1 and XenSock draft 1
    #[arg(long)]
    pub plain: bool,

    /// The lock file, which prevents a second daemon
    #[arg(long, value_name = "FILE", default_value = "/run/xensockd.lock")]
    pub lock_file: PathBuf,
}

impl Arguments {
    /// The number of threads.
    pub fn threads(&self) -> usize {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(|| processors().min(MAX_DEFAULT_THREADS))
    }

    /// The extensions to offer.
    pub fn extensions(&self) -> Extensions {
        if self.plain { Extensions::empty() } else { Extensions::all() }
    }

    /// The limits of each device.
    pub fn limits(&self) -> Limits {
        Limits {
            sockets: self.max_sockets,
            max_ring_order: self.max_page_order,
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_arguments_the_defaults_hold() {
        let arguments = Arguments::try_parse_from(["xensockd"]).unwrap();
        assert_eq!(arguments.limits().max_ring_order, 9);
        assert_eq!(arguments.limits().sockets, 1024);
        assert_eq!(arguments.log_level, log::LevelFilter::Info);
        assert!((1..=4).contains(&arguments.threads()));
    }

    #[test]
    fn invalid_values_are_refused() {
        for wrong in [
            ["--max-page-order", "0"],
            ["--max-page-order", "10"],
            ["--max-sockets", "0"],
            ["--threads", "0"],
            ["--log-level", "loud"],
        ] {
            assert!(Arguments::try_parse_from(["xensockd", wrong[0], wrong[1]]).is_err());
        }
    }
}
