//! Signatures of certificates and of handshakes.

use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::pkcs1::DecodeRsaPublicKey;
use rsa::traits::PublicKeyParts;
use rsa::{Pkcs1v15Sign, Pss, PublicKey};
use rustls::SignatureScheme;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id,
};
use sha2::{Digest, Sha256, Sha384, Sha512};

type Verify = fn(&[u8], &[u8], &[u8]) -> Result<(), InvalidSignature>;

/// The fewest bytes of an RSA key. The crate has a limit for the most.
const RSA_BYTES: usize = 2048 / 8;

struct Algorithm {
    key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
    verify: Verify,
}

impl core::fmt::Debug for Algorithm {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Algorithm").finish_non_exhaustive()
    }
}

impl SignatureVerificationAlgorithm for Algorithm {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        (self.verify)(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

/// ECDSA with a curve's crate and a hash function.
macro_rules! ecdsa {
    ($curve:ident, $hash:ty, $key:expr, $signature:expr) => {
        &Algorithm {
            key: $key,
            signature: $signature,
            verify: |key, message, signature| {
                let key = $curve::ecdsa::VerifyingKey::from_sec1_bytes(key);
                let signature = $curve::ecdsa::Signature::from_der(signature);
                let (key, signature) =
                    (key.map_err(|_| InvalidSignature)?, signature.map_err(|_| InvalidSignature)?);
                let digest = <$hash as Digest>::digest(message);
                key.verify_prehash(&digest, &signature).map_err(|_| InvalidSignature)
            },
        }
    };
}

/// RSA with a padding and a hash function.
macro_rules! rsa {
    ($padding:expr, $hash:ty, $signature:expr) => {
        &Algorithm {
            key: alg_id::RSA_ENCRYPTION,
            signature: $signature,
            verify: |key, message, signature| {
                let digest = <$hash as Digest>::digest(message);
                let valid = rsa_key(key)?.verify($padding, &digest, signature);
                valid.map_err(|_| InvalidSignature)
            },
        }
    };
}

fn rsa_key(bytes: &[u8]) -> Result<PublicKey, InvalidSignature> {
    let key = PublicKey::from_pkcs1_der(bytes).map_err(|_| InvalidSignature)?;
    if key.size() < RSA_BYTES { Err(InvalidSignature) } else { Ok(key) }
}

type Use = &'static dyn SignatureVerificationAlgorithm;

const P256_SHA256: Use = ecdsa!(p256, Sha256, alg_id::ECDSA_P256, alg_id::ECDSA_SHA256);
const P256_SHA384: Use = ecdsa!(p256, Sha384, alg_id::ECDSA_P256, alg_id::ECDSA_SHA384);
const P384_SHA256: Use = ecdsa!(p384, Sha256, alg_id::ECDSA_P384, alg_id::ECDSA_SHA256);
const P384_SHA384: Use = ecdsa!(p384, Sha384, alg_id::ECDSA_P384, alg_id::ECDSA_SHA384);
const PKCS1_SHA256: Use = rsa!(Pkcs1v15Sign::new::<Sha256>(), Sha256, alg_id::RSA_PKCS1_SHA256);
const PKCS1_SHA384: Use = rsa!(Pkcs1v15Sign::new::<Sha384>(), Sha384, alg_id::RSA_PKCS1_SHA384);
const PKCS1_SHA512: Use = rsa!(Pkcs1v15Sign::new::<Sha512>(), Sha512, alg_id::RSA_PKCS1_SHA512);
const PSS_SHA256: Use = rsa!(Pss::<Sha256>::new(), Sha256, alg_id::RSA_PSS_SHA256);
const PSS_SHA384: Use = rsa!(Pss::<Sha384>::new(), Sha384, alg_id::RSA_PSS_SHA384);
const PSS_SHA512: Use = rsa!(Pss::<Sha512>::new(), Sha512, alg_id::RSA_PSS_SHA512);

/// What may sign certificates, and what a server may sign its handshake with.
pub const ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        P256_SHA256,
        P256_SHA384,
        P384_SHA256,
        P384_SHA384,
        PKCS1_SHA256,
        PKCS1_SHA384,
        PKCS1_SHA512,
        PSS_SHA256,
        PSS_SHA384,
        PSS_SHA512,
    ],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[P256_SHA256]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[P384_SHA384]),
        (SignatureScheme::RSA_PSS_SHA256, &[PSS_SHA256]),
        (SignatureScheme::RSA_PSS_SHA384, &[PSS_SHA384]),
        (SignatureScheme::RSA_PSS_SHA512, &[PSS_SHA512]),
        // In TLS 1.3 these are for certificates alone.
        (SignatureScheme::RSA_PKCS1_SHA256, &[PKCS1_SHA256]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[PKCS1_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA512, &[PKCS1_SHA512]),
    ],
};
