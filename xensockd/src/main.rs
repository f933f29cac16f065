//! The entry point: reads the command line and runs the daemon.

use clap::Parser;
use std::process::ExitCode;
use xensockd::arguments::{Arguments, Command};
use xensockd::daemon;
use xensockd::rules::Policy;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::max())
        .format_timestamp_millis()
        .format_target(false)
        .init();
    // It may be changed while the daemon runs.
    log::set_max_level(arguments.log_level);
    let result = match &arguments.command {
        Some(Command::Check { file }) => Policy::read(Some(file)).map(|policy| {
            println!("{}: no mistakes, {} entries for guests", file.display(), policy.guests());
        }),
        None => daemon::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xensockd: {reason}");
            ExitCode::FAILURE
        }
    }
}
