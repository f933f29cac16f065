//! Announces a name and a service on the local network: `edge-mdns`, as it is.

use crate::{Named, any, failed};
use alloc::string::String;
use core::fmt::Display;
use core::net::{Ipv4Addr, Ipv6Addr};
use edge_mdns::HostAnswersMdnsHandler;
use edge_mdns::buf::VecBufAccess;
use edge_mdns::domain::base::Ttl;
use edge_mdns::host::{Host, Service, ServiceAnswers};
use edge_mdns::io::{self, Mdns, PORT};
use edge_nal::{UdpBind, UdpSplit};
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;

const HTTP: u16 = 80;

/// Answers queries for a host, and for the page that it serves.
pub async fn respond<S: UdpBind>(stack: &S, host: Named<Ipv4Addr>) -> Result<(), String>
where
    S::Error: Display,
{
    let Named { name, address } = host;
    let interface = Some(address);
    // A socket of dom0 that is bound to the group shares the port with dom0's responder. The
    // guest's own stack has no such address.
    let group = (io::IP_BROADCAST_ADDR, PORT).into();
    let mut socket = match io::bind(stack, group, interface, None).await {
        Ok(socket) => socket,
        Err(_) => {
            io::bind(stack, any(PORT), interface, None).await.map_err(failed("bind for mDNS"))?
        }
    };
    let (receive, send) = socket.split();
    let buffers = [(); 2].map(|()| VecBufAccess::<NoopRawMutex, 1500>::new());
    let random = rand_core::UnwrapErr(getrandom::SysRng);
    let changed = Signal::<NoopRawMutex, ()>::new();
    let mdns =
        Mdns::new(interface, None, receive, send, &buffers[0], &buffers[1], random, &changed);
    let host = Host {
        hostname: &name,
        ipv4: address,
        ipv6: Ipv6Addr::UNSPECIFIED,
        ttl: Ttl::from_secs(60),
    };
    let page = Service {
        name: &name,
        priority: 0,
        weight: 0,
        service: "_http",
        protocol: "_tcp",
        port: HTTP,
        service_subtypes: &[],
        txt_kvs: &[("path", "/")],
    };
    log::info!("mDNS: {name}.local is {address}");
    let answers = ServiceAnswers::new(&host, &page);
    mdns.run(HostAnswersMdnsHandler::new(answers)).await.map_err(failed("mDNS"))
}
