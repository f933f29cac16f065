//! Slots of the command ring, and the nodes by which the ends negotiate a protocol.

use crate::input::Input;
use futures_util::FutureExt;
use std::collections::BTreeMap;
use xensock::wire::{Extensions, MAX_SLOT, Protocol};

/// Decodes a slot or evaluates nodes.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let protocol = input.protocol();
    match input.below(4) {
        0 => request(protocol, input.rest()),
        1 => response(protocol, input.rest()),
        2 => backend(protocol, input.rest()),
        _ => frontend(protocol, input.rest()),
    }
}

/// A private copy of a slot.
fn slot(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut slot = vec![0; MAX_SLOT];
    let count = bytes.len().min(len);
    slot[..count].copy_from_slice(&bytes[..count]);
    slot.truncate(len);
    slot
}

/// Checks that a decoded request survives encoding and decoding.
fn request(protocol: Protocol, bytes: &[u8]) {
    let slot = slot(bytes, protocol.slots().request);
    match protocol.decode_request(&slot) {
        Ok(request) => {
            let mut again = slot.clone();
            protocol
                .encode_request(&request, &mut again)
                .expect("a decoded request can be encoded");
            assert_eq!(protocol.decode_request(&again), Ok(request));
        }
        Err(malformed) => {
            let mut answer = vec![0; protocol.slots().response];
            protocol.encode_response(&malformed.answer(), &mut answer);
            assert_eq!(answer[..4], slot[..4], "a refusal has the id of its request");
        }
    }
}

fn response(protocol: Protocol, bytes: &[u8]) {
    let slot = slot(bytes, protocol.slots().response);
    let response = protocol.decode_response(&slot);
    let mut again = slot.clone();
    protocol.encode_response(&response, &mut again);
    assert_eq!(protocol.decode_response(&again), response);
}

/// Nodes of these names, with the lines of the input as their values. A line that starts with `-`,
/// or that is missing, is a node that does not exist.
fn nodes(names: &[(&'static str, String)], bytes: &[u8]) -> BTreeMap<&'static str, String> {
    let text = String::from_utf8_lossy(bytes);
    let names = names.iter().map(|(name, _)| *name);
    let lines = text.split('\n').map(str::to_string);
    names.zip(lines).filter(|(_, line)| !line.starts_with('-')).collect()
}

/// Checks that a frontend agrees to nothing beyond its own capabilities.
fn backend(supported: Protocol, bytes: &[u8]) {
    let all = Protocol { extensions: Extensions::all(), ..supported };
    let nodes = nodes(&all.backend_nodes(9), bytes);
    let agreed = supported.with_backend(async |name: &str| nodes.get(name).cloned());
    if let Ok((agreed, orders)) = agreed.now_or_never().expect("no node is waited for") {
        assert!(supported.extensions.contains(agreed.extensions));
        assert!(orders.min <= orders.default && orders.default <= orders.max);
        for order in [orders.min, orders.default, orders.max] {
            agreed.layout(order).expect("a valid order");
        }
    }
}

fn frontend(supported: Protocol, bytes: &[u8]) {
    let nodes = nodes(&supported.frontend_nodes(), bytes);
    let agreed = supported.with_frontend(async |name: &str| nodes.get(name).cloned());
    if let Ok(agreed) = agreed.now_or_never().expect("no node is waited for") {
        assert!(supported.extensions.contains(agreed.extensions));
    }
}

/// A slot of each command, and valid nodes.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for protocol in [0x00, 0x3f, 0x80, 0xbf] {
        for command in (0..8u32).chain(256..263) {
            let mut slot = vec![protocol, 0, 1, 0, 0, 0];
            slot.extend(command.to_le_bytes());
            slot.extend(7u64.to_le_bytes());
            // An address, its length, and further fields.
            slot.extend([2, 0, 0, 80, 127, 0, 0, 1]);
            slot.resize(6 + 4 + 8 + 28, 0);
            slot.extend([16, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0]);
            seeds.push(slot);
        }
        seeds.push([&[protocol, 1][..], &[1; 60]].concat());
        // In the order of the backend's nodes; draft 1 has the last nine of them.
        let orders = "9\n1\n4\n1\n1\n1\n1\n1\n1";
        let versions = if protocol < 0x80 { "1\n1\n" } else { "" };
        seeds.push([&[protocol, 2], versions.as_bytes(), orders.as_bytes()].concat());
        seeds.push([&[protocol, 3], "1\n1\n1\n1\n1\n1\n1".as_bytes()].concat());
    }
    seeds
}
