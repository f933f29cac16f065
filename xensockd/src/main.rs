//! The entry point: reads the command line and runs the daemon.

use clap::Parser;
use std::process::ExitCode;
use xensockd::arguments::Arguments;
use xensockd::daemon;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::new()
        .filter_level(arguments.log_level)
        .format_timestamp_millis()
        .format_target(false)
        .init();
    match daemon::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xensockd: {reason}");
            ExitCode::FAILURE
        }
    }
}
