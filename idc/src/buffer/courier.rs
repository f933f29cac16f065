//! Transfers to and from the buffers of others.

use super::serve::{read_header, write_header};
use super::{LocalBuffer, RemoteBuffer};
use crate::address::{Address, Place, Service};
use crate::driver::{Client, drive};
use crate::life::{NodeId, Publication};
use crate::node::{Node, Resource};
use crate::quota::Quota;
use crate::time::Quiet;
use crate::transport::{Link, LinkReader, LinkWriter, Transport};
use crate::wire::{End, HEADER_LEN, Header, Kind, MAX_DATA, Transfer};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::Future;
use core::ops::Range;
use embassy_time::{Duration, Instant, with_deadline};
use xen::{Errno, WaitList};

/// How long a courier looks for the owner of a buffer.
const SEARCH: Duration = Duration::from_secs(10);

/// The most bytes of one request. A longer transfer takes several.
const REQUEST: usize = 1 << 20;

/// Why a transfer failed. Some of its bytes may have been transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferError {
    /// The buffer's owner is not there any more, or cannot be reached from here.
    Unreachable,
    /// The connection with the owner ended. The transfer may be repeated.
    Disconnected,
    /// The buffer is not registered, or not any more.
    Revoked,
    /// The buffer is shorter.
    OutOfRange,
    /// The buffer may not be read, or not be written.
    Forbidden,
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransferError::Unreachable => "the buffer's owner cannot be reached",
            TransferError::Disconnected => "the connection with the buffer's owner ended",
            TransferError::Revoked => "the buffer is not registered",
            TransferError::OutOfRange => "beyond the end of the buffer",
            TransferError::Forbidden => "the buffer's owner does not allow this",
        })
    }
}

impl core::error::Error for TransferError {}

/// What the end of a transfer means to the user.
fn result(end: End) -> Result<(), TransferError> {
    match end {
        End::Done => Ok(()),
        End::Revoked => Err(TransferError::Revoked),
        End::OutOfRange => Err(TransferError::OutOfRange),
        End::Forbidden => Err(TransferError::Forbidden),
    }
}

/// Transfers bytes, one transfer at a time. It keeps the connection with the latest owner.
///
/// A transfer waits as long as its owner is there, even if it does nothing. The future may be
/// dropped: if the transfer has begun, this ends the connection, and bytes may have been moved.
///
/// Dropping the courier ends its driver.
pub struct Courier {
    core: Rc<Core>,
}

struct Core {
    number: u32,
    job: RefCell<Option<Job>>,
    /// Whether the job has begun.
    started: Cell<bool>,
    /// Whether a job was given up that had begun, so that its link is in the middle of something.
    given_up: Cell<bool>,
    /// At how many places the job's owner was not.
    attempt: Cell<usize>,
    /// Until when the owner is looked for at a place.
    deadline: Cell<Instant>,
    /// The result of the latest job.
    result: Cell<Option<Result<(), TransferError>>>,
    /// The driver, which waits for a job.
    driver: WaitList,
    /// The user, who waits for a result.
    user: WaitList,
    destroyed: Cell<bool>,
    quiet: Quiet,
}

/// A transfer.
#[derive(Clone)]
struct Job {
    remote: RemoteBuffer,
    kind: Kind,
    at: u64,
    local: LocalBuffer,
}

impl Courier {
    /// Creates a courier. The future drives it: poll it until it ends, which it does after the
    /// courier is dropped.
    pub fn create<T: Transport>(
        resource: Resource<T>,
    ) -> (Courier, impl Future<Output = Resource<T>>) {
        let core = Rc::new(Core {
            number: resource.node.next_courier(),
            job: RefCell::default(),
            started: Cell::new(false),
            given_up: Cell::new(false),
            attempt: Cell::new(0),
            deadline: Cell::new(Instant::MIN),
            result: Cell::new(None),
            driver: WaitList::default(),
            user: WaitList::default(),
            destroyed: Cell::new(false),
            quiet: Quiet::default(),
        });
        let driven = core.clone();
        (Courier { core }, async move { driven.drive(resource).await })
    }

    /// Copies bytes of a remote buffer, from `at` on, as many as `into` has.
    pub async fn receive(
        &mut self,
        from: &RemoteBuffer,
        at: u64,
        into: &LocalBuffer,
    ) -> Result<(), TransferError> {
        self.transfer(Kind::Read, from, at, into).await
    }

    /// Copies `data` to a remote buffer, from `at` on.
    pub async fn send(
        &mut self,
        to: &RemoteBuffer,
        at: u64,
        data: &LocalBuffer,
    ) -> Result<(), TransferError> {
        self.transfer(Kind::Write, to, at, data).await
    }

    async fn transfer(
        &mut self,
        kind: Kind,
        remote: &RemoteBuffer,
        at: u64,
        local: &LocalBuffer,
    ) -> Result<(), TransferError> {
        let core = &self.core;
        core.result.set(None);
        core.attempt.set(0);
        core.deadline.set(Instant::now() + SEARCH);
        *core.job.borrow_mut() = Some(Job { remote: *remote, kind, at, local: local.clone() });
        let _given_up = GiveUp(core);
        core.driver.wake_all();
        core.user.until(|| core.result.take()).await
    }
}

/// Gives the job up, if there is one when this is dropped.
struct GiveUp<'a>(&'a Core);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        let GiveUp(core) = self;
        if core.job.take().is_some() && core.started.take() {
            core.given_up.set(true);
            core.driver.wake_all();
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.core.destroyed.set(true);
        self.core.driver.wake_all();
    }
}

impl Core {
    async fn drive<T: Transport>(&self, mut resource: Resource<T>) -> Resource<T> {
        let node = resource.node.clone();
        while let Some(job) = self.next_job().await {
            let Some(place) = self.place(&node, &job) else {
                self.finish(Err(TransferError::Unreachable));
                continue;
            };
            self.deadline.set(Instant::now() + SEARCH);
            let address = Address { place, service: Service::buffers(self.number) };
            self.given_up.set(false);
            let visit = Visit {
                core: self,
                place,
                node: &node,
                owner: Cell::new(None),
                over: Cell::new(false),
            };
            resource.reserve = drive(&node, &address, resource.reserve, &visit).await;
        }
        resource
    }

    /// Where the owner is looked for now.
    fn place<T: Transport>(&self, node: &Node<T>, job: &Job) -> Option<Place> {
        let mut places = node.transport().routes(&job.remote).into_iter().flatten();
        places.nth(self.attempt.get())
    }

    /// The owner is not where it was looked for.
    fn look_elsewhere(&self) {
        self.attempt.set(self.attempt.get() + 1);
        self.driver.wake_all();
    }

    /// Waits for a job. `None` if the courier is dropped.
    async fn next_job(&self) -> Option<Job> {
        let next = || self.job.borrow().clone().map(Some);
        self.driver.until(|| if self.destroyed.get() { Some(None) } else { next() }).await
    }

    fn finish(&self, result: Result<(), TransferError>) {
        self.job.borrow_mut().take();
        self.result.set(Some(result));
        self.user.wake_all();
    }
}

/// A visit to one owner of buffers.
struct Visit<'a, T: Transport> {
    core: &'a Core,
    place: Place,
    node: &'a Node<T>,
    /// The node that this end is connected with.
    owner: Cell<Option<NodeId>>,
    /// Whether the owner has left while nobody wanted anything of it.
    over: Cell<bool>,
}

impl<T: Transport> Visit<'_, T> {
    /// The job, if it is one for this owner.
    fn job(&self) -> Option<Job> {
        let job = self.core.job.borrow().clone()?;
        (self.core.place(self.node, &job) == Some(self.place)).then_some(job)
    }

    /// Carries out a job. Fails if the link does.
    async fn carry_out(
        &self,
        job: &Job,
        reader: &mut impl LinkReader,
        writer: &mut impl LinkWriter,
    ) -> Result<Result<(), TransferError>, Errno> {
        let head = LocalBuffer::new(HEADER_LEN);
        let total = job.local.len();
        let starts = (0..total.max(1)).step_by(REQUEST);
        let mut requests = starts.map(|start| start..total.min(start + REQUEST));
        let mut outcome = Ok(());
        let mut asked = requests.next();
        if let Some(first) = &asked {
            ask(job, first.clone(), &head, writer).await?;
        }
        while let Some(range) = asked {
            // The owner finds the next request when it has answered this one, and need not wait.
            asked = if outcome.is_ok() { requests.next() } else { None };
            if let Some(next) = &asked {
                ask(job, next.clone(), &head, writer).await?;
            }
            writer.flush().await?;
            let end = receive(job.kind, &job.local.slice(range), &head, reader).await?;
            outcome = outcome.and(result(end));
        }
        Ok(outcome)
    }
}

/// Requests a part of a transfer: for a WRITE, the bytes follow.
async fn ask(
    job: &Job,
    range: Range<usize>,
    head: &LocalBuffer,
    writer: &mut impl LinkWriter,
) -> Result<(), Errno> {
    let transfer = Transfer {
        id: job.remote.id,
        key: job.remote.key,
        offset: job.at.saturating_add(range.start as u64),
        length: range.len() as u64,
    };
    let piece = job.local.slice(range);
    let header = Header { kind: job.kind, slot: 0, len: Transfer::LEN as u32, code: 0 };
    write_header(writer, head, header).await?;
    writer.write_all(LocalBuffer::from(&transfer.to_bytes()).shared()).await?;
    if job.kind == Kind::Write {
        for start in (0..piece.len()).step_by(MAX_DATA as usize) {
            let chunk = piece.slice(start..piece.len().min(start + MAX_DATA as usize));
            let data = Header { kind: Kind::Data, slot: 0, len: chunk.len() as u32, code: 0 };
            write_header(writer, head, data).await?;
            writer.write_all(chunk.shared()).await?;
        }
    }
    Ok(())
}

/// Receives the answer to a request: for a READ, the bytes.
async fn receive(
    kind: Kind,
    to: &LocalBuffer,
    head: &LocalBuffer,
    reader: &mut impl LinkReader,
) -> Result<End, Errno> {
    let mut done = 0;
    loop {
        let header = read_header(reader, head).await?;
        let len = header.len as usize;
        match header.kind {
            Kind::Data if kind == Kind::Read && len <= to.len() - done => {
                reader.read_exact(to.slice(done..done + len).shared()).await?;
                done += len;
            }
            Kind::End => {
                let end = End::from_code(header.code).ok_or(Errno::EPROTO)?;
                let missing = kind == Kind::Read && done < to.len();
                return if end == End::Done && missing { Err(Errno::EPROTO) } else { Ok(end) };
            }
            _ => return Err(Errno::EPROTO),
        }
    }
}

impl<T: Transport> Client for Visit<'_, T> {
    fn quota(&self) -> Quota {
        Quota::default()
    }

    fn quiet(&self) -> &Quiet {
        &self.core.quiet
    }

    fn is_destroyed(&self) -> bool {
        let core = self.core;
        let is_elsewhere = core.job.borrow().is_some() && self.job().is_none();
        core.destroyed.get() || core.given_up.get() || is_elsewhere || self.over.get()
    }

    async fn destroyed(&self) {
        let core = self.core;
        let done = || self.is_destroyed().then_some(());
        loop {
            let looks = || (self.owner.get().is_none() && self.job().is_some()).then_some(());
            core.driver.until(|| done().or_else(looks)).await;
            if self.is_destroyed() {
                return;
            }
            let found = || done().or_else(|| self.owner.get().map(drop));
            if with_deadline(core.deadline.get(), core.driver.until(found)).await.is_err() {
                core.look_elsewhere();
            }
        }
    }

    async fn appear(&self, _place: Place) {}

    fn connect(&self, other: &Publication, _place: Place, _instance: u32) {
        self.owner.set(Some(other.node));
        self.core.driver.wake_all();
    }

    async fn carry<L: Link>(&self, link: &mut L) -> Errno {
        let Some(owner) = self.owner.get() else { return Errno::EPROTO };
        let (mut reader, mut writer) = link.split();
        loop {
            let job = self.core.driver.until(|| self.job()).await;
            if job.remote.node != owner {
                self.core.look_elsewhere();
                continue;
            }
            self.core.started.set(true);
            let result = self.carry_out(&job, &mut reader, &mut writer).await;
            match result {
                // It was another job's.
                _ if self.core.given_up.get() => return Errno::EPIPE,
                Ok(result) => {
                    self.core.started.set(false);
                    self.core.finish(result);
                }
                Err(error) => return error,
            }
        }
    }

    async fn disconnect(&self) {
        self.owner.set(None);
        if self.core.started.take() {
            self.core.finish(Err(TransferError::Disconnected));
        }
        if self.core.job.borrow().is_none() {
            self.over.set(true);
            self.core.driver.wake_all();
        }
    }

    async fn disappear(&self) {}
}
