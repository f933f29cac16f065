//! What all connections of a client or of a server have in common.

use crate::bundle::{self, BundleError};
use crate::failure::Failure;
use crate::provider::provider;
use crate::verifier::Verifier;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use rustls::pki_types::UnixTime;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, InconsistentKeys, ServerConfig};

/// The wall clock: the time since the Unix epoch, if it is known.
pub type Clock = fn() -> Option<Duration>;

/// 2026-01-01, when this was written: a clock that says less is wrong.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// What the protocol of the application is called, for peers that ask (RFC 7301).
const HTTP: &[u8] = b"http/1.1";

/// A client: whom it trusts.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) config: Arc<ClientConfig>,
    clock: Clock,
}

impl Client {
    /// A client that trusts the certificates of a file.
    pub fn new(roots: &[u8], clock: Clock) -> Result<Client, BundleError> {
        let certificates = bundle::read(roots)?.certificates.into_iter().enumerate();
        let anchors = certificates.map(|(index, certificate)| {
            let anchor = webpki::anchor_from_trusted_cert(&certificate);
            let anchor = anchor.map_err(|_| BundleError::Certificate(index + 1))?;
            Ok(anchor.to_owned())
        });
        let roots = anchors.collect::<Result<Vec<_>, _>>()?;
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(Time(clock)))
            .with_protocol_versions(&[&TLS13])
            .expect("all suites are those of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier { roots }))
            .with_no_client_auth();
        config.alpn_protocols = vec![HTTP.to_vec()];
        Ok(Client { config: Arc::new(config), clock })
    }

    /// Whether the clock can be right.
    pub(crate) fn check_clock(&self) -> Result<(), Failure> {
        match (self.clock)() {
            None => Err(Failure::NoClock),
            Some(time) if time < EARLIEST => Err(Failure::Clock(time.into())),
            Some(_) => Ok(()),
        }
    }
}

/// A server: its certificate and its key.
#[derive(Clone, Debug)]
pub struct Server {
    pub(crate) config: Arc<ServerConfig>,
}

impl Server {
    /// A server with the certificate, those between it and a root, and the key of a file.
    pub fn new(file: &[u8]) -> Result<Server, BundleError> {
        let mut bundle = bundle::read(file)?;
        let key = bundle.keys.pop().ok_or(BundleError::NoKey)?;
        if !bundle.keys.is_empty() {
            return Err(BundleError::Keys);
        }
        let provider = provider();
        let key = provider.key_provider.load_private_key(key).map_err(|_| BundleError::Key)?;
        let certified = CertifiedKey::new(bundle.certificates, key);
        certified.keys_match().map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => BundleError::Mismatch,
            _ => BundleError::Certificate(1),
        })?;
        let mut config = ServerConfig::builder_with_details(provider, Arc::new(Time(|| None)))
            .with_protocol_versions(&[&TLS13])
            .expect("all suites are those of TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![HTTP.to_vec()];
        // The order of the provider: clients that have AES in hardware would choose that.
        config.ignore_client_order = true;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Server { config: Arc::new(config) })
    }
}

struct Time(Clock);

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Time")
    }
}

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        (self.0)().map(UnixTime::since_unix_epoch)
    }
}
