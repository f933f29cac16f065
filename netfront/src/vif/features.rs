//! The features that a backend offers in xenstore, and those that are used.

use super::config::{Config, LONGEST};
use alloc::format;
use smoltcp::wire::EthernetAddress;
use xen::xenbus::read_number;
use xen::xenstore::Store;
use xen::xenstore::wire::shown;
use xen::{Errno, PAGE_SIZE};

/// The bytes of a frame before its packet: addresses and type.
pub(super) const ETHERNET_HEADER: usize = 14;

/// The default MTU, and the accepted values.
const MTU: usize = 1500;
const MTUS: core::ops::RangeInclusive<usize> = 576..=9216;

/// The features of a session: those that both ends support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// The longest packet, in bytes, that need not be segmented.
    pub(super) mtu: usize,
    /// Whether a frame may have several parts.
    scatter: bool,
    /// Whether the backend segments TCP over IPv4, and over IPv6.
    pub(super) segments_v4: bool,
    pub(super) segments_v6: bool,
    /// Whether the backend completes checksums.
    pub(super) checksum_v4: bool,
    pub(super) checksum_v6: bool,
    /// Whether each ring has an event channel of its own.
    pub(super) split_events: bool,
}

impl Default for Features {
    fn default() -> Self {
        Features {
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

impl Features {
    /// The longest frame that is transmitted whole.
    pub(super) fn frame(&self) -> usize {
        let frame = self.mtu + ETHERNET_HEADER;
        if self.scatter { frame } else { frame.min(PAGE_SIZE) }
    }

    /// The longest frame that is transmitted at all.
    pub(super) fn longest_frame(&self) -> usize {
        if self.segments_v4 || self.segments_v6 { LONGEST } else { self.frame() }
    }

    /// Whether the backend accepts a frame, whole or, with a `segment` size, to be segmented. A
    /// stack may still use the features of the previous session.
    pub(super) fn accept(&self, frame: &[u8], segment: Option<u16>) -> bool {
        match segment {
            None => frame.len() <= self.frame(),
            Some(_) if frame.len() > LONGEST => false,
            Some(_) if is_ipv6(frame) => self.segments_v6,
            Some(_) => self.segments_v4,
        }
    }
}

/// Whether a frame carries IPv6.
pub(super) fn is_ipv6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

/// The address that the toolstack gave the interface. [`Errno::EPROTO`] if it is not valid.
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

/// Reads those of the backend's features that this end uses. A node with an invalid value is an
/// error.
pub(super) async fn negotiate(
    config: &Config,
    store: &Store,
    path: &str,
    backend: &str,
) -> Result<Features, Errno> {
    let node = async |name: &str| -> Result<bool, Errno> {
        match store.read_string(&format!("{backend}/{name}")).await {
            Err(Errno::ENOENT | Errno::EACCES) => Ok(false),
            Ok(value) => match value.as_str() {
                "0" => Ok(false),
                "1" => Ok(true),
                _ => {
                    let value = shown(&value);
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
    Ok(Features {
        mtu,
        scatter,
        checksum_v4: config.checksums && !node("feature-no-csum-offload").await?,
        checksum_v6: config.checksums && node("feature-ipv6-csum-offload").await?,
        segments_v4: segmentation && node("feature-gso-tcpv4").await?,
        segments_v6: segmentation && node("feature-gso-tcpv6").await?,
        split_events: node("feature-split-event-channels").await?,
    })
}

/// The MTU in a folder, if it is set. Scripts write it to the frontend's folder, toolstacks to the
/// backend's.
pub(super) async fn read_mtu(store: &Store, path: &str) -> Result<Option<usize>, Errno> {
    match read_number(store, &format!("{path}/mtu")).await {
        Err(Errno::ENOENT | Errno::EACCES) => Ok(None),
        Ok(mtu) if MTUS.contains(&mtu) => Ok(Some(mtu)),
        Ok(_) | Err(Errno::EPROTO) => {
            log::warn!("{path}: `mtu` is not within {MTUS:?}; using {MTU}");
            Ok(Some(MTU))
        }
        Err(error) => Err(error),
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
