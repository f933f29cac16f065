//! The cryptography of TLS 1.3, for rustls, by the crates of RustCrypto and dalek.
//!
//! rustls' own providers need C compilers or an operating system. This one offers what TLS 1.3
//! demands and what servers and certificates of the web use, and no more.

mod aead;
mod exchange;
mod hash;
mod sign;
mod verify;

use alloc::sync::Arc;
use rustls::crypto::tls13::HkdfUsingHmac;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, GetRandomFailed, SecureRandom};
use rustls::{CipherSuite, SupportedCipherSuite, Tls13CipherSuite};

/// How many records may be encrypted with one key of AES-GCM (RFC 8446, section 5.5).
const AES_LIMIT: u64 = 1 << 24;

// ChaCha20 first: in software it is faster than AES.
static SUITES: [&Tls13CipherSuite; 3] = [
    &Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            hash_provider: &hash::SHA256,
            confidentiality_limit: u64::MAX,
        },
        hkdf_provider: &HkdfUsingHmac(&hash::HMAC_SHA256),
        aead_alg: &aead::CHACHA20_POLY1305,
        quic: None,
    },
    &Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: CipherSuite::TLS13_AES_128_GCM_SHA256,
            hash_provider: &hash::SHA256,
            confidentiality_limit: AES_LIMIT,
        },
        hkdf_provider: &HkdfUsingHmac(&hash::HMAC_SHA256),
        aead_alg: &aead::AES_128_GCM,
        quic: None,
    },
    &Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: CipherSuite::TLS13_AES_256_GCM_SHA384,
            hash_provider: &hash::SHA384,
            confidentiality_limit: AES_LIMIT,
        },
        hkdf_provider: &HkdfUsingHmac(&hash::HMAC_SHA384),
        aead_alg: &aead::AES_256_GCM,
        quic: None,
    },
];

pub use verify::ALGORITHMS;

/// The provider.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: SUITES.into_iter().map(SupportedCipherSuite::Tls13).collect(),
        kx_groups: exchange::GROUPS.to_vec(),
        signature_verification_algorithms: ALGORITHMS,
        secure_random: &Random,
        key_provider: &sign::Keys,
    })
}

/// The random numbers of `getrandom`.
#[derive(Debug)]
struct Random;

impl SecureRandom for Random {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        getrandom::fill(bytes).map_err(|_| GetRandomFailed)
    }
}
