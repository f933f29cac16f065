//! The async socket traits of [`edge_nal`] and [`embedded_io_async`], over a polled socket.
//!
//! A socket implements one of two traits with a few methods:
//!
//! - [`PollSocket`], a connected socket. [`Stream`] adds `Read`, `BufRead`, `Readable`, `Write`,
//!   `TcpSplit` and `TcpShutdown`.
//! - [`PollDatagrams`], a socket of datagrams. [`Datagrams`] adds `UdpReceive`, `UdpSend`,
//!   `Readable`, `UdpSplit`, `UdpSplitMulticast`, `MulticastV4` and `MulticastV6`.
//!
//! A read or a write copies once, between the socket's memory and the caller's, and allocates
//! nothing. `fill_buf` copies once more, to a buffer of the stream: a socket whose memory another
//! domain can write cannot lend a reference to it.
//!
//! ```
//! use core::task::{Context, Poll};
//! use edge_nal::{Close, TcpSplit};
//! use embedded_io_async::{BufRead, Read, Write};
//! use std::{cell::RefCell, collections::VecDeque, convert::Infallible};
//! use xensock_stream::{PollSocket, Stream};
//!
//! /// A socket that is connected to itself.
//! #[derive(Default)]
//! struct Echo(RefCell<VecDeque<u8>>);
//!
//! impl PollSocket for Echo {
//!     type Error = Infallible;
//!
//!     fn poll_read(&self, _: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Infallible>> {
//!         let mut bytes = self.0.borrow_mut();
//!         let count = to.len().min(bytes.len());
//!         to.iter_mut().zip(bytes.drain(..count)).for_each(|(to, byte)| *to = byte);
//!         Poll::Ready(Ok(count))
//!     }
//!
//!     fn poll_write(&self, _: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Infallible>> {
//!         self.0.borrow_mut().extend(from);
//!         Poll::Ready(Ok(from.len()))
//!     }
//!
//!     fn check_writable(&self) -> Result<(), Infallible> {
//!         Ok(())
//!     }
//!
//!     async fn close(&self, _: Close) -> Result<(), Infallible> {
//!         Ok(())
//!     }
//!
//!     async fn abort(&self) -> Result<(), Infallible> {
//!         Ok(())
//!     }
//! }
//!
//! futures_executor::block_on(async {
//!     let mut stream = Stream::new(Echo::default());
//!     let (mut reader, mut writer) = stream.split();
//!     writer.write_all(b"hello").await.unwrap();
//!     assert_eq!(reader.fill_buf().await.unwrap(), b"hello");
//!     reader.consume(4);
//!     let mut last = [0; 8];
//!     assert_eq!(reader.read(&mut last).await.unwrap(), 1);
//!     assert_eq!(last[0], b'o');
//! });
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod datagrams;
mod stream;

pub use datagrams::{Datagrams, Group, Membership, PollDatagrams, ReceiveHalf, SendHalf};
pub use stream::{PollSocket, ReadHalf, Stream, WriteHalf};
