//! The daemon's end of the control socket.

use super::{GROUP, Reply, Request};
use crate::clients;
use nix::unistd::Group;
use std::convert::Infallible;
use std::fs::{self, Permissions, metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use xen_linux::runtime::{READABLE, Reactor, Watched};

/// Answers requests. Dropping it removes the socket.
pub struct Server {
    socket: Watched,
    path: PathBuf,
    reactor: Reactor,
}

impl Server {
    /// Opens the socket. The caller must hold the daemon's lock, as an earlier daemon's socket is
    /// removed. An error is a line for the user.
    pub fn open(reactor: &Reactor, path: &Path) -> Result<Self, String> {
        let open = || {
            let group = Group::from_name(GROUP)?.map(|group| group.gid.as_raw());
            let share = |path: &Path, mode| {
                // The daemon's own user need not, and systemd does not allow it to.
                if group.is_some_and(|group| metadata(path).is_ok_and(|it| it.gid() != group)) {
                    chown(path, None, group)?;
                }
                fs::set_permissions(path, Permissions::from_mode(mode))
            };
            if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
                fs::DirBuilder::new().mode(0o700).create(folder)?;
                share(folder, 0o750)?;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            // Until now, the permissions are those that the umask leaves.
            share(path, 0o660)?;
            listener.set_nonblocking(true)?;
            reactor.watch(Rc::new(OwnedFd::from(listener)), READABLE)
        };
        let failed = |error| format!("cannot open the control socket {}: {error}", path.display());
        let socket = open().map_err(failed)?;
        Ok(Server { socket, path: path.into(), reactor: reactor.clone() })
    }

    /// Answers each request, and its client, with what `answer` returns, until the kernel fails.
    pub async fn run(
        &self,
        answer: impl AsyncFn(Request, &OwnedFd) -> Reply,
    ) -> io::Result<Infallible> {
        let serve = async |client: &Watched| {
            let line = clients::receive(client, |line| line.contains(&b'\n')).await?;
            let reply = match serde_json::from_slice(&line) {
                Ok(request) => answer(request, client).await,
                Err(error) => Reply::Failed(format!("this is not a request: {error}")),
            };
            let mut line = serde_json::to_vec(&reply)?;
            line.push(b'\n');
            clients::send(client, &line).await
        };
        clients::serve_all(&self.reactor, &self.socket, "the control socket", serve).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::{Either, select};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;
    use xen_linux::runtime::Runtime;

    #[test]
    fn each_client_gets_a_reply_and_a_bad_request_is_explained() {
        let path = std::env::temp_dir().join(format!("xensockd-{}/control", std::process::id()));
        let mut runtime = Runtime::new().unwrap();
        let server = Server::open(runtime.reactor(), &path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o750));
        let ask = |request: &str| {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            let mut reply = String::new();
            client.read_to_string(&mut reply).unwrap();
            reply
        };
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                // This one says nothing, and delays nobody.
                let _silent = UnixStream::connect(&path).unwrap();
                ["\"reload\"\n", "{\"log-level\":\"debug\"}\n", "nonsense\n", "\"stop\"\n"].map(ask)
            });
            let reactor = runtime.reactor().clone();
            let answer = async |request, _: &OwnedFd| Reply::Done(format!("{request:?}"));
            let asked = async {
                let serving = Box::pin(server.run(answer));
                let ended = Box::pin(async {
                    while !asked.is_finished() {
                        reactor.sleep(Duration::from_millis(2)).await;
                    }
                });
                assert!(matches!(select(serving, ended).await, Either::Right(_)));
                asked.join().unwrap()
            };
            let [reload, level, nonsense, unknown] = runtime.block_on(asked).unwrap();
            assert_eq!(reload, "{\"done\":\"Reload\"}\n");
            assert_eq!(level, "{\"done\":\"LogLevel(\\\"debug\\\")\"}\n");
            assert!(nonsense.contains("not a request"), "{nonsense}");
            assert!(unknown.contains("unknown variant `stop`"), "{unknown}");
        });
        drop(server);
        assert!(!path.exists());
        fs::remove_dir(path.parent().unwrap()).unwrap();
    }
}
