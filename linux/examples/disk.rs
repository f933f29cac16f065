//! Serves a file as a disk, to other domains of this host, over TCP, or both.
//!
//! ```text
//! disk FILE --xen                       any domain opens it as xen:0/disk
//! disk FILE --tcp 10.0.0.2:900          anybody opens it as tcp:10.0.0.2:900/disk
//! ```
//!
//! The file must have whole blocks of 4096 bytes. Whoever reaches the service can read and write
//! all of it.

use disk::neighbours::Neighbours;
use disk::server::{Limits, serve};
use disk::{BLOCK, Blocks, Failure};
use edge_nal::TcpBind;
use idc::either::Either;
use idc::tcp::Tcp;
use idc::transport::Transport;
use idc::xen::{DEFAULT_ORDER, XenTransport};
use idc::{LocalBuffer, Node};
use rustix::fs::{FlockOperation, flock};
use std::convert::Infallible;
use std::error::Error;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use xen::DomId;
use xen::xenbus::read_number;
use xen_linux::runtime::{Reactor, Runtime, Spawner};
use xen_linux::{Counts, Domain, random, tcp};

const USAGE: &str = "write a file, then --xen, --tcp IP:PORT or both";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match try_main() {
        Ok(never) => match never {},
        Err(error) => end(&error.to_string()),
    }
}

fn end(error: &str) -> ! {
    eprintln!("disk: {error}");
    std::process::exit(1)
}

fn try_main() -> Result<Infallible, Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (file, options) = words.split_first().ok_or(USAGE)?;
    let (xen, tcp) = match options {
        ["--xen"] => (true, None),
        ["--tcp", at] => (false, Some(at.parse()?)),
        ["--xen", "--tcp", at] | ["--tcp", at, "--xen"] => (true, Some(at.parse()?)),
        _ => return Err(USAGE.into()),
    };
    let disk = Image::open(file)?;
    println!("{file} has {} blocks", disk.blocks);
    let mut runtime = Runtime::new()?;
    let (reactor, spawner) = (runtime.reactor().clone(), runtime.spawner().clone());
    runtime.block_on(run(&reactor, &spawner, &disk, xen, tcp))?
}

/// Serves the disk through one transport or through both.
async fn run(
    reactor: &Reactor,
    spawner: &Spawner,
    disk: &Image,
    xen: bool,
    tcp: Option<SocketAddr>,
) -> Result<Infallible, Box<dyn Error>> {
    // For as long as the process runs.
    let stack: &tcp::Stack = Box::leak(Box::new(tcp::Stack::new(reactor)));
    let hosts = Tcp::new(stack, tcp);
    if let Some(at) = tcp {
        let listener = stack.bind(at).await.map_err(|error| format!("{at}: {error}"))?;
        let (hosts, listener) = (hosts.clone(), &*Box::leak(Box::new(listener)));
        spawner.spawn(async move { end(&hosts.serve(listener).await.to_string()) });
    }
    if !xen {
        return share(disk, hosts).await;
    }
    let (domain, driver) = Domain::open(reactor, &Counts::default())?;
    spawner.spawn(async { end(&driver.run().await) });
    let store = domain.store().clone();
    let id = DomId(read_number(&store, "domid").await?);
    // A process of Linux cannot grant its memory.
    let (domains, meet) =
        XenTransport::new(id, store, None::<Infallible>, Some(domain), DEFAULT_ORDER);
    spawner.spawn(async { match meet.await {} });
    share(disk, Either { domains, hosts }).await
}

/// Serves the disk through a transport.
async fn share(disk: &Image, transport: impl Transport) -> Result<Infallible, Box<dyn Error>> {
    let node = Node::new(transport, random);
    let address = "any/disk".parse()?;
    let error = serve(&node, &address, disk, Limits::default(), &Neighbours::default()).await;
    Err(format!("cannot serve: {error}").into())
}

/// A file as a disk. The thread waits while Linux reads and writes.
struct Image {
    file: File,
    blocks: u64,
}

impl Image {
    fn open(path: &str) -> Result<Self, Box<dyn Error>> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|error| format!("{path}: {error}"))?;
        // A former process of this kind must not write any more.
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| format!("{path}: another process has locked it: {error}"))?;
        let bytes = file.metadata()?.len();
        if bytes % BLOCK as u64 != 0 {
            return Err(format!("{path} has {bytes} bytes, not a multiple of {BLOCK}").into());
        }
        Ok(Image { file, blocks: bytes / BLOCK as u64 })
    }

    /// The place of blocks in the file.
    fn offset(&self, first: u64, buffer: &LocalBuffer) -> Result<u64, Failure> {
        let count = (buffer.len() / BLOCK) as u64;
        match first.checked_add(count) {
            Some(end) if end <= self.blocks => Ok(first * BLOCK as u64),
            _ => Err(Failure::OutOfRange),
        }
    }
}

fn failed(error: std::io::Error) -> Failure {
    log::error!("the file: {error}");
    Failure::Failed
}

impl Blocks for Image {
    async fn size(&self) -> Result<u64, Failure> {
        Ok(self.blocks)
    }

    async fn read(&self, first: u64, into: &LocalBuffer) -> Result<u32, Failure> {
        let (offset, mut bytes) = (self.offset(first, into)?, vec![0; into.len()]);
        self.file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        into.write(0, &bytes);
        Ok(0)
    }

    async fn write(&self, first: u64, from: &LocalBuffer) -> Result<(), Failure> {
        let offset = self.offset(first, from)?;
        self.file.write_all_at(&from.to_vec(), offset).map_err(failed)
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.file.sync_data().map_err(failed)
    }
}
