//! Writes the manual pages and the shells' completions of both programs below a folder like
//! `/usr/share`.

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use std::path::Path;
use std::{env, fs, io};
use xensockd::{arguments, control};

/// Where the shells look for completions.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions"),
    (Shell::Zsh, "zsh/vendor-completions"),
    (Shell::Fish, "fish/vendor_completions.d"),
];

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: manual FOLDER");
    let folder = env::args_os().nth(1).ok_or_else(usage)?;
    for command in [arguments::Arguments::command(), control::arguments::Arguments::command()] {
        write(&command, Path::new(&folder))?;
    }
    Ok(())
}

fn write(command: &Command, folder: &Path) -> io::Result<()> {
    let name = command.get_name();
    for (shell, place) in SHELLS {
        let place = folder.join(place);
        fs::create_dir_all(&place)?;
        let file = generate_to(shell, &mut command.clone(), name, &place)?;
        // The name that Debian's bash looks for.
        if shell == Shell::Bash {
            fs::rename(file, place.join(name))?;
        }
    }
    let place = folder.join("man/man8");
    fs::create_dir_all(&place)?;
    // Gives the subcommands their full names.
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    manual(&command, &place)
}

/// The manual pages of a command and its subcommands.
fn manual(command: &Command, place: &Path) -> io::Result<()> {
    // The section of programs for administrators.
    Man::new(command.clone()).section("8").generate_to(place)?;
    command.get_subcommands().try_for_each(|command| manual(command, place))
}
