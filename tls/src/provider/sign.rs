//! Private keys of servers: ECDSA with P-256 or P-384, and RSA.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use getrandom::SysRng;
use p256::ecdsa::signature::{RandomizedSigner, SignatureEncoding, Signer as _};
use p256::elliptic_curve::sec1::ToSec1Point;
use rsa::pkcs1::{DecodeRsaPrivateKey, EncodeRsaPublicKey};
use rsa::pss;
use rustls::crypto::KeyProvider;
use rustls::pki_types::{AlgorithmIdentifier, PrivateKeyDer, SubjectPublicKeyInfoDer, alg_id};
use rustls::sign::{Signer, SigningKey, public_key_to_spki};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use sha2::Sha256;

type Sign = dyn Fn(&[u8]) -> Result<Vec<u8>, ()> + Send + Sync;

/// A key that signs with one scheme.
#[derive(Clone)]
struct Key {
    sign: Arc<Sign>,
    scheme: SignatureScheme,
    algorithm: SignatureAlgorithm,
    id: AlgorithmIdentifier,
    public: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.scheme).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(public_key_to_spki(&self.id, &self.public))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        (self.sign)(message).map_err(|()| Error::General("cannot sign".into()))
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// Reads private keys.
#[derive(Debug)]
pub struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, der: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let key = p256_key(&der).or_else(|| p384_key(&der)).or_else(|| rsa_key(&der));
        match key {
            Some(key) => Ok(Arc::new(key)),
            None => Err(Error::General("the key is none of P-256, P-384 and RSA".into())),
        }
    }
}

/// Reads the key of a curve, in PKCS #8 or SEC 1.
macro_rules! curve {
    ($name:ident, $curve:ident, $scheme:expr, $id:expr) => {
        fn $name(der: &PrivateKeyDer<'_>) -> Option<Key> {
            use $curve::ecdsa::{DerSignature, SigningKey};
            use $curve::pkcs8::DecodePrivateKey;
            let secret = match der {
                PrivateKeyDer::Pkcs8(der) => {
                    $curve::SecretKey::from_pkcs8_der(der.secret_pkcs8_der()).ok()?
                }
                PrivateKeyDer::Sec1(der) => {
                    $curve::SecretKey::from_sec1_der(der.secret_sec1_der()).ok()?
                }
                _ => return None,
            };
            let public = secret.public_key().to_sec1_point(false).as_bytes().to_vec();
            let key = SigningKey::from(secret);
            let sign = move |message: &[u8]| {
                let signature: DerSignature = key.try_sign(message).map_err(drop)?;
                Ok(signature.as_bytes().to_vec())
            };
            Some(Key {
                sign: Arc::new(sign),
                scheme: $scheme,
                algorithm: SignatureAlgorithm::ECDSA,
                id: $id,
                public,
            })
        }
    };
}

curve!(p256_key, p256, SignatureScheme::ECDSA_NISTP256_SHA256, alg_id::ECDSA_P256);
curve!(p384_key, p384, SignatureScheme::ECDSA_NISTP384_SHA384, alg_id::ECDSA_P384);

/// Reads an RSA key, in PKCS #8 or PKCS #1.
fn rsa_key(der: &PrivateKeyDer<'_>) -> Option<Key> {
    use rsa::pkcs8::DecodePrivateKey;
    let private = match der {
        PrivateKeyDer::Pkcs8(der) => {
            rsa::PrivateKey::from_pkcs8_der(der.secret_pkcs8_der()).ok()?
        }
        PrivateKeyDer::Pkcs1(der) => {
            rsa::PrivateKey::from_pkcs1_der(der.secret_pkcs1_der()).ok()?
        }
        _ => return None,
    };
    let public = private.to_public_key().to_pkcs1_der().ok()?.as_bytes().to_vec();
    let key = pss::SigningKey::<Sha256>::new(private);
    let sign = move |message: &[u8]| {
        let signature = key.try_sign_with_rng(&mut SysRng, message).map_err(drop)?;
        Ok(signature.to_vec())
    };
    Some(Key {
        sign: Arc::new(sign),
        scheme: SignatureScheme::RSA_PSS_SHA256,
        algorithm: SignatureAlgorithm::RSA,
        id: alg_id::RSA_ENCRYPTION,
        public,
    })
}
