//! Settings of both ends of a TLS connection, for tests and fuzzing.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

/// A certificate for `localhost` until the year 4000, and its key. Both are public, and for tests alone.
const CERTIFICATE: &str = "MIIBPjCB5aADAgECAgEBMAoGCCqGSM49BAMCMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDAgFw0yMDAxMDEwMDAwMDBaGA80MDAwMDEw\
    MTAwMDAwMFowFDESMBAGA1UEAwwJbG9jYWxob3N0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEurGVcZSQEdAJNFymd4285cdc\
    2unKSE1Wjw6ksFCjlIO9IcpUKXtlvma9ACC5VgubxJp8eNL+suweeYtT23jcs6MmMCQwDAYDVR0TAQH/BAIwADAUBgNVHREEDTAL\
    gglsb2NhbGhvc3QwCgYIKoZIzj0EAwIDSAAwRQIhAIQyPPf2qRy72ED+gSJWjtjDq4Aiai+BVLSyECIdDZ07AiAcaupCmCKOL/WO\
    zo5rxHV4eEdXO6TX/PUgJtg7JKaQOQ==";
const KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHdUIDGt7lXV+Mot4tdZDgBgQErpkh8bwQYU9JcC0+LWhRANCAAS6\
    sZVxlJAR0Ak0XKZ3jbzlx1za6cpITVaPDqSwUKOUg70hylQpe2W+Zr0AILlWC5vEmnx40v6y7B55i1PbeNyz";

fn certificate() -> CertificateDer<'static> {
    STANDARD.decode(CERTIFICATE).unwrap().into()
}

pub(crate) fn server_config(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ServerConfig {
    let key = PrivatePkcs8KeyDer::from(STANDARD.decode(KEY).unwrap());
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate()], PrivateKeyDer::Pkcs8(key))
        .unwrap();
    config.send_tls13_tickets = 1;
    config
}

pub(crate) fn client_config(
    provider: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    config
}
