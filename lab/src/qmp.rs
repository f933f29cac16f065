//! QEMU's control socket. Each command uses a new connection, so no process occupies the socket.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Executes one command of the human monitor of this folder's machine, and returns what it printed.
pub fn monitor(folder: &Path, line: &str) -> Result<String> {
    // A socket's path has at most 108 bytes, a folder's may have more. The path through an open
    // folder is always short.
    let open = File::open(folder)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/qmp.sock", open.as_raw_fd()))
        .with_context(|| format!("cannot connect to QEMU at {}/qmp.sock", folder.display()))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = BufReader::new(stream);
    // QEMU's greeting.
    receive(&mut stream)?;
    execute(&mut stream, json!({ "execute": "qmp_capabilities" }))?;
    let arguments = json!({ "command-line": line });
    let command = json!({ "execute": "human-monitor-command", "arguments": arguments });
    let answer = execute(&mut stream, command)?;
    Ok(answer.as_str().unwrap_or_default().trim().to_owned())
}

fn execute(stream: &mut BufReader<UnixStream>, command: Value) -> Result<Value> {
    writeln!(stream.get_mut(), "{command}")?;
    loop {
        let answer = receive(stream)?;
        if let Some(value) = answer.get("return") {
            return Ok(value.clone());
        }
        if let Some(error) = answer.get("error") {
            bail!("QEMU refused {command}: {}", error["desc"]);
        }
        // Anything else is an event.
    }
}

fn receive(stream: &mut BufReader<UnixStream>) -> Result<Value> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        bail!("QEMU closed its control socket");
    }
    Ok(serde_json::from_str(&line)?)
}
