//! The exchange of keys: X25519, and P-256 for peers that lack it.

use alloc::boxed::Box;
use p256::elliptic_curve::sec1::ToSec1Point;
use rustls::crypto::{ActiveKeyExchange, GetRandomFailed, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved};

/// The groups, the preferred one first.
pub const GROUPS: [&dyn SupportedKxGroup; 2] = [&Curve25519, &P256];

const INVALID: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| GetRandomFailed)?;
    Ok(bytes)
}

#[derive(Debug)]
struct Curve25519;

impl SupportedKxGroup for Curve25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let secret = x25519_dalek::StaticSecret::from(random()?);
        Ok(Box::new(X25519 { public: (&secret).into(), secret }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct X25519 {
    secret: x25519_dalek::StaticSecret,
    public: x25519_dalek::PublicKey,
}

impl ActiveKeyExchange for X25519 {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; 32] = peer.try_into().map_err(|_| INVALID)?;
        let shared = self.secret.diffie_hellman(&peer.into());
        // The peer must not be able to decide the secret (RFC 8446, section 7.4.2).
        if !shared.was_contributory() {
            return Err(INVALID);
        }
        Ok(SharedSecret::from(shared.as_bytes().as_slice()))
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

#[derive(Debug)]
struct P256;

/// The length of a point that is not compressed.
const POINT: usize = 65;

/// How often a random number may be no key. One in 2^32 is none.
const ATTEMPTS: usize = 8;

impl SupportedKxGroup for P256 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        for _ in 0..ATTEMPTS {
            if let Ok(secret) = p256::SecretKey::from_slice(&random::<32>()?) {
                let point = secret.public_key().to_sec1_point(false);
                let public = point.as_bytes().try_into().map_err(|_| GetRandomFailed)?;
                return Ok(Box::new(Secp256r1 { secret, public }));
            }
        }
        Err(GetRandomFailed.into())
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp256r1
    }
}

struct Secp256r1 {
    secret: p256::SecretKey,
    public: [u8; POINT],
}

impl ActiveKeyExchange for Secp256r1 {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        if peer.len() != POINT {
            return Err(INVALID);
        }
        let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_| INVALID)?;
        let secret = self.secret.to_nonzero_scalar();
        let shared = p256::ecdh::diffie_hellman(secret, peer.as_affine());
        Ok(SharedSecret::from(shared.raw_secret_bytes().as_slice()))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp256r1
    }
}
