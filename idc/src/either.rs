//! Two transports as one: the address decides which of them carries a connection.

use crate::address::{Address, Place};
use crate::buffer::RemoteBuffer;
use crate::life::Publication;
use crate::transport::{Link, LinkReader, LinkWriter, Meeting, Transport};
use core::net::SocketAddr;
use core::pin::pin;
use futures_util::future::{Either as First, select};
use xen::{DomId, Errno, Shared};

/// Reaches domains through `X` and hosts of a network through `T`. Visitors may come through both.
#[derive(Clone)]
pub struct Either<X, T> {
    /// The transport for [`Place::Domain`].
    pub domains: X,
    /// The transport for [`Place::Host`].
    pub hosts: T,
}

impl<X: Transport, T: Transport> Transport for Either<X, T> {
    type Meeting = EitherMeeting<X::Meeting, T::Meeting>;
    type Reserve = (X::Reserve, T::Reserve);

    fn here(&self) -> (Option<DomId>, Option<SocketAddr>) {
        (self.domains.here().0, self.hosts.here().1)
    }

    fn routes(&self, to: &RemoteBuffer) -> [Option<Place>; 2] {
        [self.domains.routes(to)[0], self.hosts.routes(to)[0]]
    }

    fn reserve(&self) -> Result<Self::Reserve, Errno> {
        Ok((self.domains.reserve()?, self.hosts.reserve()?))
    }

    fn meet(&self, address: &Address, (x, t): Self::Reserve) -> Self::Meeting {
        let by = match address.place {
            Place::Domain(_) => Some(By::Domain),
            Place::Host(_) => Some(By::Host),
            Place::Anyone => None,
        };
        let (x, t) = (self.domains.meet(address, x), self.hosts.meet(address, t));
        EitherMeeting { x, t, is_open: by.is_none(), by, unseen: None }
    }
}

/// Which transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Domain,
    Host,
}

/// A meeting through one of two transports.
pub struct EitherMeeting<X, T> {
    x: X,
    t: T,
    /// The transport through which the other end was met, or is to be.
    by: Option<By>,
    /// Whether visitors come through both.
    is_open: bool,
    /// What one of them was not told.
    unseen: Option<Publication>,
}

impl<X: Meeting, T: Meeting> Meeting for EitherMeeting<X, T> {
    type Link = EitherLink<X::Link, T::Link>;
    type Reserve = (X::Reserve, T::Reserve);

    async fn changed(&mut self) -> Option<Publication> {
        let seen = match self.by {
            Some(By::Domain) => self.x.changed().await,
            Some(By::Host) => self.t.changed().await,
            None => {
                if let Some(mine) = self.unseen.take()
                    && let Err(error) = self.publish(&mine).await
                {
                    log::warn!("cannot publish: {error}");
                    self.unseen = Some(mine);
                }
                let (x, t) = (pin!(self.x.changed()), pin!(self.t.changed()));
                let (by, seen) = match select(x, t).await {
                    First::Left((seen, _)) => (By::Domain, seen),
                    First::Right((seen, _)) => (By::Host, seen),
                };
                self.by = Some(by);
                seen
            }
        };
        if seen.is_none() && self.is_open {
            self.by = None;
        }
        seen
    }

    async fn publish(&mut self, mine: &Publication) -> Result<(), Errno> {
        self.unseen = (self.is_open && self.by.is_some()).then_some(*mine);
        if self.by != Some(By::Host) {
            self.x.publish(mine).await?;
        }
        if self.by != Some(By::Domain) {
            self.t.publish(mine).await?;
        }
        Ok(())
    }

    fn leads(&self) -> bool {
        if self.by == Some(By::Host) { self.t.leads() } else { self.x.leads() }
    }

    fn place(&self) -> Place {
        if self.by == Some(By::Host) { self.t.place() } else { self.x.place() }
    }

    fn instance(&self) -> u32 {
        if self.by == Some(By::Host) { self.t.instance() } else { self.x.instance() }
    }

    async fn link(&mut self) -> Result<Self::Link, Errno> {
        match self.by {
            Some(By::Host) => self.t.link().await.map(EitherLink::T),
            _ => self.x.link().await.map(EitherLink::X),
        }
    }

    async fn dismiss(&mut self) {
        match self.by {
            Some(By::Domain) => self.x.dismiss().await,
            Some(By::Host) => self.t.dismiss().await,
            None => {}
        }
        if self.is_open {
            self.by = None;
        }
    }

    async fn part(self) -> Self::Reserve {
        (self.x.part().await, self.t.part().await)
    }
}

/// A link, or a stream of one, of one of two transports.
pub enum EitherLink<X, T> {
    /// Of the first one.
    X(X),
    /// Of the second one.
    T(T),
}

impl<X: Link, T: Link> Link for EitherLink<X, T> {
    type Reader<'a>
        = EitherLink<X::Reader<'a>, T::Reader<'a>>
    where
        Self: 'a;
    type Writer<'a>
        = EitherLink<X::Writer<'a>, T::Writer<'a>>
    where
        Self: 'a;

    fn split(&mut self) -> (Self::Reader<'_>, Self::Writer<'_>) {
        match self {
            EitherLink::X(link) => {
                let (reader, writer) = link.split();
                (EitherLink::X(reader), EitherLink::X(writer))
            }
            EitherLink::T(link) => {
                let (reader, writer) = link.split();
                (EitherLink::T(reader), EitherLink::T(writer))
            }
        }
    }
}

impl<X: LinkReader, T: LinkReader> LinkReader for EitherLink<X, T> {
    async fn read(&mut self, to: Shared<'_>) -> Result<usize, Errno> {
        match self {
            EitherLink::X(reader) => reader.read(to).await,
            EitherLink::T(reader) => reader.read(to).await,
        }
    }
}

impl<X: LinkWriter, T: LinkWriter> LinkWriter for EitherLink<X, T> {
    async fn write(&mut self, from: Shared<'_>) -> Result<usize, Errno> {
        match self {
            EitherLink::X(writer) => writer.write(from).await,
            EitherLink::T(writer) => writer.write(from).await,
        }
    }

    async fn flush(&mut self) -> Result<(), Errno> {
        match self {
            EitherLink::X(writer) => writer.flush().await,
            EitherLink::T(writer) => writer.flush().await,
        }
    }
}
