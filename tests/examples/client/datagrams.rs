//! The phases of datagrams (UDP). The servers have the same ports as those of streams.

use crate::{Client, Result, Server, percentile};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// The payloads that are measured, in bytes: small ones, and some that fill a frame.
const SIZES: [usize; 2] = [64, 1400];
/// The datagrams on their way at once while the receiver keeps up.
const WINDOW: usize = 32;
/// The datagrams of a flood, for each round trip of a measurement.
const FLOOD: usize = 20;
/// After so long a datagram that has not come is lost.
const LOST: Duration = Duration::from_millis(500);
/// The same for one that must come, even if the machine stands still for some seconds.
const NEEDED: Duration = Duration::from_secs(10);
/// Payloads around the limits of frames and buffers, up to the longest in a ring of 64 KiB.
const LENGTHS: [usize; 12] = [0, 1, 7, 8, 64, 1472, 1473, 4096, 8193, 32768, 65000, 65496];
/// The longest payload over IPv4, for which a ring must be larger.
const LONGEST: usize = 65507;

impl Client {
    fn datagrams(&self, server: Server) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(self.address(server))?;
        socket.set_read_timeout(Some(LOST))?;
        Ok(socket)
    }

    /// Checks that datagrams of all sizes are returned as they are.
    pub fn datagram_sizes(&self) -> Result<()> {
        self.check_sizes(&LENGTHS)
    }

    /// The same for the longest.
    pub fn longest_datagram(&self) -> Result<()> {
        self.check_sizes(&[LONGEST])
    }

    fn check_sizes(&self, lengths: &[usize]) -> Result<()> {
        let socket = self.datagrams(Server::Echo)?;
        socket.set_read_timeout(Some(NEEDED))?;
        let mut got = vec![0; 1 << 16];
        for &length in lengths {
            let sent: Vec<u8> = (0..length).map(|at| (at ^ (at >> 8)) as u8).collect();
            socket.send(&sent)?;
            let count = socket.recv(&mut got).map_err(|error| format!("{length}: {error}"))?;
            if got[..count] != sent {
                return Err(format!("{count} bytes come back for {length}, or others").into());
            }
        }
        println!("datagram_sizes {}", lengths.len());
        Ok(())
    }

    /// Round trips, echoes with some on their way, and floods in both directions.
    pub fn measure_datagrams(&mut self) -> Result<()> {
        for size in SIZES {
            let socket = self.datagrams(Server::Echo)?;
            exchange(&socket, size, 50, 1)?;
            let alone = exchange(&socket, size, self.count, 1)?;
            println!("datagram_round_trip_{size}_us {:.1}", percentile(&alone.times, 50));
            let many = exchange(&socket, size, self.count * 2, WINDOW)?;
            println!("datagram_echoes_{size}_per_s {:.1}", many.per_s());
            println!("datagram_echoes_{size}_lost_percent {:.3}", many.lost_percent());
            let count = self.count * FLOOD;
            let out = self.flood_out(size, count)?;
            println!("datagrams_out_{size}_per_s {:.1}", out.per_s());
            println!("datagrams_out_{size}_lost_percent {:.3}", out.lost_percent());
            let inward = self.flood_in(size, count)?;
            println!("datagrams_in_{size}_per_s {:.1}", inward.per_s());
            println!("datagrams_in_{size}_lost_percent {:.3}", inward.lost_percent());
        }
        Ok(())
    }

    /// The source sends as fast as it can.
    fn flood_out(&self, size: usize, count: usize) -> Result<Outcome> {
        let socket = self.datagrams(Server::Source)?;
        // Without the first one there would be no rate.
        socket.set_read_timeout(Some(NEEDED))?;
        socket.send(&request(count, size))?;
        let mut data = vec![0; size];
        let start = Instant::now();
        let (mut arrived, mut time) = (0, Duration::ZERO);
        while arrived < count && receive(&socket, &mut data)? {
            arrived += 1;
            time = start.elapsed();
            if arrived == 1 {
                socket.set_read_timeout(Some(LOST))?;
            }
        }
        if arrived == 0 {
            return Err(format!("nothing comes from the source in {NEEDED:?}").into());
        }
        Ok(Outcome { sent: count, arrived, time, times: Vec::new() })
    }

    /// The client sends as fast as it can. The sink's counter says how many arrived.
    fn flood_in(&mut self, size: usize, count: usize) -> Result<Outcome> {
        let socket = self.datagrams(Server::Sink)?;
        let data = vec![0; size];
        let before = self.meter()?.received()?;
        let start = Instant::now();
        let mut sent = 0;
        while sent < count {
            match socket.send(&data) {
                Ok(_) => sent += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        // The time until the last one arrives, without that of the last look, which finds nothing.
        let (mut received, mut time) = (self.meter()?.received()?, start.elapsed());
        loop {
            thread::sleep(crate::PAUSE);
            let now = self.meter()?.received()?;
            // Each look is a request, of fewer bytes than a datagram.
            if now < received + size as f64 {
                break;
            }
            (received, time) = (now, start.elapsed());
        }
        let arrived = count.min(((received - before) / size as f64) as usize);
        Ok(Outcome { sent: count, arrived, time, times: Vec::new() })
    }

    /// Floods the sink and this program, which does not read, until it is ended.
    pub fn flood_datagrams(&self) -> Result<()> {
        let (sink, source) = (self.datagrams(Server::Sink)?, self.datagrams(Server::Source)?);
        println!("flooding");
        loop {
            source.send(&request(1000, SIZES[1]))?;
            for _ in 0..1000 {
                // A full buffer of this socket is part of a flood.
                let _ = sink.send(&[0; SIZES[1]]);
            }
        }
    }
}

/// A request to the source.
fn request(count: usize, size: usize) -> Vec<u8> {
    [count, size].map(|number| (number as u32).to_be_bytes()).concat()
}

/// What became of some datagrams.
struct Outcome {
    sent: usize,
    arrived: usize,
    time: Duration,
    times: Vec<Duration>,
}

impl Outcome {
    fn per_s(&self) -> f64 {
        self.arrived as f64 / self.time.as_secs_f64()
    }

    fn lost_percent(&self) -> f64 {
        100.0 * self.sent.saturating_sub(self.arrived) as f64 / self.sent as f64
    }
}

/// Receives a datagram, unless none comes any more.
fn receive(socket: &UdpSocket, to: &mut [u8]) -> Result<bool> {
    match socket.recv(to) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Sends datagrams that are returned, some at a time.
fn exchange(socket: &UdpSocket, size: usize, count: usize, window: usize) -> Result<Outcome> {
    let mut data = vec![7; size];
    let mut times = Vec::with_capacity(count);
    let start = Instant::now();
    let (mut sent, mut lost, mut since, mut waited) = (0, 0, start, Duration::ZERO);
    while times.len() + lost < count {
        while sent < count && sent - times.len() - lost < window {
            socket.send(&data)?;
            sent += 1;
        }
        if receive(socket, &mut data)? {
            let now = Instant::now();
            times.push(now - since);
            since = now;
        } else {
            lost = sent - times.len();
            since = Instant::now();
            waited += LOST;
        }
    }
    Ok(Outcome { sent, arrived: times.len(), time: start.elapsed() - waited, times })
}
