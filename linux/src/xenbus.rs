//! The connection to xenstored through the kernel: `/dev/xen/xenbus`, a stream of xenstore
//! messages.
//!
//! The device is opened twice, once for watches and once for all other requests. Linux carries out
//! `XS_WATCH` and `XS_UNWATCH` within the `write`, and holds a lock of the open file that it also
//! needs to deliver other replies on the same file. With a request outstanding on that file, the
//! kernel's xenbus thread and the writer would deadlock, and xenstore would stop for the whole
//! domain.
//!
//! A request is written once the one before has its reply. Linux sends it in a thread of its own,
//! and reads its body from a buffer of the open file, which the next `write` overwrites.

use crate::device::explain;
use crate::runtime::{READABLE, Reactor, Watched};
use rustix::fs::{Mode, OFlags};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use xen::Side;
use xen::abi::xs_wire::{XS_UNWATCH, XS_WATCH};

/// The device file, and its place on a kernel that has only xenfs.
const DEVICES: [&str; 2] = ["/dev/xen/xenbus", "/proc/xen/xenbus"];

/// The size of a message's header: four words (`struct xsd_sockmsg`).
const HEADER: usize = 16;

/// The open files: for requests, and for watches.
type Files = [Rc<Watched>; 2];

const REQUESTS: usize = 0;
const WATCHES: usize = 1;

/// Opens the device. An error is a line for the user.
pub fn open(reactor: &Reactor) -> Result<(XenBusReader, XenBusWriter), String> {
    let open = |path| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        // The device is always writable.
        reactor.watch(Rc::new(file), READABLE).map(Rc::new)
    };
    let files = |path| Ok([open(path)?, open(path)?]);
    let files = files(DEVICES[0])
        .or_else(|first: io::Error| files(DEVICES[1]).map_err(|_| first))
        .map_err(|error| explain(DEVICES[0], "xenfs", error))?;
    let turn = Rc::new(Turn::default());
    Ok((XenBusReader::new(files.clone(), turn.clone()), XenBusWriter::new(files, turn)))
}

/// Whether a request waits for its reply.
#[derive(Default)]
struct Turn {
    taken: Cell<bool>,
    waiting: Cell<Option<Waker>>,
}

impl Turn {
    fn poll_take(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.taken.replace(true) {
            return Poll::Ready(());
        }
        self.waiting.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    fn end(&self) {
        self.taken.set(false);
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

/// A word of a header: 0 is the message's type, 3 the length of its payload.
fn word(header: &[u8], index: usize) -> u32 {
    let bytes = &header[4 * index..4 * index + 4];
    u32::from_ne_bytes(bytes.try_into().expect("four bytes"))
}

/// Merges the messages of both files into one stream.
pub struct XenBusReader {
    files: Files,
    /// The bytes read so far of each file's next header.
    headers: [Vec<u8>; 2],
    /// The file of the current message.
    current: usize,
    /// The number of bytes of its header that `read` returned.
    given: usize,
    /// The number of bytes of its payload that are still to be read.
    rest: usize,
    turn: Rc<Turn>,
}

impl XenBusReader {
    fn new(files: Files, turn: Rc<Turn>) -> Self {
        let headers = [Vec::with_capacity(HEADER), Vec::with_capacity(HEADER)];
        XenBusReader { files, headers, current: 0, given: HEADER, rest: 0, turn }
    }

    /// Reads some bytes of the current message, or of the next one.
    pub async fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.given == HEADER && self.rest == 0 {
            self.current = poll_fn(|cx| self.poll_header(cx)).await?;
            self.given = 0;
            // Events come from the other file.
            if self.current == REQUESTS {
                self.turn.end();
            }
            self.rest = word(&self.headers[self.current], 3) as usize;
        }
        if self.given < HEADER {
            let header = &self.headers[self.current][self.given..];
            let count = header.len().min(bytes.len());
            bytes[..count].copy_from_slice(&header[..count]);
            self.given += count;
            if self.given == HEADER {
                self.headers[self.current].clear();
            }
            return Ok(count);
        }
        let most = bytes.len().min(self.rest);
        let file = &self.files[self.current];
        let count = poll_fn(|cx| poll_read(file, cx, &mut bytes[..most])).await?;
        self.rest -= count;
        Ok(count)
    }

    /// Waits for a whole header, from either file.
    fn poll_header(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        for (number, (file, header)) in self.files.iter().zip(&mut self.headers).enumerate() {
            while header.len() < HEADER {
                let mut bytes = [0; HEADER];
                let missing = HEADER - header.len();
                match poll_read(file, cx, &mut bytes[..missing]) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Poll::Ready(result) => header.extend(&bytes[..result?]),
                }
            }
            if header.len() == HEADER {
                return Poll::Ready(Ok(number));
            }
        }
        Poll::Pending
    }
}

fn poll_read(file: &Watched, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
    file.poll_io(cx, Side::Rx, |file| Ok(rustix::io::read(file, &mut *bytes)?))
}

/// Writes each message to the file that it belongs to.
pub struct XenBusWriter {
    files: Files,
    /// An incomplete message.
    message: Vec<u8>,
    turn: Rc<Turn>,
}

impl XenBusWriter {
    fn new(files: Files, turn: Rc<Turn>) -> Self {
        XenBusWriter { files, message: Vec::new(), turn }
    }

    /// Takes some bytes of a message. Waits with the last ones until the message can be written.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = match self.message.get(..HEADER) {
            Some(header) => HEADER + word(header, 3) as usize - self.message.len(),
            None => HEADER - self.message.len(),
        };
        let count = missing.min(bytes.len());
        self.message.extend(&bytes[..count]);
        if let Some(header) = self.message.get(..HEADER)
            && self.message.len() == HEADER + word(header, 3) as usize
        {
            let which = match word(header, 0) {
                XS_WATCH | XS_UNWATCH => WATCHES,
                _ => {
                    poll_fn(|cx| self.turn.poll_take(cx)).await;
                    REQUESTS
                }
            };
            let mut rest = &self.message[..];
            while !rest.is_empty() {
                let written =
                    rustix::io::retry_on_intr(|| rustix::io::write(&**self.files[which], rest))?;
                rest = &rest[written..];
            }
            self.message.clear();
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Runtime;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::OwnedFd;
    use std::pin::pin;

    fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
        let words = [kind, 1, 0, payload.len() as u32];
        let mut message: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        message.extend(payload);
        message
    }

    fn pair(reactor: &Reactor) -> (Rc<Watched>, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (near, far) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let near = reactor.watch(Rc::new(near), READABLE).unwrap();
        (Rc::new(near), far)
    }

    fn taken(file: &OwnedFd) -> Vec<u8> {
        let mut bytes = [0; 256];
        let count = rustix::io::read(file, &mut bytes).unwrap_or(0);
        bytes[..count].to_vec()
    }

    #[test]
    fn watches_have_their_own_file_and_both_files_are_read_as_one_stream() {
        let mut runtime = Runtime::new().unwrap();
        let reactor = runtime.reactor().clone();
        let test = async {
            let ((first, requests), (second, watches)) = (pair(&reactor), pair(&reactor));
            let files = [first, second];
            let turn = Rc::new(Turn::default());
            let mut writer = XenBusWriter::new(files.clone(), turn.clone());
            let (read, watch) = (message(2, b"path\0"), message(XS_WATCH, b"path\0token\0"));
            let unwatch = message(XS_UNWATCH, b"path\0token\0");
            let all = [&read[..], &watch, &unwatch].concat();
            for piece in all.chunks(7) {
                let mut rest = piece;
                while !rest.is_empty() {
                    rest = &rest[writer.write(rest).await.unwrap()..];
                }
            }
            assert_eq!(taken(&requests), read);
            assert_eq!(taken(&watches), [&watch[..], &unwatch].concat());

            // Half of an event, then a whole answer: the answer comes first, and both are whole.
            let mut reader = XenBusReader::new(files, turn);
            let (event, answer) = (message(15, b"path\0token\0"), message(2, b"value"));
            rustix::io::write(&watches, &event[..9]).unwrap();
            rustix::io::write(&requests, &answer).unwrap();
            let mut got: Vec<u8> = Vec::new();
            while got.len() < answer.len() {
                let mut bytes = [0; 5];
                let count = reader.read(&mut bytes).await.unwrap();
                got.extend(&bytes[..count]);
            }
            assert_eq!(got, answer);
            rustix::io::write(&watches, &event[9..]).unwrap();
            got.clear();
            while got.len() < event.len() {
                let mut bytes = [0; 64];
                let count = reader.read(&mut bytes).await.unwrap();
                got.extend(&bytes[..count]);
            }
            assert_eq!(got, event);
            drop(requests);
            assert!(reader.read(&mut [0]).await.is_err(), "the end of a file is an error");
        };
        runtime.block_on(test).unwrap();
    }

    #[test]
    fn a_request_is_written_when_the_one_before_has_its_reply() {
        let mut runtime = Runtime::new().unwrap();
        let reactor = runtime.reactor().clone();
        let test = async {
            let ((first, requests), (second, _watches)) = (pair(&reactor), pair(&reactor));
            let (files, turn) = ([first, second], Rc::new(Turn::default()));
            let mut writer = XenBusWriter::new(files.clone(), turn.clone());
            let mut reader = XenBusReader::new(files, turn);
            let (one, two) = (message(2, b"one\0"), message(2, b"two\0"));
            let both = async {
                for part in [&one[..HEADER], &one[HEADER..], &two[..HEADER], &two[HEADER..]] {
                    assert_eq!(writer.write(part).await.unwrap(), part.len());
                }
            };
            let mut both = pin!(both);
            let waits = poll_fn(|cx| Poll::Ready(both.as_mut().poll(cx).is_pending())).await;
            assert!(waits);
            assert_eq!(taken(&requests), one);
            rustix::io::write(&requests, &message(2, b"value")).unwrap();
            assert!(reader.read(&mut [0; HEADER]).await.is_ok());
            both.await;
            assert_eq!(taken(&requests), two);
        };
        runtime.block_on(test).unwrap();
    }
}
