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

/// Executes one QMP command in the machine of this folder.
pub fn execute(folder: &Path, command: &str, arguments: Value) -> Result<Value> {
    let stream = connect(folder)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut conversation = Conversation { reader: BufReader::new(stream) };
    conversation.line()?;
    conversation.execute(json!({ "execute": "qmp_capabilities" }))?;
    conversation.execute(json!({ "execute": command, "arguments": arguments }))
}

/// Executes one command of QEMU's human monitor and returns what it printed.
pub fn monitor(folder: &Path, line: &str) -> Result<String> {
    let answer = execute(folder, "human-monitor-command", json!({ "command-line": line }))?;
    Ok(answer.as_str().unwrap_or_default().trim().to_owned())
}

fn connect(folder: &Path) -> Result<UnixStream> {
    // A socket's path has at most 108 bytes, a folder's may have more. The path through an open
    // folder is always short.
    let open = File::open(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/qmp.sock", open.as_raw_fd()))
        .with_context(|| format!("cannot connect to QEMU at {}/qmp.sock", folder.display()))
}

struct Conversation {
    reader: BufReader<UnixStream>,
}

impl Conversation {
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU closed its control socket");
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn execute(&mut self, command: Value) -> Result<Value> {
        writeln!(self.reader.get_mut(), "{command}")?;
        loop {
            let answer = self.line()?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"]);
            }
            // Anything else is an event.
        }
    }
}
