//! Sets the clock by an NTP server.

use crate::{any, failed};
use alloc::string::String;
use core::fmt::Display;
use core::net::SocketAddr;
use core::time::Duration;
use edge_nal::{UdpBind, UdpReceive, UdpSend, UdpSplit};
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::mutex::Mutex;
use embassy_time::with_timeout;
use kernel::System;
use sntpc::{Error, NtpContext, NtpTimestampGenerator, NtpUdpSocket};

/// How long the server may take to answer, and how often it is asked.
const PATIENCE: embassy_time::Duration = embassy_time::Duration::from_secs(2);
const ATTEMPTS: u32 = 5;

/// Asks the server for the time.
pub async fn set_clock<S: UdpBind>(
    system: &System,
    stack: &S,
    server: SocketAddr,
) -> Result<(), String>
where
    S::Error: Display,
{
    let clock = NtpContext::new(Clock { system, now: Duration::ZERO });
    for _ in 0..ATTEMPTS {
        // A late answer to an earlier question would be one to the wrong question here.
        let mut socket = stack.bind(any(0)).await.map_err(failed("bind"))?;
        let (receive, send) = socket.split();
        let socket = Socket { receive: Mutex::new(receive), send: Mutex::new(send) };
        let asking = sntpc::get_time(server, &socket, clock);
        match with_timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => {
                let offset = answer.offset();
                let host = system.wall_clock().map_err(failed("the clock"))?;
                let by = Duration::from_micros(offset.unsigned_abs());
                let now = if offset < 0 { host.saturating_sub(by) } else { host + by };
                system.set_wall_clock(now).map_err(failed("the clock"))?;
                // As everything in the guest sees it, such as the check of certificates.
                let now = kernel::wall_clock().unwrap_or_default().as_secs();
                log::info!("NTP: the clock was {offset} us behind; it is {now} s");
                return Ok(());
            }
            Ok(Err(error)) => log::warn!("NTP: {server}: {error:?}"),
            Err(_) => log::warn!("NTP: {server} does not answer"),
        }
    }
    Err("there is no time".into())
}

/// Halves of a socket, which the client uses one after the other.
struct Socket<R, S> {
    receive: Mutex<NoopRawMutex, R>,
    send: Mutex<NoopRawMutex, S>,
}

impl<R: UdpReceive, S: UdpSend> NtpUdpSocket for Socket<R, S> {
    async fn send_to(&self, data: &[u8], to: SocketAddr) -> sntpc::Result<usize> {
        let sent = self.send.lock().await.send(to, data).await;
        sent.map(|()| data.len()).map_err(|_| Error::Network)
    }

    async fn recv_from(&self, data: &mut [u8]) -> sntpc::Result<(usize, SocketAddr)> {
        self.receive.lock().await.receive(data).await.map_err(|_| Error::Network)
    }
}

/// The guest's clock.
#[derive(Clone, Copy)]
struct Clock<'a> {
    system: &'a System,
    now: Duration,
}

impl NtpTimestampGenerator for Clock<'_> {
    fn init(&mut self) {
        self.now = self.system.wall_clock().unwrap_or_default();
    }

    fn timestamp_sec(&self) -> u64 {
        self.now.as_secs()
    }

    fn timestamp_subsec_micros(&self) -> u32 {
        self.now.subsec_micros()
    }
}
