//! The owner's side of transfers. It needs no application, no transaction and no third end: only
//! the table of the registered buffers.

use super::table::Entry;
use super::{LocalBuffer, Rights};
use crate::address::{Address, Place, Service};
use crate::driver::{Client, drive};
use crate::life::{NodeId, Publication};
use crate::node::Node;
use crate::quota::Quota;
use crate::time::Quiet;
use crate::transport::{Link, LinkReader, LinkWriter, Transport};
use crate::wire::{End, HEADER_LEN, Header, Kind, MAX_DATA, Transfer};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use embassy_time::{Duration, Instant};
use futures_util::stream::{FuturesUnordered, StreamExt};
use xen::{Errno, Flag, WaitList, yield_now};

/// Bytes of the memory for what a transfer has left when the buffer is unregistered.
const SPARE: usize = 4096;

/// After this time without progress, a visit may end for another one of the same place.
const STALE: Duration = Duration::from_secs(1);

impl<T: Transport> Node<T> {
    /// Serves the registered buffers to at most `visitors` couriers at a time, as long as it is
    /// polled. [`Errno::ENOMEM`] or the like if there is nothing to begin with.
    ///
    /// If more couriers come, those of the place that has the most have to go, so that no domain or
    /// host can keep the others out. A courier that has to go comes back when it has something to
    /// transfer.
    pub async fn serve_buffers(&self, visitors: usize) -> Errno {
        let address = Address { place: Place::Anyone, service: Service::buffers(0) };
        let present = Present { most: visitors, ..Present::default() };
        let spare = match self.transport().reserve() {
            Ok(reserve) => RefCell::new(Some(reserve)),
            Err(error) => return error,
        };
        // One more than may stay: who that is turns out when he is there.
        let servers = (0..=visitors).map(|_| self.serve_couriers(&address, &present, &spare));
        match servers.collect::<FuturesUnordered<_>>().next().await {
            Some(never) => match never {},
            None => unreachable!("there is always one"),
        }
    }

    /// Serves one courier after another, forever: a task that ended would leave its timers.
    async fn serve_couriers(
        &self,
        address: &Address,
        present: &Present,
        spare: &RefCell<Option<T::Reserve>>,
    ) -> Infallible {
        loop {
            let begin = || {
                let reserve = || spare.take().or_else(|| self.transport().reserve().ok());
                let reserve = if present.waits.get() { None } else { reserve() }?;
                present.waits.set(true);
                Some(reserve)
            };
            let reserve = present.turn.until(begin).await;
            let (visit, has_come) = (Rc::default(), Cell::new(false));
            let server = Server { node: self, present, visit, has_come };
            spare.replace(Some(drive(self, address, reserve, &server).await));
        }
    }
}

/// The couriers that are served.
#[derive(Default)]
struct Present {
    /// Whether a server waits for a courier. There is one at a time.
    waits: Cell<bool>,
    /// In the order in which they began.
    visits: RefCell<Vec<Rc<Visit>>>,
    /// The most visits.
    most: usize,
    quiet: Quiet,
    /// Servers that wait until no other one waits.
    turn: WaitList,
}

/// A courier's visit.
struct Visit {
    /// Where it comes from.
    origin: Cell<Place>,
    /// Who it is, if it is connected: it says so itself.
    courier: Cell<Option<(NodeId, u32)>>,
    /// When it last made progress.
    last: Cell<Instant>,
    over: Flag,
}

impl Default for Visit {
    fn default() -> Self {
        let (courier, over) = Default::default();
        let (origin, last) = (Cell::new(Place::Anyone), Cell::new(Instant::MIN));
        Visit { origin, courier, last, over }
    }
}

impl Visit {
    fn progress(&self) {
        self.last.set(Instant::now());
    }
}

impl Present {
    /// Begins a visit. If there are too many, one ends.
    fn begin(&self, visit: &Rc<Visit>) {
        self.visits.borrow_mut().push(visit.clone());
        let visits = self.visits.borrow();
        let visits: Vec<_> = visits.iter().filter(|visit| !visit.over.is_raised()).collect();
        let same =
            |visit: &Visit| visits.iter().filter(|other| other.origin == visit.origin).count();
        let most = visits.iter().map(|visit| same(visit)).max().unwrap_or(0);
        let crowd = visits.iter().filter(|visit| same(visit) == most);
        let idlest = crowd.min_by_key(|visit| visit.last.get());
        if visits.len() > self.most
            && let Some(idlest) = idlest
        {
            let is_busy = idlest.last.get().elapsed() < STALE;
            let leaves = if same(visit) == most && is_busy { visit } else { idlest };
            leaves.over.raise();
        }
    }
}

/// Serves one courier, then ends.
struct Server<'n, T: Transport> {
    node: &'n Node<T>,
    present: &'n Present,
    visit: Rc<Visit>,
    has_come: Cell<bool>,
}

impl<T: Transport> Drop for Server<'_, T> {
    fn drop(&mut self) {
        if !self.has_come.get() {
            self.present.waits.set(false);
        }
        self.present.turn.wake_all();
        self.present.visits.borrow_mut().retain(|visit| !Rc::ptr_eq(visit, &self.visit));
    }
}

impl<T: Transport> Client for Server<'_, T> {
    fn quota(&self) -> Quota {
        Quota::default()
    }

    fn quiet(&self) -> &Quiet {
        &self.present.quiet
    }

    fn is_destroyed(&self) -> bool {
        self.visit.over.is_raised()
    }

    async fn destroyed(&self) {
        self.visit.over.raised().await;
    }

    async fn appear(&self, place: Place) {
        self.has_come.set(true);
        self.present.waits.set(false);
        self.present.turn.wake_all();
        self.visit.origin.set(place.origin());
        self.visit.progress();
        self.present.begin(&self.visit);
    }

    fn connect(&self, other: &Publication, _place: Place, instance: u32) {
        let visit = &self.visit;
        visit.progress();
        // What the same courier has sent before through another connection, and that was not
        // handled yet, must not be handled after what he sends now. Others may say that they are
        // this courier, but not from the same place.
        let courier = Some((other.node, instance));
        for former in &*self.present.visits.borrow() {
            if former.courier.get() == courier && former.origin == visit.origin {
                former.over.raise();
            }
        }
        visit.courier.set(courier);
    }

    async fn carry<L: Link>(&self, link: &mut L) -> Errno {
        let (mut reader, mut writer) = link.split();
        match self.serve(&mut reader, &mut writer).await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    async fn disconnect(&self) {
        self.visit.over.raise();
    }

    async fn disappear(&self) {
        self.visit.over.raise();
    }
}

impl<T: Transport> Server<'_, T> {
    async fn serve(
        &self,
        reader: &mut impl LinkReader,
        writer: &mut impl LinkWriter,
    ) -> Result<Infallible, Errno> {
        let (head, body) = (LocalBuffer::new(HEADER_LEN), LocalBuffer::new(Transfer::LEN));
        let spare = LocalBuffer::new(SPARE);
        loop {
            writer.flush().await?;
            let header = read_header(reader, &head).await?;
            self.visit.progress();
            let right = match header.kind {
                Kind::Read => Rights::READ,
                Kind::Write => Rights::WRITE,
                _ => return Err(Errno::EPROTO),
            };
            reader.read_exact(body.shared()).await?;
            let mut bytes = [0; Transfer::LEN];
            body.read(0, &mut bytes);
            let transfer = Transfer::from_bytes(&bytes)?;
            let found = self.node.table().find(&transfer, right);
            let tag = header.slot;
            let end = match (header.kind, found) {
                (Kind::Write, found) => {
                    self.take(found, &transfer, tag, reader, &head, &spare).await?
                }
                (_, Ok(entry)) => self.give(&entry, &transfer, tag, writer, &head, &spare).await?,
                (_, Err(end)) => end,
            };
            let end = Header { kind: Kind::End, slot: tag, len: 0, code: end as u32 };
            write_header(writer, &head, end).await?;
            yield_now().await;
        }
    }

    /// Takes the bytes that are to be written to a buffer, and drops them if they may not be.
    async fn take(
        &self,
        found: Result<Rc<Entry>, End>,
        transfer: &Transfer,
        tag: u16,
        reader: &mut impl LinkReader,
        head: &LocalBuffer,
        spare: &LocalBuffer,
    ) -> Result<End, Errno> {
        let mut result = found;
        let mut done = 0;
        while done < transfer.length {
            let header = read_header(reader, head).await?;
            let len = header.len as usize;
            let fits = len as u64 <= transfer.length - done;
            if header.kind != Kind::Data || header.slot != tag || !fits {
                return Err(Errno::EPROTO);
            }
            let mut read = 0;
            while read < len {
                if self.visit.over.is_raised() {
                    return Err(Errno::EPIPE);
                }
                read += match &result {
                    Ok(entry) => {
                        let start = (transfer.offset + done) as usize + read;
                        let range = start..start + len - read;
                        match entry.access(range, async |to| reader.read(to).await).await {
                            Some(count) => count?,
                            None => {
                                result = Err(End::Revoked);
                                0
                            }
                        }
                    }
                    Err(_) => reader.read(spare.slice(0..SPARE.min(len - read)).shared()).await?,
                };
            }
            self.visit.progress();
            done += len as u64;
        }
        Ok(result.err().unwrap_or(End::Done))
    }

    /// Writes the bytes that are to be read from a buffer.
    async fn give(
        &self,
        entry: &Entry,
        transfer: &Transfer,
        tag: u16,
        writer: &mut impl LinkWriter,
        head: &LocalBuffer,
        spare: &LocalBuffer,
    ) -> Result<End, Errno> {
        let mut done = 0;
        while done < transfer.length {
            let len = (transfer.length - done).min(u64::from(MAX_DATA)) as usize;
            let data = Header { kind: Kind::Data, slot: tag, len: len as u32, code: 0 };
            write_header(writer, head, data).await?;
            let mut written = 0;
            let mut revoked = false;
            while written < len {
                if revoked {
                    // The frame has to be whole.
                    let zeros = spare.slice(0..SPARE.min(len - written));
                    zeros.shared().zero();
                    written += writer.write(zeros.shared()).await?;
                    continue;
                }
                let start = (transfer.offset + done) as usize + written;
                let range = start..start + len - written;
                match entry.access(range, async |from| writer.write(from).await).await {
                    Some(count) => written += count?,
                    None => revoked = true,
                }
            }
            if revoked {
                return Ok(End::Revoked);
            }
            self.visit.progress();
            done += len as u64;
        }
        Ok(End::Done)
    }
}

pub(super) async fn read_header(
    reader: &mut impl LinkReader,
    head: &LocalBuffer,
) -> Result<Header, Errno> {
    reader.read_exact(head.shared()).await?;
    let mut bytes = [0; HEADER_LEN];
    head.read(0, &mut bytes);
    Header::from_bytes(&bytes)
}

pub(super) async fn write_header(
    writer: &mut impl LinkWriter,
    head: &LocalBuffer,
    header: Header,
) -> Result<(), Errno> {
    head.write(0, &header.to_bytes());
    writer.write_all(head.shared()).await
}
