//! What the library's own TLS clients have in common: which authorities they trust, and the reasons why a connection could
//! not be opened. A server's certificate is always verified.

// The errors are part of the client's API, and of no other.
#![cfg_attr(not(feature = "__client-tls"), allow(unreachable_pub))]

mod error;

use std::fmt;
use std::fs;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt;

pub use self::error::TlsError;
use crate::crypto;

/// Returns settings that trust the authorities that the operating system trusts.
pub(crate) fn trusting_platform() -> Result<ClientConfig, TlsError> {
    let verified = builder()?.with_platform_verifier();
    let verified = verified.map_err(|error| TlsError::Roots(error.to_string()))?;
    Ok(verified.with_no_client_auth())
}

/// Returns settings that trust only the authorities whose certificates are in a PEM file (RFC 7468).
pub(crate) fn trusting_pem_file(path: &Path) -> Result<ClientConfig, TlsError> {
    let named = |why: &dyn fmt::Display| TlsError::Roots(format!("{}: {why}", path.display()));
    let pem = fs::read(path).map_err(|error| named(&error))?;
    let roots = roots_of(&pem).map_err(|why| named(&why))?;
    trusting(roots)
}

/// Returns settings that trust only the authorities whose certificates are in this PEM text.
#[cfg(feature = "__client-tls")]
pub(crate) fn trusting_pem(pem: &[u8]) -> Result<ClientConfig, TlsError> {
    trusting(roots_of(pem).map_err(TlsError::Roots)?)
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig, TlsError> {
    let verified = builder()?.with_root_certificates(roots);
    Ok(verified.with_no_client_auth())
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, TlsError> {
    let builder = ClientConfig::builder_with_provider(crypto::provider());
    Ok(builder.with_safe_default_protocol_versions()?)
}

/// Parses the certificates of authorities. The error is the reason.
fn roots_of(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|why| format!("certificate {}: {why}", roots.len() + 1))?;
    }
    if roots.is_empty() {
        return Err("there is no certificate in PEM".to_owned());
    }
    Ok(roots)
}
