//! Xenstore's messages as bytes: encoding, decoding and the rules for paths and permissions
//! (`io/xs_wire.h`, `docs/misc/xenstore.txt`). Both directions are checked here.

use crate::abi::xs_wire::*;
use crate::{DomId, Errno};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes in a message's header.
pub const HEADER_LEN: usize = size_of::<SockMsg>();

/// A checked header: its payload is not longer than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of the `XS_` message types. Not checked.
    pub kind: u32,
    /// The request's id.
    pub request: u32,
    /// The transaction's id, or 0.
    pub transaction: u32,
    /// Bytes of payload, at most [`XENSTORE_PAYLOAD_MAX`].
    pub len: usize,
}

impl Header {
    /// Decodes a header. [`Errno::EPROTO`] if its payload is too long.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, Errno> {
        let raw = SockMsg::read_from_bytes(bytes).map_err(|_| Errno::EPROTO)?;
        let len = raw.len.get() as usize;
        if len > XENSTORE_PAYLOAD_MAX {
            return Err(Errno::EPROTO);
        }
        let (kind, request) = (raw.kind.get(), raw.req_id.get());
        Ok(Header { kind, request, transaction: raw.tx_id.get(), len })
    }
}

/// Encodes a message whose payload is the concatenated `parts`. [`Errno::E2BIG`] if the payload
/// exceeds [`XENSTORE_PAYLOAD_MAX`].
pub fn encode(
    kind: u32,
    request: u32,
    transaction: u32,
    parts: &[&[u8]],
) -> Result<Vec<u8>, Errno> {
    let len = parts.iter().map(|part| part.len()).sum::<usize>();
    if len > XENSTORE_PAYLOAD_MAX {
        return Err(Errno::E2BIG);
    }
    let header = SockMsg {
        kind: kind.into(),
        req_id: request.into(),
        tx_id: transaction.into(),
        len: (len as u32).into(),
    };
    let mut message = Vec::with_capacity(HEADER_LEN + len);
    message.extend_from_slice(header.as_bytes());
    parts.iter().for_each(|part| message.extend_from_slice(part));
    Ok(message)
}

/// A node's value for a message: escaped and cut, as another domain may have written anything.
pub fn shown(value: &str) -> String {
    const MOST: usize = 40;
    let mut chars = value.chars();
    let mut shown: String = chars.by_ref().take(MOST).flat_map(char::escape_debug).collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}

/// Checks a node's path: [`Errno::EINVAL`] for a malformed one, [`Errno::E2BIG`] for one that is
/// too long.
pub fn check_path(path: &str) -> Result<(), Errno> {
    let limit = if path.starts_with('/') { XENSTORE_ABS_PATH_MAX } else { XENSTORE_REL_PATH_MAX };
    if path.len() > limit {
        return Err(Errno::E2BIG);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    let trailing = path.len() > 1 && path.ends_with('/');
    if path.is_empty() || !path.bytes().all(legal) || path.contains("//") || trailing {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The zero-terminated strings of a payload. The last one may lack its zero byte.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload
        .strip_suffix(&[0])
        .unwrap_or(payload)
        .split(|&byte| byte == 0)
        .filter(|_| !payload.is_empty())
}

/// The text of a reply, without the zero byte that ends some replies. [`Errno::EPROTO`] if it is
/// not UTF-8.
pub fn text(payload: &[u8]) -> Result<String, Errno> {
    let bytes = payload.strip_suffix(&[0]).unwrap_or(payload);
    core::str::from_utf8(bytes).map(String::from).map_err(|_| Errno::EPROTO)
}

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing (`n`).
    None,
    /// Read (`r`).
    Read,
    /// Write (`w`).
    Write,
    /// Read and write (`b`).
    Both,
}

/// An entry of a node's permissions. The first entry has the owner, which may do everything, and
/// the access of domains without an entry of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The permitted access.
    pub access: Access,
    /// The domain.
    pub domain: DomId,
}

impl Permission {
    /// Decodes a permission such as `r5`. [`Errno::EPROTO`] if it is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Permission, Errno> {
        let (&letter, digits) = bytes.split_first().ok_or(Errno::EPROTO)?;
        let access = match letter {
            b'n' => Access::None,
            b'r' => Access::Read,
            b'w' => Access::Write,
            b'b' => Access::Both,
            _ => return Err(Errno::EPROTO),
        };
        let digits = core::str::from_utf8(digits).map_err(|_| Errno::EPROTO)?;
        let domain = DomId(digits.parse().map_err(|_| Errno::EPROTO)?);
        Ok(Permission { access, domain })
    }

    /// Encodes permissions as a payload.
    pub fn encode_all(permissions: &[Permission]) -> Vec<u8> {
        let mut payload = Vec::new();
        for permission in permissions {
            payload.extend_from_slice(permission.to_string().as_bytes());
            payload.push(0);
        }
        payload
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_its_header_and_its_parts() {
        let message = encode(XS_WRITE, 7, 3, &[b"a/b", &[0], b"value"]).unwrap();
        let (head, payload) = message.split_first_chunk().unwrap();
        let header = Header::decode(head).unwrap();
        assert_eq!(header, Header { kind: XS_WRITE, request: 7, transaction: 3, len: 9 });
        assert_eq!(payload, b"a/b\0value");
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_in_both_directions() {
        assert!(encode(XS_WRITE, 0, 0, &[&[0; 4096]]).is_ok());
        assert_eq!(encode(XS_WRITE, 0, 0, &[&[0; 4096], &[0]]), Err(Errno::E2BIG));
        let mut head = [0; HEADER_LEN];
        head[12..].copy_from_slice(&4097u32.to_le_bytes());
        assert_eq!(Header::decode(&head), Err(Errno::EPROTO));
    }

    #[test]
    fn a_value_of_another_domain_is_a_short_part_of_one_line() {
        assert_eq!(shown("1"), "1");
        assert_eq!(shown("a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(shown(&"x".repeat(40)), "x".repeat(40));
        let long = shown(&"\u{1}".repeat(4096));
        assert!(long.len() < 250 && long.ends_with("..."), "{long}");
    }

    #[test]
    fn paths_follow_the_rules_of_xenstore() {
        for good in ["/", "/local/domain/1", "device/vif-0", "@introduceDomain", "a_b"] {
            assert_eq!(check_path(good), Ok(()), "{good}");
        }
        for bad in ["", "a/", "//", "a//b", "a b", "a\0b", "é", "a.b"] {
            assert_eq!(check_path(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(check_path(&"a".repeat(2048)), Ok(()));
        assert_eq!(check_path(&"a".repeat(2049)), Err(Errno::E2BIG));
        assert_eq!(check_path(&format!("/{}", "a".repeat(3072))), Err(Errno::E2BIG));
    }

    #[test]
    fn a_payload_splits_at_its_zero_bytes() {
        let split = |payload| strings(payload).collect::<Vec<_>>();
        assert!(split(b"").is_empty());
        assert_eq!(split(b"a\0bc\0"), [&b"a"[..], b"bc"]);
        assert_eq!(split(b"a\0bc"), [&b"a"[..], b"bc"]);
    }

    #[test]
    fn permissions_read_back_as_written() {
        let all = [
            Permission { access: Access::None, domain: DomId(5) },
            Permission { access: Access::Read, domain: DomId(0) },
            Permission { access: Access::Both, domain: DomId(32751) },
        ];
        let payload = Permission::encode_all(&all);
        assert_eq!(payload, b"n5\0r0\0b32751\0");
        let back = strings(&payload).map(Permission::decode).collect::<Result<Vec<_>, _>>();
        assert_eq!(back, Ok(all.to_vec()));
        assert_eq!(Permission::decode(b""), Err(Errno::EPROTO));
        assert_eq!(Permission::decode(b"r70000"), Err(Errno::EPROTO));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(head) = bytes.first_chunk() {
                let _ = Header::decode(head);
            }
            let _ = text(&bytes);
            strings(&bytes).for_each(|part| { let _ = Permission::decode(part); });
        }

        #[test]
        fn every_message_decodes_to_what_was_encoded(
            kind: u32, request: u32, transaction: u32,
            payload in proptest::collection::vec(any::<u8>(), 0..4096),
        ) {
            let message = encode(kind, request, transaction, &[&payload]).unwrap();
            let (head, rest) = message.split_first_chunk().unwrap();
            let len = payload.len();
            let expected = Header { kind, request, transaction, len };
            prop_assert_eq!(Header::decode(head).unwrap(), expected);
            prop_assert_eq!(rest, &payload[..]);
        }
    }
}
