//! What a transport does. [`crate`] has two: shared rings of two domains, and TCP.
//!
//! A *meeting* is how two ends see each other's publication. A *link* is a pair of byte streams
//! that belongs to exactly one connection.

use crate::address::{Address, Place};
use crate::buffer::RemoteBuffer;
use crate::life::Publication;
use core::net::SocketAddr;
use xen::{DomId, Errno, Shared};

/// A way to meet other ends.
pub trait Transport {
    /// How two ends see each other.
    type Meeting: Meeting<Reserve = Self::Reserve>;
    /// What a meeting needs and can run out, such as the pages of a ring.
    type Reserve;

    /// Where others can reach this node: its domain, and its address in a network.
    fn here(&self) -> (Option<DomId>, Option<SocketAddr>);

    /// Where the owner of a buffer may be, the most probable place first. Whoever is there may be
    /// another node, of which the caller finds out.
    fn routes(&self, to: &RemoteBuffer) -> [Option<Place>; 2];

    /// Takes what one meeting needs.
    fn reserve(&self) -> Result<Self::Reserve, Errno>;

    /// Begins to meet the other end. It neither fails nor waits.
    fn meet(&self, address: &Address, reserve: Self::Reserve) -> Self::Meeting;
}

/// One end's view of another end.
pub trait Meeting {
    /// What carries the bytes of a connection.
    type Link: Link;
    /// What the meeting gives back at its end.
    type Reserve;

    /// Waits until the other end's publication is not the one that was last returned. `None` means
    /// that the other end is not there, which is how a meeting begins. Can be dropped and called
    /// again.
    async fn changed(&mut self) -> Option<Publication>;

    /// Shows this end's publication to the other end.
    async fn publish(&mut self, mine: &Publication) -> Result<(), Errno>;

    /// Whether this end leads: it makes the links, and the other end attaches to them. The ends
    /// never agree in the answer. Asked only after `changed` has returned a publication.
    fn leads(&self) -> bool;

    /// Where the other end is. Asked only after `changed` has returned a publication.
    fn place(&self) -> Place;

    /// Which instance of the service the meeting is about. Asked only after `changed` has returned
    /// a publication.
    fn instance(&self) -> u32;

    /// Makes a new link, which the next publication offers (if this end leads), or attaches to the
    /// one that the other end's latest publication offers.
    async fn link(&mut self) -> Result<Self::Link, Errno>;

    /// Sends the other end away, if this end waits for anyone, and begins to wait for the next one.
    async fn dismiss(&mut self);

    /// Withdraws the publication, for good.
    async fn part(self) -> Self::Reserve;
}

/// Two byte streams between the ends of one connection. Dropping it leaves it: the other end's
/// reads end.
pub trait Link {
    /// The stream from the other end.
    type Reader<'a>: LinkReader
    where
        Self: 'a;
    /// The stream to the other end.
    type Writer<'a>: LinkWriter
    where
        Self: 'a;

    /// Both streams, for two tasks.
    fn split(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>);
}

/// The stream from the other end. A wait can be dropped at any point: then it took no byte.
pub trait LinkReader {
    /// Waits for bytes, at least one, and copies as many as there are and fit. [`Errno::EPIPE`] if
    /// the other end has left.
    async fn read(&mut self, to: Shared<'_>) -> Result<usize, Errno>;

    /// Waits until all of `to` was read.
    async fn read_exact(&mut self, to: Shared<'_>) -> Result<(), Errno> {
        let mut done = 0;
        while done < to.len() {
            done += self.read(to.slice(done, to.len() - done)).await?;
        }
        Ok(())
    }
}

/// The stream to the other end. A wait of [`write`](LinkWriter::write) can be dropped at any point:
/// no byte of it was written then.
pub trait LinkWriter {
    /// Waits for room for at least one byte, and copies as many as fit. The other end need not see
    /// them before [`flush`](LinkWriter::flush), or before this end waits for room.
    async fn write(&mut self, from: Shared<'_>) -> Result<usize, Errno>;

    /// Shows the other end all that was written.
    async fn flush(&mut self) -> Result<(), Errno>;

    /// Waits until all of `from` was written.
    async fn write_all(&mut self, from: Shared<'_>) -> Result<(), Errno> {
        let mut done = 0;
        while done < from.len() {
            done += self.write(from.slice(done, from.len() - done)).await?;
        }
        Ok(())
    }
}
