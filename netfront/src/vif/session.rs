//! What the two ends agree on in xenstore, and the session that follows.

use super::Config;
use super::device::{Device, LONGEST};
use super::queue::Queue;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::pin::pin;
use futures_util::future::{Either, select};
use smoltcp::wire::EthernetAddress;
use xen::frontend::{Meeting, SessionEnd};
use xen::xenbus::{State, read_number};
use xen::xenstore::Store;
use xen::{Errno, Machine, PAGE_SIZE};

/// Bytes of a frame beside its packet.
const ETHERNET_HEADER: usize = 14;

/// What is usual, and the least and the most that is believed.
const MTU: usize = 1500;
const MTUS: core::ops::RangeInclusive<usize> = 576..=9216;

/// What both ends can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// The longest packet, in bytes, that is not to be cut by others.
    pub(super) mtu: usize,
    /// A frame may have several parts.
    scatter: bool,
    /// The backend cuts TCP over IPv4, and over IPv6, into segments.
    pub(super) segments_v4: bool,
    pub(super) segments_v6: bool,
    /// The backend completes checksums.
    pub(super) checksum_v4: bool,
    pub(super) checksum_v6: bool,
    /// Each ring has an event channel of its own.
    pub(super) split_events: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Terms {
            mtu: MTU,
            scatter: false,
            segments_v4: false,
            segments_v6: false,
            checksum_v4: false,
            checksum_v6: false,
            split_events: false,
        }
    }
}

impl Terms {
    /// The longest frame that is transmitted whole.
    pub(super) fn frame(&self) -> usize {
        let frame = self.mtu + ETHERNET_HEADER;
        if self.scatter { frame } else { frame.min(PAGE_SIZE) }
    }

    /// The longest frame that is transmitted at all.
    pub(super) fn longest_frame(&self) -> usize {
        if self.segments_v4 || self.segments_v6 { LONGEST } else { self.frame() }
    }

    /// Whether the backend takes a frame, whole or, with a `segment`, to be cut. A stack may still go by what
    /// the backend before this one could do.
    pub(super) fn carry(&self, frame: &[u8], segment: Option<u16>) -> bool {
        match segment {
            None => frame.len() <= self.frame(),
            Some(_) if frame.len() > LONGEST => false,
            Some(_) if is_ipv6(frame) => self.segments_v6,
            Some(_) => self.segments_v4,
        }
    }
}

/// Whether a frame says that a packet of IPv6 is in it.
pub(super) fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

/// The address that the toolstack gave the interface. [`Errno::EPROTO`] when it is none.
pub(super) async fn read_address(store: &Store, path: &str) -> Result<EthernetAddress, Errno> {
    let text = store.read_string(&format!("{path}/mac")).await?;
    parse_address(&text).ok_or_else(|| {
        log::error!("{path}: `mac` is `{text}`, and not six bytes in hexadecimal");
        Errno::EPROTO
    })
}

fn parse_address(text: &str) -> Option<EthernetAddress> {
    let mut bytes = [0; 6];
    let mut words = text.trim_end_matches('\0').split(':');
    for byte in &mut bytes {
        let digits = |word: &&str| word.len() == 2 && word.bytes().all(|b| b.is_ascii_hexdigit());
        *byte = u8::from_str_radix(words.next().filter(digits)?, 16).ok()?;
    }
    let address = EthernetAddress(bytes);
    (words.next().is_none() && address.is_unicast() && bytes != [0; 6]).then_some(address)
}

/// Serves a session with a backend that waits for this end's nodes.
pub(super) async fn serve<M: Machine>(
    device: &Device<M>,
    meeting: &mut Meeting<'_, Device<M>>,
) -> Result<SessionEnd, Errno> {
    let (store, path, backend) = (meeting.store, meeting.path, meeting.backend.clone());
    let agreed = async {
        let address = read_address(store, path).await?;
        Ok((address, agree(&device.config, store, path, &backend.path).await?))
    };
    let (address, terms) = match agreed.await {
        // With another backend, or the same one made anew, it may be different.
        Err(Errno::EPROTO | Errno::EOPNOTSUPP) => {
            meeting.close().await;
            let shutdown = meeting.wait_for(|state| state != State::InitWait).await?.is_none();
            return Ok(if shutdown { SessionEnd::Shutdown } else { SessionEnd::BackendGone });
        }
        agreed => agreed?,
    };
    device.address.set(address);
    let Config { transmit_pages, receive_pages, .. } = device.config;
    let pages = (transmit_pages, receive_pages);
    let queue = Queue::open(&device.grants, backend.domain, &terms, pages, &device.signal)?;
    let nodes = frontend_nodes(&queue, &terms, &device.config);
    // From here on it is given back by `leave_session`, whatever happens.
    let mut offered = Offered { device, queue: Some(queue) };
    if let Some(end) = meeting.connect(&nodes, State::Connected).await? {
        return Ok(end);
    }
    let Some(queue) = offered.queue.take() else { return Ok(SessionEnd::BackendGone) };
    let (tx, rx) = (queue.tx_port, queue.rx_port);
    device.go_up(queue, terms);
    // The rings were filled before the backend could look at them.
    device.with_queue(|state| {
        if let Some(queue) = &mut state.queue {
            queue.rx.push();
        }
        Ok(())
    });
    device.grants.machine().notify(rx);
    if tx != rx {
        device.grants.machine().notify(tx);
    }
    log::info!(
        "{path}: connected, {}, MTU {}{}{}{}",
        device.address.get(),
        terms.mtu,
        if terms.segments_v4 { ", segmentation" } else { "" },
        if terms.checksum_v4 { ", checksums" } else { "" },
        if terms.split_events { ", two event channels" } else { "" },
    );
    let end = {
        let nodes = pin!(watch_nodes(device, store, &backend.path));
        match select(select(pin!(device.broken()), nodes), pin!(meeting.over())).await {
            Either::Left((Either::Right((error, _)), _)) => Err(error),
            Either::Left(_) => Ok(SessionEnd::BackendGone),
            Either::Right((end, _)) => end,
        }
    };
    meeting.close().await;
    device.leave_session();
    end
}

/// The rings until they are the device's: they are given back with this value.
struct Offered<'d, M: Machine> {
    device: &'d Device<M>,
    queue: Option<Queue>,
}

impl<M: Machine> Drop for Offered<'_, M> {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.close(&self.device.grants);
        }
    }
}

/// What the backend can do, as far as it is wanted. A node that makes no sense is an error.
async fn agree(config: &Config, store: &Store, path: &str, backend: &str) -> Result<Terms, Errno> {
    let node = async |name: &str| -> Result<bool, Errno> {
        match store.read_string(&format!("{backend}/{name}")).await {
            Err(Errno::ENOENT | Errno::EACCES) => Ok(false),
            Ok(value) => match value.as_str() {
                "0" => Ok(false),
                "1" => Ok(true),
                _ => {
                    log::error!("{backend}: `{name}` is `{value}`, and neither 0 nor 1");
                    Err(Errno::EPROTO)
                }
            },
            Err(error) => Err(error),
        }
    };
    if !node("feature-rx-copy").await? {
        log::error!("{backend}: there is no `feature-rx-copy`: the backend is too old");
        return Err(Errno::EOPNOTSUPP);
    }
    let mtu = match read_mtu(store, path).await? {
        Some(mtu) => mtu,
        None => read_mtu(store, backend).await?.unwrap_or(MTU),
    };
    let scatter = node("feature-sg").await?;
    let segmentation = config.segmentation && scatter;
    Ok(Terms {
        mtu,
        scatter,
        checksum_v4: config.checksums && !node("feature-no-csum-offload").await?,
        checksum_v6: config.checksums && node("feature-ipv6-csum-offload").await?,
        segments_v4: segmentation && node("feature-gso-tcpv4").await?,
        segments_v6: segmentation && node("feature-gso-tcpv6").await?,
        split_events: node("feature-split-event-channels").await?,
    })
}

/// The MTU in a folder, if there is one. Scripts write it to the frontend's, toolstacks to the backend's.
async fn read_mtu(store: &Store, path: &str) -> Result<Option<usize>, Errno> {
    match read_number(store, &format!("{path}/mtu")).await {
        Err(Errno::ENOENT | Errno::EACCES) => Ok(None),
        Ok(mtu) if MTUS.contains(&mtu) => Ok(Some(mtu)),
        Ok(_) | Err(Errno::EPROTO) => {
            log::warn!("{path}: `mtu` is not within {MTUS:?}; it is taken to be {MTU}");
            Ok(Some(MTU))
        }
        Err(error) => Err(error),
    }
}

fn frontend_nodes(queue: &Queue, terms: &Terms, config: &Config) -> Vec<(&'static str, String)> {
    let yes = || "1".to_string();
    let segmentation = || if config.segmentation { "1" } else { "0" }.to_string();
    let mut nodes = Vec::from([
        ("tx-ring-ref", queue.tx.grant().to_string()),
        ("rx-ring-ref", queue.rx.grant().to_string()),
        ("request-rx-copy", yes()),
        ("feature-rx-notify", yes()),
        ("feature-sg", yes()),
        ("feature-gso-tcpv4", segmentation()),
        ("feature-gso-tcpv6", segmentation()),
        ("feature-ipv6-csum-offload", yes()),
    ]);
    if terms.split_events {
        nodes.push(("event-channel-tx", queue.tx_port.0.to_string()));
        nodes.push(("event-channel-rx", queue.rx_port.0.to_string()));
    } else {
        nodes.push(("event-channel", queue.tx_port.0.to_string()));
    }
    nodes
}

/// Follows the backend's `carrier`, without which there is one, and the `mtu` of this end, which a script may
/// write only while the two ends meet.
async fn watch_nodes<M: Machine>(device: &Device<M>, store: &Store, backend: &str) -> Errno {
    let (path, carrier) = (&device.path, format!("{backend}/carrier"));
    let watches =
        async { Ok((store.watch(&carrier).await?, store.watch(&format!("{path}/mtu")).await?)) };
    let (mut carriers, mut mtus) = match watches.await {
        Ok(watches) => watches,
        Err(error) => return error,
    };
    loop {
        match select(pin!(carriers.next()), pin!(mtus.next())).await {
            Either::Left(_) => {
                let carrier = store.read_string(&carrier).await;
                device.set_carrier(!matches!(carrier.as_deref(), Ok("0")));
            }
            Either::Right(_) => match read_mtu(store, path).await {
                Ok(Some(mtu)) => device.set_mtu(mtu),
                Ok(None) => {}
                Err(error) => return error,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_six_bytes_of_one_interface() {
        let address = EthernetAddress([0x00, 0x16, 0x3e, 0x01, 0xaa, 0xff]);
        assert_eq!(parse_address("00:16:3e:01:aa:ff"), Some(address));
        for wrong in [
            "",
            "00:16:3e:01:aa",
            "00:16:3e:01:aa:ff:00",
            "00:16:3e:1:aa:ff",
            "+1:16:3e:01:aa:ff",
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }
}
