//! SHA-2, and message authentication with it.

use alloc::boxed::Box;
use core::marker::PhantomData;
use hmac::{KeyInit, Mac, SimpleHmac};
use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::hmac::{Hmac, Key, Tag};
use sha2::digest::{Digest, common::BlockSizeUser};
use sha2::{Sha256, Sha384};

pub static SHA256: Hashing<Sha256> = Hashing(HashAlgorithm::SHA256, PhantomData);
pub static SHA384: Hashing<Sha384> = Hashing(HashAlgorithm::SHA384, PhantomData);
pub static HMAC_SHA256: Authentication<Sha256> = Authentication(PhantomData);
pub static HMAC_SHA384: Authentication<Sha384> = Authentication(PhantomData);

/// What a hash function must be.
pub trait Function: Digest + BlockSizeUser + Clone + Send + Sync + 'static {}

impl<D: Digest + BlockSizeUser + Clone + Send + Sync + 'static> Function for D {}

/// A hash function.
pub struct Hashing<D>(HashAlgorithm, PhantomData<fn() -> D>);

impl<D: Function> Hash for Hashing<D> {
    fn start(&self) -> Box<dyn Context> {
        Box::new(Running(D::new()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        Output::new(&D::digest(data))
    }

    fn output_len(&self) -> usize {
        <D as Digest>::output_size()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0
    }
}

struct Running<D>(D);

impl<D: Function> Context for Running<D> {
    fn fork_finish(&self) -> Output {
        Output::new(&self.0.clone().finalize())
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Running(self.0.clone()))
    }

    fn finish(self: Box<Self>) -> Output {
        Output::new(&self.0.finalize())
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

/// HMAC (RFC 2104) with a hash function.
pub struct Authentication<D>(PhantomData<fn() -> D>);

impl<D: Function> Hmac for Authentication<D> {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        let keyed = SimpleHmac::<D>::new_from_slice(key);
        Box::new(Keyed(keyed.expect("a key of HMAC may have any length")))
    }

    fn hash_output_len(&self) -> usize {
        <D as Digest>::output_size()
    }
}

struct Keyed<D: Function>(SimpleHmac<D>);

impl<D: Function> Key for Keyed<D> {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut mac = self.0.clone();
        Mac::update(&mut mac, first);
        middle.iter().for_each(|part| Mac::update(&mut mac, part));
        Mac::update(&mut mac, last);
        Tag::new(&mac.finalize().into_bytes())
    }

    fn tag_len(&self) -> usize {
        <D as Digest>::output_size()
    }
}
