//! The entry point: reads the command line and runs the daemon.

use clap::Parser;
use std::process::ExitCode;
use xensockd::arguments::{Arguments, Command};
use xensockd::rules::Policy;
use xensockd::sandbox::trial;
use xensockd::{daemon, logging};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let is_journal = logging::start(arguments.log_level);
    let result = match &arguments.command {
        Some(Command::Check { file }) => Policy::read(Some(file)).map(|policy| {
            println!("{}: no mistakes, {} entries for guests", file.display(), policy.guests());
            ExitCode::SUCCESS
        }),
        Some(Command::CheckSandbox { .. }) => check_sandbox(&arguments).map(|()| ExitCode::SUCCESS),
        None => daemon::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(reason) => {
            match is_journal {
                true => log::error!("{reason}"),
                false => eprintln!("xensockd: {reason}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn check_sandbox(arguments: &Arguments) -> Result<(), String> {
    arguments.become_user()?;
    trial::run(&arguments.files())
}
