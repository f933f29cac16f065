//! The phases of TLS, for a server of HTTPS on the first port.

use crate::{Client, MIB, Result, ready};
use embedded_io_async::{ErrorType, Read, Write};
use futures_executor::block_on;
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io, thread};
use tls::{BUFFER, ServerName, Stream};

/// The connections at a time: while one waits for the server's arithmetic, another one has its own.
const AT_A_TIME: usize = 4;

impl Client {
    /// Connections, each with a full handshake and a small request.
    pub fn tls_connections(&mut self) -> Result<()> {
        let each = (self.count / 2 / AT_A_TIME).max(1);
        let count = (each * AT_A_TIME) as f64;
        let settings = self.settings()?;
        let before = self.sample()?;
        let start = Instant::now();
        let some = || (0..each).try_for_each(|_| self.fetch(&settings, "/healthz").map(drop));
        thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(some)).collect();
            threads.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked")?)
        })?;
        println!("tls_connections_per_s {:.2}", count / start.elapsed().as_secs_f64());
        let cost = self.since(&before)?;
        cost.print_cpu("tls_connection", "ms_each", count / 1e3);
        Ok(())
    }

    /// Out of the guest, until the server has ended the stream.
    pub fn tls_out(&mut self) -> Result<Duration> {
        let (settings, bytes) = (self.settings()?, self.mb << 20);
        let start = Instant::now();
        let got = self.fetch(&settings, &format!("/bytes/{bytes}"))?;
        if got < bytes {
            return Err(format!("{:.1} MiB came", got as f64 / MIB).into());
        }
        Ok(start.elapsed())
    }

    fn settings(&self) -> Result<tls::Client> {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).ok();
        Ok(tls::Client::new(&fs::read(&self.roots)?, clock)?)
    }

    /// Fetches a path over a new connection, and returns the response's size, with its head.
    fn fetch(&self, settings: &tls::Client, path: &str) -> Result<usize> {
        let name = ServerName::try_from(self.name.clone()).map_err(|_| "name= is none")?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.name);
        let socket = Blocking(ready(TcpStream::connect(self.at)?)?);
        let mut stream = Stream::client(socket, settings, name, vec![0; BUFFER].into())?;
        block_on(async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            let (mut piece, mut bytes) = (vec![0; BUFFER], 0);
            loop {
                let count = stream.read(&mut piece).await?;
                if bytes == 0 && !piece[..count].starts_with(b"HTTP/1.1 200 ") {
                    return Err(format!("{path}: the server does not answer 200").into());
                }
                bytes += count;
                if count == 0 {
                    return Ok(bytes);
                }
            }
        })
    }
}

/// A socket that blocks, with the traits of those that do not.
struct Blocking(TcpStream);

impl ErrorType for Blocking {
    type Error = io::Error;
}

impl Read for Blocking {
    async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.0, to)
    }
}

impl Write for Blocking {
    async fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut self.0, from)
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
