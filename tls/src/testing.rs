//! Authorities, certificates and keys for tests, made by the program `openssl`.

extern crate std;

use core::future::poll_fn;
use core::task::Poll;
use edge_nal::{Close, TcpShutdown};
use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::string::String;
use std::{format, vec, vec::Vec};
use tempfile::TempDir;

/// What the years of a certificate may be, at most.
pub const VALID: (u32, u32) = (2020, 2099);

/// The key of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names explain them")]
pub enum Key {
    P256,
    P384,
    Rsa,
}

impl Key {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Key::P256 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Key::P384 => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"],
            Key::Rsa => &["-newkey", "rsa:2048"],
        }
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names explain them")]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// Both in one file.
    pub fn file(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// Somebody who signs certificates.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
    root: String,
}

const SETTINGS: &str = "\
[ca]
default_ca = this
[this]
database = index.txt
new_certs_dir = .
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
";

impl Authority {
    /// An authority with this name, and a key of its own.
    pub fn new(name: &str, key: Key) -> Authority {
        let folder = tempfile::tempdir().expect("a folder for an authority");
        let authority = Authority { folder, root: String::new() };
        authority.write("ca.cnf", SETTINGS);
        authority.write("index.txt", "");
        let identity = authority.signs_itself(name, key);
        authority.write("ca.pem", &identity.certificate);
        authority.write("ca.key", &identity.key);
        Authority { root: identity.certificate, ..authority }
    }

    /// The authority's own certificate, in PEM.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The file of the authority's own certificate.
    pub fn root_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for these names, such as `DNS:here.example,IP:127.0.0.1`, that is valid from
    /// the beginning of one year to that of another.
    pub fn issue(&self, names: &str, key: Key, (from, to): (u32, u32)) -> Identity {
        let names = format!("subjectAltName={names}");
        let mut arguments = vec!["req", "-nodes", "-subj", "/CN=a server", "-addext", &names];
        arguments.extend(["-addext", "basicConstraints=critical,CA:FALSE"]);
        arguments.extend(["-keyout", "new.key", "-out", "new.csr"]);
        arguments.extend(key.arguments());
        self.run(&arguments);
        self.sign((from, to))
    }

    fn sign(&self, (from, to): (u32, u32)) -> Identity {
        let (start, end) = (format!("{from}0101000000Z"), format!("{to}0101000000Z"));
        let mut arguments = vec!["ca", "-batch", "-notext", "-config", "ca.cnf"];
        arguments.extend(["-cert", "ca.pem", "-keyfile", "ca.key"]);
        arguments.extend(["-startdate", &start, "-enddate", &end]);
        arguments.extend(["-in", "new.csr", "-out", "new.pem"]);
        self.run(&arguments);
        Identity { certificate: self.read("new.pem"), key: self.read("new.key") }
    }

    /// A certificate that nobody else has signed: `openssl req -x509` as users write it.
    pub fn signs_itself(&self, name: &str, key: Key) -> Identity {
        let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=DNS:{name}"));
        let mut arguments = vec!["req", "-x509", "-nodes", "-days", "3650", "-subj", &subject];
        arguments.extend(["-addext", &names, "-keyout", "self.key", "-out", "self.pem"]);
        arguments.extend(key.arguments());
        self.run(&arguments);
        Identity { certificate: self.read("self.pem"), key: self.read("self.key") }
    }

    /// Runs openssl in the authority's folder, and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> Vec<u8> {
        let mut openssl = Command::new("openssl");
        openssl.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        let output = openssl.output().expect("openssl is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments:?}: {said}");
        output.stdout
    }

    /// Writes a file into the authority's folder.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("the folder takes files");
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).expect("openssl has written the file")
    }
}

/// Bytes on their way, and whether more follow.
type Queue = Rc<RefCell<(VecDeque<u8>, bool)>>;

/// One end of a connection in memory. An end that waits is polled again and again.
#[derive(Debug)]
pub struct End {
    from: Queue,
    to: Queue,
}

impl End {
    /// Both ends of a connection.
    pub fn pair() -> (End, End) {
        let (one, other) = (Queue::default(), Queue::default());
        (End { from: one.clone(), to: other.clone() }, End { from: other, to: one })
    }

    /// Sends the end of the stream.
    pub fn hang_up(&self) {
        self.to.borrow_mut().1 = true;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl ErrorType for End {
    type Error = ErrorKind;
}

impl Read for End {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, ErrorKind> {
        poll_fn(|context| {
            let (from, ended) = &mut *self.from.borrow_mut();
            if from.is_empty() && !*ended {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = to.len().min(from.len());
            to.iter_mut().zip(from.drain(..count)).for_each(|(to, byte)| *to = byte);
            Poll::Ready(Ok(count))
        })
        .await
    }
}

impl Write for End {
    async fn write(&mut self, from: &[u8]) -> Result<usize, ErrorKind> {
        self.to.borrow_mut().0.extend(from);
        Ok(from.len())
    }

    async fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

impl TcpShutdown for End {
    async fn close(&mut self, what: Close) -> Result<(), ErrorKind> {
        if what != Close::Read {
            self.hang_up();
        }
        Ok(())
    }

    async fn abort(&mut self) -> Result<(), ErrorKind> {
        self.hang_up();
        Ok(())
    }
}
