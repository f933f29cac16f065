//! Sockets of datagrams: messages that keep their bounds, and may be lost or swapped.

use core::future::poll_fn;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use core::ops::{Deref, DerefMut};
use core::task::{Context, Poll};
use edge_nal::{
    MulticastV4, MulticastV6, Readable, UdpReceive, UdpSend, UdpSplit, UdpSplitMulticast,
};
use embedded_io_async::{Error, ErrorType};

/// A socket of datagrams. It is bound to a local address, and may be connected to one peer.
pub trait PollDatagrams {
    /// Why an operation fails.
    type Error: Error;

    /// Waits for a datagram and copies as much as fits; the rest is discarded.
    ///
    /// Returns the length of the whole datagram and its sender.
    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        to: &mut [u8],
    ) -> Poll<Result<(usize, SocketAddr), Self::Error>>;

    /// Waits until a datagram can be received, and takes nothing.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

    /// Waits for room and sends a datagram, which is sent whole or not at all. A connected socket
    /// ignores `to`.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        to: SocketAddr,
        data: &[u8],
    ) -> Poll<Result<(), Self::Error>>;

    /// Joins a multicast group: the socket receives the datagrams that are sent to it.
    fn join(&self, group: Group) -> impl Future<Output = Result<(), Self::Error>>;

    /// Leaves a multicast group.
    fn leave(&self, group: Group) -> impl Future<Output = Result<(), Self::Error>>;
}

/// A multicast group on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// A group of IPv4.
    V4 {
        /// The group's address.
        group: Ipv4Addr,
        /// The interface's address. Unspecified means the default interface.
        interface: Ipv4Addr,
    },
    /// A group of IPv6.
    V6 {
        /// The group's address.
        group: Ipv6Addr,
        /// The interface's number. 0 means the default interface.
        interface: u32,
    },
}

impl Group {
    /// The group's address.
    pub fn addr(&self) -> IpAddr {
        match *self {
            Group::V4 { group, .. } => group.into(),
            Group::V6 { group, .. } => group.into(),
        }
    }
}

/// A socket with the traits of async datagrams. The socket's own methods are reached through
/// [`Deref`].
///
/// Dropping a future of `receive`, `readable` or `send` before it completes loses and sends
/// nothing.
///
/// ```
/// use core::net::{Ipv4Addr, SocketAddr};
/// use core::task::{Context, Poll};
/// use edge_nal::{UdpReceive, UdpSend, UdpSplit};
/// use std::{cell::RefCell, collections::VecDeque, convert::Infallible};
/// use xensock_stream::{Datagrams, Group, PollDatagrams};
///
/// /// A socket that receives what it sends. The sender is where the datagram was sent to.
/// #[derive(Default)]
/// struct Echo(RefCell<VecDeque<(SocketAddr, Vec<u8>)>>);
///
/// impl PollDatagrams for Echo {
///     type Error = Infallible;
///
///     fn poll_receive(
///         &self,
///         cx: &mut Context<'_>,
///         to: &mut [u8],
///     ) -> Poll<Result<(usize, SocketAddr), Infallible>> {
///         let Some((sender, data)) = self.0.borrow_mut().pop_front() else {
///             cx.waker().wake_by_ref();
///             return Poll::Pending;
///         };
///         let fits = to.len().min(data.len());
///         to[..fits].copy_from_slice(&data[..fits]);
///         Poll::Ready(Ok((data.len(), sender)))
///     }
///
///     fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
///         if self.0.borrow().is_empty() {
///             cx.waker().wake_by_ref();
///             return Poll::Pending;
///         }
///         Poll::Ready(Ok(()))
///     }
///
///     fn poll_send(
///         &self,
///         _: &mut Context<'_>,
///         to: SocketAddr,
///         data: &[u8],
///     ) -> Poll<Result<(), Infallible>> {
///         self.0.borrow_mut().push_back((to, data.to_vec()));
///         Poll::Ready(Ok(()))
///     }
///
///     async fn join(&self, _: Group) -> Result<(), Infallible> {
///         Ok(())
///     }
///
///     async fn leave(&self, _: Group) -> Result<(), Infallible> {
///         Ok(())
///     }
/// }
///
/// futures_executor::block_on(async {
///     let mut datagrams = Datagrams::new(Echo::default());
///     let (mut receive, mut send) = datagrams.split();
///     let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 7));
///     send.send(peer, b"hello").await.unwrap();
///     let mut some = [0; 4];
///     assert_eq!(receive.receive(&mut some).await.unwrap(), (5, peer));
///     assert_eq!(&some, b"hell");
/// });
/// ```
#[derive(Debug)]
pub struct Datagrams<S> {
    socket: S,
}

/// The receiving half of [`Datagrams`].
#[derive(Debug)]
pub struct ReceiveHalf<'a, S> {
    socket: &'a S,
}

/// The sending half of [`Datagrams`].
#[derive(Debug)]
pub struct SendHalf<'a, S> {
    socket: &'a S,
}

/// The part of [`Datagrams`] that joins and leaves multicast groups.
#[derive(Debug)]
pub struct Membership<'a, S> {
    socket: &'a S,
}

impl<S: PollDatagrams> Datagrams<S> {
    /// Datagrams over a bound or connected socket.
    pub fn new(socket: S) -> Self {
        Datagrams { socket }
    }
}

impl<S> Datagrams<S> {
    /// The same datagrams over what `wrap` makes of the socket.
    pub fn map<T: PollDatagrams>(self, wrap: impl FnOnce(S) -> T) -> Datagrams<T> {
        Datagrams { socket: wrap(self.socket) }
    }
}

impl<S> Deref for Datagrams<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.socket
    }
}

impl<S> DerefMut for Datagrams<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.socket
    }
}

impl<S: PollDatagrams> ErrorType for ReceiveHalf<'_, S> {
    type Error = S::Error;
}

impl<S: PollDatagrams> UdpReceive for ReceiveHalf<'_, S> {
    async fn receive(&mut self, to: &mut [u8]) -> Result<(usize, SocketAddr), S::Error> {
        poll_fn(|cx| self.socket.poll_receive(cx, to)).await
    }
}

impl<S: PollDatagrams> Readable for ReceiveHalf<'_, S> {
    async fn readable(&mut self) -> Result<(), S::Error> {
        poll_fn(|cx| self.socket.poll_readable(cx)).await
    }
}

impl<S: PollDatagrams> ErrorType for SendHalf<'_, S> {
    type Error = S::Error;
}

impl<S: PollDatagrams> UdpSend for SendHalf<'_, S> {
    async fn send(&mut self, to: SocketAddr, data: &[u8]) -> Result<(), S::Error> {
        poll_fn(|cx| self.socket.poll_send(cx, to, data)).await
    }
}

impl<S: PollDatagrams> ErrorType for Membership<'_, S> {
    type Error = S::Error;
}

impl<S: PollDatagrams> MulticastV4 for Membership<'_, S> {
    async fn join_v4(&mut self, group: Ipv4Addr, interface: Ipv4Addr) -> Result<(), S::Error> {
        self.socket.join(Group::V4 { group, interface }).await
    }

    async fn leave_v4(&mut self, group: Ipv4Addr, interface: Ipv4Addr) -> Result<(), S::Error> {
        self.socket.leave(Group::V4 { group, interface }).await
    }
}

impl<S: PollDatagrams> MulticastV6 for Membership<'_, S> {
    async fn join_v6(&mut self, group: Ipv6Addr, interface: u32) -> Result<(), S::Error> {
        self.socket.join(Group::V6 { group, interface }).await
    }

    async fn leave_v6(&mut self, group: Ipv6Addr, interface: u32) -> Result<(), S::Error> {
        self.socket.leave(Group::V6 { group, interface }).await
    }
}

impl<S: PollDatagrams> ErrorType for Datagrams<S> {
    type Error = S::Error;
}

impl<S: PollDatagrams> UdpReceive for Datagrams<S> {
    async fn receive(&mut self, to: &mut [u8]) -> Result<(usize, SocketAddr), S::Error> {
        self.split().0.receive(to).await
    }
}

impl<S: PollDatagrams> Readable for Datagrams<S> {
    async fn readable(&mut self) -> Result<(), S::Error> {
        self.split().0.readable().await
    }
}

impl<S: PollDatagrams> UdpSend for Datagrams<S> {
    async fn send(&mut self, to: SocketAddr, data: &[u8]) -> Result<(), S::Error> {
        self.split().1.send(to, data).await
    }
}

impl<S: PollDatagrams> MulticastV4 for Datagrams<S> {
    async fn join_v4(&mut self, group: Ipv4Addr, interface: Ipv4Addr) -> Result<(), S::Error> {
        self.split_multicast().2.join_v4(group, interface).await
    }

    async fn leave_v4(&mut self, group: Ipv4Addr, interface: Ipv4Addr) -> Result<(), S::Error> {
        self.split_multicast().2.leave_v4(group, interface).await
    }
}

impl<S: PollDatagrams> MulticastV6 for Datagrams<S> {
    async fn join_v6(&mut self, group: Ipv6Addr, interface: u32) -> Result<(), S::Error> {
        self.split_multicast().3.join_v6(group, interface).await
    }

    async fn leave_v6(&mut self, group: Ipv6Addr, interface: u32) -> Result<(), S::Error> {
        self.split_multicast().3.leave_v6(group, interface).await
    }
}

impl<S: PollDatagrams> UdpSplit for Datagrams<S> {
    type Receive<'a>
        = ReceiveHalf<'a, S>
    where
        S: 'a;
    type Send<'a>
        = SendHalf<'a, S>
    where
        S: 'a;

    fn split(&mut self) -> (ReceiveHalf<'_, S>, SendHalf<'_, S>) {
        let socket = &self.socket;
        (ReceiveHalf { socket }, SendHalf { socket })
    }
}

impl<S: PollDatagrams> UdpSplitMulticast for Datagrams<S> {
    type MulticastV4<'a>
        = Membership<'a, S>
    where
        S: 'a;
    type MulticastV6<'a>
        = Membership<'a, S>
    where
        S: 'a;

    fn split_multicast(
        &mut self,
    ) -> (ReceiveHalf<'_, S>, SendHalf<'_, S>, Membership<'_, S>, Membership<'_, S>) {
        let socket = &self.socket;
        let (receive, send) = (ReceiveHalf { socket }, SendHalf { socket });
        (receive, send, Membership { socket }, Membership { socket })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::{BTreeSet, VecDeque};
    use alloc::vec::Vec;
    use core::cell::RefCell;
    use core::convert::Infallible;
    use core::net::IpAddr;
    use core::task::Waker;
    use futures_executor::block_on;
    use futures_util::future::join;

    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7);

    /// A socket that receives what it sends and has room for one datagram.
    #[derive(Default)]
    struct Echo {
        waiting: RefCell<VecDeque<Vec<u8>>>,
        wakers: RefCell<Vec<Waker>>,
        groups: RefCell<BTreeSet<IpAddr>>,
    }

    impl Echo {
        fn wait<T>(&self, cx: &mut Context<'_>) -> Poll<T> {
            self.wakers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        }

        fn wake(&self) {
            self.wakers.take().iter().for_each(Waker::wake_by_ref);
        }
    }

    fn address(group: Group) -> IpAddr {
        match group {
            Group::V4 { group, .. } => group.into(),
            Group::V6 { group, .. } => group.into(),
        }
    }

    impl PollDatagrams for Echo {
        type Error = Infallible;

        fn poll_receive(
            &self,
            cx: &mut Context<'_>,
            to: &mut [u8],
        ) -> Poll<Result<(usize, SocketAddr), Infallible>> {
            let Some(data) = self.waiting.borrow_mut().pop_front() else { return self.wait(cx) };
            self.wake();
            let fits = to.len().min(data.len());
            to[..fits].copy_from_slice(&data[..fits]);
            Poll::Ready(Ok((data.len(), PEER)))
        }

        fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            if self.waiting.borrow().is_empty() { self.wait(cx) } else { Poll::Ready(Ok(())) }
        }

        fn poll_send(
            &self,
            cx: &mut Context<'_>,
            _: SocketAddr,
            data: &[u8],
        ) -> Poll<Result<(), Infallible>> {
            if !self.waiting.borrow().is_empty() {
                return self.wait(cx);
            }
            self.waiting.borrow_mut().push_back(data.to_vec());
            self.wake();
            Poll::Ready(Ok(()))
        }

        async fn join(&self, group: Group) -> Result<(), Infallible> {
            self.groups.borrow_mut().insert(address(group));
            Ok(())
        }

        async fn leave(&self, group: Group) -> Result<(), Infallible> {
            self.groups.borrow_mut().remove(&address(group));
            Ok(())
        }
    }

    #[test]
    fn a_datagram_of_no_bytes_is_received_as_one() {
        block_on(async {
            let mut datagrams = Datagrams::new(Echo::default());
            datagrams.send(PEER, b"").await.unwrap();
            assert_eq!(datagrams.receive(&mut [0; 4]).await.unwrap(), (0, PEER));
        });
    }

    #[test]
    fn a_datagram_that_does_not_fit_is_cut_and_its_whole_length_returned() {
        block_on(async {
            let mut datagrams = Datagrams::new(Echo::default());
            datagrams.send(PEER, b"long").await.unwrap();
            let mut some = [0; 2];
            assert_eq!(datagrams.receive(&mut some).await.unwrap(), (4, PEER));
            assert_eq!(&some, b"lo");
            datagrams.send(PEER, b"next").await.unwrap();
            assert_eq!(datagrams.receive(&mut []).await.unwrap(), (4, PEER));
            datagrams.send(PEER, b"x").await.unwrap();
            assert_eq!(datagrams.receive(&mut some).await.unwrap(), (1, PEER));
        });
    }

    #[test]
    fn readable_takes_nothing() {
        block_on(async {
            let mut datagrams = Datagrams::new(Echo::default());
            datagrams.send(PEER, b"x").await.unwrap();
            datagrams.readable().await.unwrap();
            datagrams.readable().await.unwrap();
            assert_eq!(datagrams.receive(&mut [0]).await.unwrap().0, 1);
        });
    }

    #[test]
    fn the_halves_wait_for_each_other() {
        block_on(async {
            let mut datagrams = Datagrams::new(Echo::default());
            let (mut receive, mut send) = datagrams.split();
            let sending = async {
                for byte in 0..10 {
                    send.send(PEER, &[byte]).await.unwrap();
                }
            };
            let receiving = async {
                let mut all = Vec::new();
                for _ in 0..10 {
                    let mut byte = [0];
                    receive.readable().await.unwrap();
                    receive.receive(&mut byte).await.unwrap();
                    all.push(byte[0]);
                }
                all
            };
            let (all, ()) = join(receiving, sending).await;
            assert_eq!(all, (0..10).collect::<Vec<_>>());
        });
    }

    #[test]
    fn groups_of_both_kinds_are_joined_and_left() {
        let (four, six) = (Ipv4Addr::new(224, 0, 0, 251), "ff02::fb".parse::<Ipv6Addr>().unwrap());
        block_on(async {
            let mut datagrams = Datagrams::new(Echo::default());
            datagrams.join_v4(four, Ipv4Addr::UNSPECIFIED).await.unwrap();
            datagrams.join_v6(six, 0).await.unwrap();
            assert_eq!(datagrams.groups.borrow().len(), 2);
            let (_, _, mut fours, mut sixes) = datagrams.split_multicast();
            fours.leave_v4(four, Ipv4Addr::UNSPECIFIED).await.unwrap();
            assert!(fours.socket.groups.borrow().contains(&six.into()));
            sixes.leave_v6(six, 0).await.unwrap();
            assert!(datagrams.groups.borrow().is_empty());
        });
    }
}
