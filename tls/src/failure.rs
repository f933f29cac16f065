//! What goes wrong, and what to do about it.

use crate::date::Date;
use alloc::format;
use alloc::string::{String, ToString};
use core::net::{Ipv4Addr, Ipv6Addr};
use rustls::CertificateError;
use rustls::pki_types::{IpAddr, ServerName, UnixTime};
use thiserror::Error;

/// Why a handshake or a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The certificate, or one that it depends on, has expired.
    #[error("the certificate expired on {end}, and it is {now}: renew it, or set the host's clock")]
    #[expect(missing_docs, reason = "the message explains them")]
    Expired { end: Date, now: Date },
    /// The certificate, or one that it depends on, is not valid yet.
    #[error(
        "the certificate is not valid before {start}, and it is {now}: set the host's clock, or \
         the peer's"
    )]
    #[expect(missing_docs, reason = "the message explains them")]
    NotYetValid { start: Date, now: Date },
    /// The certificate belongs to another name.
    #[error("the certificate is not for {wanted}, but for {has}: use one of these names")]
    #[expect(missing_docs, reason = "the message explains them")]
    WrongName { wanted: String, has: String },
    /// No root has signed the certificate.
    #[error(
        "the certificate's issuer is none of the roots, or is the certificate itself: add its \
         issuer's root to the file of roots, and have the server send the certificates between them"
    )]
    UnknownIssuer,
    /// Another rule is broken.
    #[error("the certificate is invalid: {0}")]
    Certificate(String),
    /// The clock is plainly wrong.
    #[error("the clock says {0}, so no certificate can be checked: set the host's clock")]
    Clock(Date),
    /// Nobody knows the time.
    #[error("the time is unknown, so no certificate can be checked: see to the host's clock")]
    NoClock,
    /// Keys cannot be made.
    #[error(
        "there are no random numbers: this processor has no RDRAND, so write a seed to data/seed"
    )]
    NoRandomNumbers,
    /// The peer refuses something.
    #[error("the peer refuses the connection: {0}")]
    Alert(String),
    /// The peer does not do what TLS 1.3 demands.
    #[error("the peer speaks no TLS 1.3: {0}")]
    Protocol(String),
}

impl Failure {
    /// What rustls' error means.
    pub(crate) fn new(error: rustls::Error) -> Failure {
        use rustls::Error;
        let date = |time: UnixTime| Date(time.as_secs());
        match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::ExpiredContext { time, not_after } => {
                    Failure::Expired { end: date(not_after), now: date(time) }
                }
                CertificateError::NotValidYetContext { time, not_before } => {
                    Failure::NotYetValid { start: date(not_before), now: date(time) }
                }
                CertificateError::NotValidForNameContext { expected, presented } => {
                    let has = match presented.len() {
                        0 => "no name".into(),
                        _ => presented.join(", "),
                    };
                    let wanted = name(&expected);
                    Failure::WrongName { wanted, has: shown(&has) }
                }
                CertificateError::UnknownIssuer => Failure::UnknownIssuer,
                error => Failure::Certificate(shown(&error.to_string())),
            },
            Error::FailedToGetCurrentTime => Failure::NoClock,
            Error::FailedToGetRandomBytes => Failure::NoRandomNumbers,
            Error::AlertReceived(alert) => Failure::Alert(format!("{alert:?}")),
            Error::General(text) => Failure::Certificate(text),
            error => Failure::Protocol(shown(&error.to_string())),
        }
    }
}

fn name(name: &ServerName<'_>) -> String {
    match name {
        ServerName::DnsName(name) => name.as_ref().into(),
        ServerName::IpAddress(IpAddr::V4(ip)) => Ipv4Addr::from(*ip.as_ref()).to_string(),
        ServerName::IpAddress(IpAddr::V6(ip)) => Ipv6Addr::from(*ip.as_ref()).to_string(),
        name => format!("{name:?}"),
    }
}

/// A peer's text, so that it cannot control a console, or fill it.
fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let printable =
        |letter: char| if letter.is_ascii_graphic() || letter == ' ' { letter } else { '?' };
    text.chars().take(MOST).map(printable).collect()
}
