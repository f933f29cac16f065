//! Files of certificates and keys: PEM, or certificates in DER one after the other.

use alloc::vec::Vec;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

/// What is wrong with a file of certificates and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages explain them")]
pub enum BundleError {
    #[error("the file of certificates has none: it must be PEM, or certificates in DER")]
    NoCertificate,
    #[error("certificate {0} of the file is broken or is no certificate of X.509")]
    Certificate(usize),
    #[error("the file of the certificate has no private key: add it in PEM, not encrypted")]
    NoKey,
    #[error("the file of the certificate has more than one private key: leave one")]
    Keys,
    #[error("the private key is broken, or none of ECDSA with P-256 or P-384, and RSA")]
    Key,
    #[error("the private key is not that of the first certificate: put the server's first")]
    Mismatch,
    #[error("the file is broken: it is no valid PEM")]
    Pem,
}

/// Certificates and keys.
#[derive(Debug, Default)]
pub struct Bundle {
    pub certificates: Vec<CertificateDer<'static>>,
    pub keys: Vec<PrivateKeyDer<'static>>,
}

/// Reads a file.
pub fn read(file: &[u8]) -> Result<Bundle, BundleError> {
    let mut bundle = Bundle::default();
    match file.first() {
        // A SEQUENCE; text of PEM does not begin with it unless a comment does.
        Some(0x30) if der(file).is_some() => {
            let mut rest = file;
            while let Some((certificate, after)) = der(rest) {
                bundle.certificates.push(CertificateDer::from(certificate.to_vec()));
                rest = after;
            }
            if !rest.iter().all(|byte| *byte == 0) {
                return Err(BundleError::Certificate(bundle.certificates.len() + 1));
            }
        }
        _ => {
            for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(file) {
                let (kind, der) = section.map_err(|_| BundleError::Pem)?;
                match kind {
                    SectionKind::Certificate => bundle.certificates.push(der.into()),
                    SectionKind::PrivateKey => bundle.keys.push(PrivateKeyDer::Pkcs8(der.into())),
                    SectionKind::RsaPrivateKey => {
                        bundle.keys.push(PrivateKeyDer::Pkcs1(der.into()));
                    }
                    SectionKind::EcPrivateKey => bundle.keys.push(PrivateKeyDer::Sec1(der.into())),
                    _ => {}
                }
            }
        }
    }
    if bundle.certificates.is_empty() { Err(BundleError::NoCertificate) } else { Ok(bundle) }
}

/// The SEQUENCE at the beginning, with its head, and what follows it.
fn der(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let [0x30, first, rest @ ..] = bytes else { return None };
    let (head, length) = match first {
        ..=0x7f => (2, usize::from(*first)),
        0x81..=0x84 => {
            let count = usize::from(first - 0x80);
            let digits = rest.get(..count)?;
            (2 + count, digits.iter().fold(0, |value, digit| value << 8 | usize::from(*digit)))
        }
        _ => return None,
    };
    bytes.split_at_checked(head.checked_add(length)?)
}
