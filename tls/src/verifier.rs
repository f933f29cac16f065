//! The check of a server's certificate.

use crate::provider::ALGORITHMS;
use alloc::format;
use alloc::vec::Vec;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};

/// Checks that a root has signed a certificate, that it is valid now, and for the name.
#[derive(Debug)]
pub struct Verifier {
    pub roots: Vec<TrustAnchor<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = EndEntityCert::try_from(certificate).map_err(error)?;
        let usage = KeyUsage::server_auth();
        parsed
            .verify_for_usage(ALGORITHMS.all, &self.roots, others, now, usage, None, None)
            .map_err(error)?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not supported".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &ALGORITHMS)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ALGORITHMS.supported_schemes()
    }
}

/// rustls has the same table, but without the standard library it loses the rules that it does not
/// name. And a certificate of an authority that a server uses is mostly one that has signed itself.
fn error(error: webpki::Error) -> Error {
    use webpki::Error as Rule;
    Error::InvalidCertificate(match error {
        Rule::CertExpired { time, not_after } => {
            CertificateError::ExpiredContext { time, not_after }
        }
        Rule::CertNotValidYet { time, not_before } => {
            CertificateError::NotValidYetContext { time, not_before }
        }
        Rule::UnknownIssuer | Rule::CaUsedAsEndEntity => CertificateError::UnknownIssuer,
        Rule::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        error => return Error::General(format!("{error:?}")),
    })
}
