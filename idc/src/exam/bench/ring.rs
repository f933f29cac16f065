//! A link without endpoints, and the commands on it.

use super::PIECE;
use crate::LocalBuffer;
use crate::life::{Epoch, Phase, Publication};
use crate::node::Node;
use crate::quota::Quota;
use crate::transport::{Link, LinkReader, LinkWriter, Meeting, Transport};
use xen::Errno;

/// What the visitor's end asks for.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Op {
    /// The other end sends this many bytes.
    Source = 1,
    /// The other end receives this many bytes in pieces of this size, and sends one byte.
    Sink = 2,
    /// The other end sends back this many pieces of this size.
    Echo = 3,
}

/// A command, which is followed by what it asks for.
#[derive(Clone, Copy)]
pub(super) struct Command {
    pub(super) op: Op,
    pub(super) size: u32,
    pub(super) count: u64,
}

impl Command {
    const LEN: usize = 16;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = self.op as u8;
        bytes[4..8].copy_from_slice(&self.size.to_le_bytes());
        bytes[8..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [op, _, _, _, a, b, c, d, count @ ..] = *bytes;
        let op = [Op::Source, Op::Sink, Op::Echo].into_iter().find(|known| *known as u8 == op)?;
        let size = u32::from_le_bytes([a, b, c, d]);
        let valid = (1..=PIECE as u32).contains(&size);
        valid.then_some(Command { op, size, count: u64::from_le_bytes(count) })
    }
}

/// Meets the other end, and makes the link.
pub(super) async fn meet<T: Transport>(
    node: &Node<T>,
    meeting: &mut T::Meeting,
) -> Result<<T::Meeting as Meeting>::Link, Errno> {
    let epoch = node.next_epoch();
    let mine = |phase| Publication {
        node: node.id(),
        epoch,
        phase,
        met: Epoch(0),
        quota: Quota::default(),
    };
    meeting.publish(&mine(Phase::Idle)).await?;
    let mut other = loop {
        if let Some(other) = meeting.changed().await {
            break other;
        }
    };
    if meeting.leads() {
        let link = meeting.link().await?;
        meeting.publish(&mine(Phase::Offered(other.epoch))).await?;
        while other.phase != Phase::Ready(epoch) {
            other = meeting.changed().await.ok_or(Errno::EPIPE)?;
        }
        Ok(link)
    } else {
        while other.phase != Phase::Offered(epoch) {
            other = meeting.changed().await.ok_or(Errno::EPIPE)?;
        }
        let link = meeting.link().await?;
        meeting.publish(&mine(Phase::Ready(other.epoch))).await?;
        Ok(link)
    }
}

/// One end of a link.
pub(super) struct Ring<R, W> {
    pub(super) reader: R,
    pub(super) writer: W,
    pub(super) piece: LocalBuffer,
}

impl<'a, R: LinkReader + 'a, W: LinkWriter + 'a> Ring<R, W> {
    pub(super) fn new<L: Link<Reader<'a> = R, Writer<'a> = W> + 'a>(
        link: &'a mut L,
    ) -> Result<Self, Errno> {
        let piece = LocalBuffer::try_new(PIECE)?;
        let (reader, writer) = link.split();
        Ok(Ring { reader, writer, piece })
    }

    /// Sends a command.
    pub(super) async fn ask(&mut self, op: Op, size: usize, count: usize) -> Result<(), Errno> {
        let command = Command { op, size: size as u32, count: count as u64 };
        let bytes = LocalBuffer::from(&command.to_bytes());
        self.writer.write_all(bytes.shared()).await?;
        self.writer.flush().await
    }

    /// Does as the other end asks, until it leaves.
    pub(super) async fn obey(&mut self) -> Result<(), Errno> {
        let head = LocalBuffer::new(Command::LEN);
        loop {
            self.reader.read_exact(head.shared()).await?;
            let mut bytes = [0; Command::LEN];
            head.read(0, &mut bytes);
            let Command { op, size, count } = Command::from_bytes(&bytes).ok_or(Errno::EPROTO)?;
            let (size, count) = (size as usize, count as usize);
            match op {
                Op::Source => self.send(size, count).await?,
                Op::Sink => {
                    self.receive(size, count).await?;
                    self.send(1, 1).await?;
                }
                Op::Echo => {
                    for _ in 0..count {
                        self.receive(size, size).await?;
                        self.send(size, size).await?;
                    }
                }
            }
        }
    }

    /// Sends bytes, and shows the other end each piece.
    pub(super) async fn send(&mut self, size: usize, mut left: usize) -> Result<(), Errno> {
        while left > 0 {
            let some = left.min(size);
            self.writer.write_all(self.piece.shared().slice(0, some)).await?;
            self.writer.flush().await?;
            left -= some;
        }
        Ok(())
    }

    /// Receives bytes.
    pub(super) async fn receive(&mut self, size: usize, mut left: usize) -> Result<(), Errno> {
        while left > 0 {
            let some = left.min(size);
            self.reader.read_exact(self.piece.shared().slice(0, some)).await?;
            left -= some;
        }
        Ok(())
    }
}
