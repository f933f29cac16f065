//! Listening sockets that outlive the daemon: one that stops leaves them to its successor.
//!
//! Clients that connect meanwhile wait in a socket's queue. It goes through systemd, which keeps
//! files of a unit while it restarts (`sd_notify(3)`, `FDSTORE`), or straight to a new daemon that
//! asks for it on the control socket. Both get the same messages, each with one socket.

use crate::control::{Reply, Request};
use crate::linux;
use rustix::io::IoSlice;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use rustix::process::geteuid;
use std::env;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, UnixDatagram, UnixStream};
use std::path::Path;
use std::time::Duration;
use xen::DomId;

/// How long an heir may take to receive a socket.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// How long a daemon may take to stop, once it was asked for its sockets.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// The first of the files that systemd passes.
const FIRST: i32 = 3;

/// The most of a message that is received.
const MAX_MESSAGE: usize = 1024;

/// The key of a socket's name in a message.
const NAME: &str = "FDNAME=";

/// A listening socket that a daemon leaves.
#[derive(Debug)]
pub struct Legacy {
    /// The guest that listens.
    pub guest: DomId,
    /// The address that the guest asked for.
    pub asked: SocketAddr,
    /// The socket, at the address to which the rules led.
    pub socket: OwnedFd,
}

impl Legacy {
    /// A name in the characters that systemd permits.
    fn name(&self) -> String {
        format!("{} {}", self.guest, self.asked).replace(':', "_")
    }

    fn from_name(name: &str, socket: OwnedFd) -> Option<Self> {
        let (guest, asked) = name.split_once(' ')?;
        let asked = asked.replace('_', ":").parse().ok()?;
        Some(Legacy { guest: DomId(guest.parse().ok()?), asked, socket })
    }
}

/// Gets the sockets of a daemon that stops.
#[derive(Debug)]
pub struct Heir(OwnedFd);

impl Heir {
    /// systemd, if it has started this process.
    pub fn systemd() -> Option<Self> {
        let name = env::var_os("NOTIFY_SOCKET")?;
        let connect = || -> io::Result<Self> {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => net::SocketAddr::from_abstract_name(name)?,
                None => net::SocketAddr::from_pathname(&name)?,
            };
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address)?;
            socket.set_write_timeout(Some(SEND_PATIENCE))?;
            Ok(Heir(socket.into()))
        };
        let failed = |error: &_| log::warn!("cannot reach systemd at {name:?}: {error}");
        connect().inspect_err(failed).ok()
    }

    /// A new daemon, which has asked on this connection.
    fn daemon(connection: OwnedFd) -> io::Result<Self> {
        let connection = UnixStream::from(connection);
        connection.set_nonblocking(false)?;
        connection.set_write_timeout(Some(SEND_PATIENCE))?;
        Ok(Heir(connection.into()))
    }

    /// Tells systemd that the daemon serves. Only then may others, such as `xendomains`, begin.
    pub fn ready(&self) {
        if let Err(error) = self.send("READY=1\n", None) {
            log::warn!("systemd does not learn that the daemon has started: {error}");
        }
    }

    /// Leaves all of these sockets, and logs what came of it.
    pub fn leave(&self, all: &[Legacy]) {
        let sent = all.iter().try_for_each(|legacy| {
            let text = format!("FDSTORE=1\n{NAME}{}\n", legacy.name());
            self.send(&text, Some(&legacy.socket))
        });
        match sent {
            Ok(()) => log::info!("left {} listening sockets to the next daemon", all.len()),
            Err(error) => log::warn!("cannot leave all listening sockets: {error}"),
        }
    }

    /// Takes the sockets that an earlier daemon left to systemd.
    pub fn take(&self) -> Vec<Legacy> {
        let number = |name| env::var(name).ok()?.parse::<usize>().ok();
        if number("LISTEN_PID") != Some(std::process::id() as usize) {
            return Vec::new();
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let count = number("LISTEN_FDS").unwrap_or(0);
        let mut all = Vec::new();
        for (name, socket) in names.split(':').zip(linux::passed_files(FIRST, count)) {
            // systemd has it, too, and would keep it when the guest has closed it.
            if let Err(error) = self.send(&format!("FDSTOREREMOVE=1\n{NAME}{name}\n"), None) {
                log::warn!("systemd still keeps the socket {name}: {error}");
            }
            all.extend(Legacy::from_name(name, socket));
        }
        all
    }

    fn send(&self, text: &str, socket: Option<&OwnedFd>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = socket.map(AsFd::as_fd);
        control.push(SendAncillaryMessage::ScmRights(sockets.as_slice()));
        sendmsg(&self.0, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// The client of the control socket as the heir. An error is a line for the user.
pub fn heir(client: &OwnedFd) -> Result<Heir, String> {
    // The socket is also for those who may not have guests' sockets.
    let user = sockopt::socket_peercred(client).map_err(|error| error.to_string())?.uid;
    if user != geteuid() && !user.is_root() {
        return Err("only another daemon gets the listening sockets".into());
    }
    let connection = client.try_clone();
    connection.and_then(Heir::daemon).map_err(|error| format!("cannot hand over: {error}"))
}

/// Asks the daemon with this control socket to stop, and returns what it leaves. Without a daemon,
/// that is nothing. An error is a line for the user.
pub fn replace(control: &Path) -> Result<Vec<Legacy>, String> {
    let connection = match UnixStream::connect(control) {
        Ok(connection) => connection,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(format!("cannot ask {}: {error}", control.display())),
    };
    let receive = || {
        connection.set_read_timeout(Some(STOP_PATIENCE))?;
        let request = serde_json::to_string(&Request::HandOver)?;
        (&connection).write_all(format!("{request}\n").as_bytes())?;
        let mut all = Vec::new();
        loop {
            let mut text = [0; MAX_MESSAGE];
            let (count, socket) = receive(&connection, &mut text)?;
            let text = String::from_utf8_lossy(&text[..count]);
            match socket {
                _ if count == 0 => return Ok(all),
                None => return Err(io::Error::other(refusal(&text))),
                Some(socket) => {
                    let name = text.lines().find_map(|line| line.strip_prefix(NAME));
                    all.extend(name.and_then(|name| Legacy::from_name(name, socket)));
                }
            }
        }
    };
    receive().map_err(|error| format!("the running daemon does not hand over: {error}"))
}

/// Receives a message, which a stream keeps apart from others by the file that comes with each.
fn receive(connection: &UnixStream, text: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(text)];
    let count = recvmsg(connection, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok((count, files.flatten().next()))
}

fn refusal(reply: &str) -> String {
    match serde_json::from_str(reply) {
        Ok(Reply::Failed(reason)) => reason,
        _ => format!("it says {:?}", reply.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    fn legacy(asked: &str) -> Legacy {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap().into();
        Legacy { guest: DomId(7), asked: asked.parse().unwrap(), socket }
    }

    #[test]
    fn a_name_has_the_guest_and_the_address_and_systemd_permits_it() {
        for asked in ["0.0.0.0:80", "[2001:db8:1111:2222:3333:4444:5555:6666%5]:65535"] {
            let name = legacy(asked).name();
            // `fdname_is_valid` of systemd.
            assert!(name.bytes().all(|byte| (b' '..0x7f).contains(&byte) && byte != b':'));
            assert!(name.len() <= 255);
            let read = Legacy::from_name(&name, legacy(asked).socket).unwrap();
            assert_eq!((read.guest, read.asked), (DomId(7), asked.parse().unwrap()));
        }
        for wrong in ["", "stored", "7", "x 0.0.0.0_80", "7 nowhere"] {
            assert!(Legacy::from_name(wrong, legacy("0.0.0.0:80").socket).is_none(), "{wrong}");
        }
    }

    #[test]
    fn sockets_reach_a_daemon_that_asks_and_go_on_listening() {
        let path = std::env::temp_dir().join(format!("xensockd-heir-{}", std::process::id()));
        let control = net::UnixListener::bind(&path).unwrap();
        let all: Vec<_> = (0..50).map(|_| legacy("[::]:80")).collect();
        let places: Vec<_> = all.iter().map(|legacy| local(&legacy.socket)).collect();
        let asked = std::thread::spawn({
            let path = path.clone();
            move || replace(&path)
        });
        let (mut connection, _) = control.accept().unwrap();
        let mut request = [0; "\"hand-over\"\n".len()];
        connection.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"\"hand-over\"\n");
        // So small that not all sockets fit at once.
        sockopt::set_socket_send_buffer_size(&connection, 1).unwrap();
        let heir = heir(&connection.into()).unwrap();
        heir.leave(&all);
        drop((heir, all));
        let got = asked.join().unwrap().unwrap();
        assert!(got.iter().map(|legacy| local(&legacy.socket)).eq(places.iter().copied()));
        TcpStream::connect(places[0]).unwrap();
        drop(got);
        assert!(TcpStream::connect(places[0]).is_err(), "its last copy is closed");

        // Another daemon answers with a reason.
        let asked = std::thread::spawn({
            let path = path.clone();
            move || replace(&path)
        });
        let (mut connection, _) = control.accept().unwrap();
        connection.write_all(b"{\"failed\":\"no such request\"}\n").unwrap();
        assert!(asked.join().unwrap().unwrap_err().contains("no such request"));
        drop(control);
        assert!(replace(&path).unwrap().is_empty(), "nobody is there");
        std::fs::remove_file(path).unwrap();
    }

    fn local(socket: &OwnedFd) -> SocketAddr {
        xen_linux::tcp::local_addr(socket).unwrap()
    }

    #[test]
    fn systemd_gets_a_message_with_each_socket() {
        let path = std::env::temp_dir().join(format!("xensockd-notify-{}", std::process::id()));
        let systemd = UnixDatagram::bind(&path).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.connect(&path).unwrap();
        let heir = Heir(socket.into());
        heir.ready();
        heir.leave(&[legacy("0.0.0.0:80")]);
        let systemd = UnixStream::from(OwnedFd::from(systemd));
        let mut text = [0; MAX_MESSAGE];
        let (count, _) = receive(&systemd, &mut text).unwrap();
        assert_eq!(&text[..count], b"READY=1\n");
        let (count, file) = receive(&systemd, &mut text).unwrap();
        assert_eq!(&text[..count], b"FDSTORE=1\nFDNAME=7 0.0.0.0_80\n");
        assert!(local(&file.unwrap()).port() > 0);
        std::fs::remove_file(path).unwrap();
    }
}
