//! TLS 1.3 (RFC 8446) over async byte streams, without the standard library.
//!
//! rustls does the protocol, [`Stream`] moves its bytes over a socket of `embedded-io-async`, and
//! the cryptography is that of RustCrypto and dalek, in software: it uses no SIMD registers if the
//! build disables them. Random numbers come from `getrandom`, and the time from the caller.
//!
//! Certificates and keys are files of PEM or DER: [`Client::new`] takes roots, [`Server::new`] a
//! chain and its key. What a certificate may be wrong with has an error each, which says what to
//! do: [`Failure`].
//!
//! Not supported: TLS 1.2, certificates of clients, sessions that are resumed, Ed25519, certificate
//! revocation lists.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bundle;
mod date;
mod failure;
mod provider;
mod settings;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod verifier;

pub use rustls::pki_types::ServerName;

pub use bundle::BundleError;
pub use failure::Failure;
pub use settings::{Client, Clock, Server};
pub use stream::{BUFFER, Error, Stream};
