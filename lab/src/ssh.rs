//! The connection to dom0: OpenSSH's client, and dropbear in dom0.
//!
//! One connection is made at boot and shared by all commands (ControlMaster), because in emulation
//! the key exchange takes longer than most commands. Nothing of the user's own ssh configuration is
//! read.

use crate::image::Base;
use crate::process;
use anyhow::Result;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const CONFIG: &str = "ssh_config";
const KNOWN_HOSTS: &str = "known_hosts";
/// Relative to the machine's folder, where every client runs: a socket's path must be short.
const SOCKET: &str = "ssh.sock";

/// Writes the client's configuration for the machine in `folder`.
pub fn configure(folder: &Path, base: &Base, port: u16) -> Result<()> {
    fs::write(folder.join(KNOWN_HOSTS), format!("dom0 {}\n", base.host_key()?))?;
    let config = format!(
        "Host dom0\n\
         HostName 127.0.0.1\n\
         Port {port}\n\
         User root\n\
         HostKeyAlias dom0\n\
         UserKnownHostsFile {}\n\
         StrictHostKeyChecking yes\n\
         IdentityFile {}\n\
         IdentitiesOnly yes\n\
         IdentityAgent none\n\
         BatchMode yes\n\
         ConnectTimeout 60\n\
         LogLevel ERROR\n\
         ControlPath {SOCKET}\n",
        quoted(&folder.join(KNOWN_HOSTS)),
        quoted(&base.client_key()),
    );
    Ok(fs::write(folder.join(CONFIG), config)?)
}

/// Opens the shared connection. It ends with the machine and with the process.
pub fn master(folder: &Path) -> Result<process::Kept> {
    let log = fs::File::create(folder.join("ssh.log"))?;
    let mut command = owned_client(folder, &["ssh"]);
    command.args(["-N", "-M", "dom0"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    process::Kept::spawn(command)
}

/// Whether the shared connection is open.
pub fn is_open(folder: &Path) -> bool {
    let mut command = client(folder);
    command.args(["-O", "check", "dom0"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A client for the machine in `folder`; the caller adds options and a command line.
pub fn client(folder: &Path) -> Command {
    let mut command = Command::new("ssh");
    command.args(["-F", CONFIG]).current_dir(folder);
    command
}

/// The same, killed at the end of the thread that spawns it. `words` start the client.
pub fn owned_client(folder: &Path, words: &[&str]) -> Command {
    let mut command = process::owned(words);
    command.args(["-F", CONFIG]).current_dir(folder);
    command
}

/// A path for ssh's configuration: in quotes, with doubled percent signs.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('%', "%%"))
}
