//! The entry point: reads the command line and runs the daemon.

use clap::Parser;
use std::process::ExitCode;
use xensockd::arguments::{Arguments, Command};
use xensockd::daemon;
use xensockd::rules::Policy;
use xensockd::sandbox::trial;

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
        Some(Command::CheckSandbox { .. }) => check_sandbox(&arguments),
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

fn check_sandbox(arguments: &Arguments) -> Result<(), String> {
    arguments.become_user()?;
    trial::run(&arguments.files())
}
