//! An image of your own: greets each client that connects to port 7000 of dom0.
#![no_std]
#![no_main]

use core::net::{Ipv4Addr, SocketAddr};
use embedded_io_async::Write;
use kernel::System;
use xen::Errno;

kernel::entry!(main);

async fn main(system: System) -> Result<(), Errno> {
    let sockets = system.sockets(Default::default()).await?;
    let listener = sockets.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7000))).await?;
    loop {
        let mut stream = listener.accept().await?;
        // A client that has closed already is no reason to stop.
        let _ = stream.write_all(b"Hello from a guest without a network stack.\r\n").await;
    }
}
