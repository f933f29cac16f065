//! dom0 of a machine that is up: commands, files, ports, consoles.

use crate::{qmp, ssh, state};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// The time limit for a command of [`Dom0::exec`].
const EXEC_TIME: Duration = Duration::from_secs(180);
/// The exit status of `timeout` when it ended the command.
const TIMED_OUT: i32 = 124;

/// The outcome of a command in dom0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Its exit status.
    pub status: i32,
}

impl Output {
    /// Standard output as text, without trailing white space.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Fails with `error` and standard error if the status is not 0.
    fn success(self, error: &str) -> Result<Self> {
        if self.status != 0 {
            bail!("dom0: {error}: {}", String::from_utf8_lossy(&self.stderr).trim());
        }
        Ok(self)
    }
}

/// dom0 of a machine that is up. Cheap to clone. Each command runs an ssh client.
#[derive(Clone, Debug)]
pub struct Dom0 {
    folder: PathBuf,
}

impl Dom0 {
    /// dom0 of the machine that another process keeps in `folder`.
    pub fn attach(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        state::qemu_id(&folder)?;
        Ok(Self { folder })
    }

    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The machine's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs a shell command line to its end, and returns its outputs and any exit status. Fails if
    /// dom0 cannot be reached, or if the command does not end in three minutes.
    pub fn exec(&self, line: &str) -> Result<Output> {
        self.exec_with(line, Stdio::null(), EXEC_TIME)
    }

    /// Runs a shell command line whose status must be 0, and returns its standard output.
    pub fn run(&self, line: &str) -> Result<String> {
        self.run_within(line, EXEC_TIME)
    }

    /// Like [`run`](Dom0::run), with another time limit.
    pub fn run_within(&self, line: &str, at_most: Duration) -> Result<String> {
        let output = self.exec_with(line, Stdio::null(), at_most)?;
        let error = format!("`{line}` ended with status {}", output.status);
        Ok(output.success(&error)?.text())
    }

    /// Copies the host's file `from` to the path `to` in dom0, with its permissions.
    pub fn push(&self, from: &Path, to: &str) -> Result<()> {
        let file = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            bail!("{} is not a plain file", from.display());
        }
        let mode = metadata.permissions().mode() & 0o777;
        let to = shlex::try_quote(to)?;
        // Writes a new file first: the old one may be a running program.
        let line = format!("cat > {to}.new && chmod {mode:o} {to}.new && mv -f {to}.new {to}");
        self.exec_with(&line, file.into(), EXEC_TIME)?
            .success(&format!("cannot write {to}"))
            .map(drop)
    }

    /// Copies dom0's file `from` to the host's path `to`.
    pub fn pull(&self, from: &str, to: &Path) -> Result<()> {
        let output = self.exec(&format!("cat {}", shlex::try_quote(from)?))?;
        let output = output.success(&format!("cannot read {from}"))?;
        fs::write(to, output.stdout).with_context(|| format!("cannot write {}", to.display()))
    }

    /// Writes a text file in dom0.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        self.write_and(path, content, "true")
    }

    /// Writes a text file in dom0, then runs a command line whose status must be 0.
    pub(crate) fn write_and(&self, path: &str, content: &str, line: &str) -> Result<()> {
        let mut input = tempfile::tempfile()?;
        input.write_all(content.as_bytes())?;
        input.rewind()?;
        let both = format!("cat > {} && {line}", shlex::try_quote(path)?);
        let output = self.exec_with(&both, input.into(), EXEC_TIME)?;
        let error = format!("`{both}` ended with status {}", output.status);
        output.success(&error).map(drop)
    }

    /// Makes a TCP port in dom0's network reachable as the host's port `host`, on loopback: one of
    /// dom0 itself, [`dom0_port`](crate::dom0_port), or one of a guest on its bridge.
    pub fn forward(&self, host: u16, to: SocketAddrV4) -> Result<()> {
        // QEMU only reports that it failed; this check gives the reason.
        check_port(host)?;
        let rule = format!("hostfwd_add n0 tcp:127.0.0.1:{host}-{to}");
        let error = qmp::monitor(&self.folder, &rule)?;
        if !error.is_empty() {
            bail!("cannot forward port {host}: {error}");
        }
        Ok(())
    }

    /// All output of a domain to its console since its creation.
    pub fn console(&self, domain: &str) -> Result<String> {
        let log = console_log(domain)?;
        let output = self.exec(&format!("cat {log}"))?;
        let output = output.success(&format!("no console log of a domain {domain:?}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command that prints what a domain writes to its console, from its creation until the
    /// domain ends. It ends with the thread that spawns it.
    pub fn follow_console(&self, domain: &str) -> Result<Command> {
        let log = console_log(domain)?;
        let line = format!(
            "tail -n +1 -F {log} 2>/dev/null & tail=$!; \
             while xl domid {domain} >/dev/null 2>&1; do sleep 2; done; kill $tail"
        );
        let mut command = ssh::owned_client(&self.folder, &["ssh"]);
        command.args(["-T", "dom0", "--", &line]);
        Ok(command)
    }

    /// Xen's serial console, which dom0's kernel and init also write to.
    pub fn serial_log(&self) -> Result<String> {
        let log = fs::read(self.folder.join("serial.log"))?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// Copies dom0's logs (consoles, backend, toolstack, Xen's messages) into the subfolder
    /// `dom0-logs` of the machine's folder, and returns its path.
    pub fn pull_logs(&self) -> Result<PathBuf> {
        let logs = self.folder.join("dom0-logs");
        fs::create_dir_all(&logs)?;
        let line = "xl dmesg > /var/log/xl-dmesg.log; xl list > /var/log/xl-list.log; \
                    xenstore-ls -fp > /var/log/xenstore.log; dmesg > /var/log/linux-dmesg.log; \
                    tar -C /var/log -cf - .";
        let output = self.exec(line)?;
        let archive = logs.join("logs.tar");
        fs::write(&archive, output.stdout)?;
        let mut tar = Command::new("tar");
        crate::process::output(tar.arg("-xf").arg(&archive).arg("-C").arg(&logs))?;
        fs::remove_file(archive)?;
        Ok(logs)
    }

    /// Runs a command line in dom0 with this process's input and outputs.
    pub fn stream(&self, line: &str) -> Result<ExitStatus> {
        let mut command = ssh::client(&self.folder);
        command.args(["-T", "dom0", "--", line]).status().context("cannot run ssh")
    }

    /// Runs a command line, or a login shell if it is empty, in dom0 on this process's terminal.
    pub fn interact(&self, line: &str) -> Result<ExitStatus> {
        let mut command = ssh::client(&self.folder);
        command.args(["-t", "dom0"]);
        if !line.is_empty() {
            command.args(["--", line]);
        }
        command.status().context("cannot run ssh")
    }

    fn exec_with(&self, line: &str, stdin: Stdio, at_most: Duration) -> Result<Output> {
        let seconds = at_most.as_secs().to_string();
        let mut command = ssh::owned_client(&self.folder, &["timeout", &seconds, "ssh"]);
        command.args(["-T", "dom0", "--", line]).stdin(stdin);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = command.spawn().context("cannot run ssh")?;
        let stdout = all(client.stdout.take().context("ssh has no output")?);
        let stderr = all(client.stderr.take().context("ssh has no output")?);
        let ended = client.wait()?;
        if ended.code() == Some(TIMED_OUT) {
            // The outputs stay open until the command ends: the connection that all clients share
            // has them.
            bail!("dom0: `{line}` did not end in {seconds} s");
        }
        let (stdout, stderr) = (stdout.recv()??, stderr.recv()??);
        match ended.code() {
            // ssh failed. A command may also end with 255, but without such a message.
            Some(255) if stdout.is_empty() && is_connection_error(&stderr) => {
                let stderr = String::from_utf8_lossy(&stderr);
                bail!("cannot reach dom0: {}", stderr.trim())
            }
            Some(status) => Ok(Output { stdout, stderr, status }),
            None => bail!("the ssh client was ended by a signal ({ended})"),
        }
    }
}

/// Fails if this loopback port is in use.
pub fn check_port(port: u16) -> Result<()> {
    TcpListener::bind(("127.0.0.1", port))
        .map(drop)
        .with_context(|| format!("port {port} of this machine cannot be used"))
}

/// The path of the log of a domain's console.
pub(crate) fn console_log(domain: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if domain.is_empty() || !domain.chars().all(plain) {
        bail!("{domain:?} is not a valid domain name");
    }
    Ok(format!("/var/log/xen/guest-{domain}.log"))
}

/// The part of a log without its last line if that is incomplete.
pub(crate) fn whole_lines(log: &str) -> &str {
    log.rfind('\n').map_or("", |end| &log[..=end])
}

/// Reads an output to its end, in a thread of its own.
fn all(mut output: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // Nobody may wait for it any more.
        let _ = sender.send(output.read_to_end(&mut bytes).map(|_| bytes));
    });
    receiver
}

fn is_connection_error(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    ["ssh:", "Connection", "mux_client", "kex_exchange", "Host key"]
        .iter()
        .any(|start| text.lines().any(|line| line.starts_with(start)))
}
