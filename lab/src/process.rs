//! Child processes that end with the process that started them.

use anyhow::{Context, Result, bail};
use shared_child::SharedChild;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;

/// A command whose process the kernel kills when the *thread* that spawned it ends.
///
/// `setpriv` requests the signal. The shell then exits if the owner has already ended, because no
/// signal would come; otherwise it executes the program.
pub fn owned(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "sh", "-c", r#"[ "$PPID" = "$0" ] || exit 1; exec "$@""#])
        .arg(std::process::id().to_string())
        .args(words);
    command
}

/// Runs a command to its end. Fails with its standard error if it does not succeed.
pub fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Callers read what the command prints, so it must not be translated.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, stderr.trim());
    }
    Ok(output)
}

/// A child process that is killed when this value is dropped or this process ends.
#[derive(Debug)]
pub struct Kept {
    child: Arc<SharedChild>,
}

impl Kept {
    /// Spawns `command`, which `owned` should have made, from a new thread that lives as long as
    /// the child. The calling thread may end earlier.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let program = command.get_program().to_string_lossy().into_owned();
        thread::Builder::new().name("child-keeper".into()).spawn(move || {
            let child = SharedChild::spawn(&mut command).map(Arc::new);
            let spawned = child.as_ref().ok().cloned();
            let _ = sender.send(child);
            if let Some(child) = spawned {
                let _ = child.wait();
            }
        })?;
        let child = receiver.recv()?.with_context(|| format!("cannot run {program}"))?;
        Ok(Self { child })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills it and waits for its end.
    pub fn kill(&self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_kept_child_outlives_the_thread_that_asked_for_it_but_not_its_handle() {
        let command = owned(&["sleep", "600"]);
        let kept = thread::spawn(move || Kept::spawn(command)).join().unwrap().unwrap();
        thread::sleep(Duration::from_millis(300));
        assert_eq!(kept.ended(), None);
        let child = Arc::clone(&kept.child);
        drop(kept);
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn an_owned_program_gets_its_arguments_unchanged() {
        let output = output(&mut owned(&["printf", "%s|", "a b", "$HOME", "'"])).unwrap();
        assert_eq!(output.stdout, b"a b|$HOME|'|");
    }

    #[test]
    fn a_failing_command_is_reported_with_its_stderr() {
        let error = output(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"]));
        assert!(error.unwrap_err().to_string().contains("no such luck"));
    }
}
