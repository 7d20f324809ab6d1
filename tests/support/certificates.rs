//! Certificate authorities, the certificates that they issue, and the rustls configurations that use them. All tests that need a
//! certificate of their own get it here: those of the servers, of the clients, and of the program.

#![allow(dead_code)] // Each test file uses some of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::client::WantsClientCert;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion,
    WantsVerifier,
};

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Returns a number for a name or a file that no other test of this process uses.
fn unique_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Writes a file below the directory for tests, and returns its path.
pub(crate) fn file(content: &str) -> PathBuf {
    let name = format!("tls-{}-{}.pem", std::process::id(), unique_number());
    // Unit tests have no directory of their own.
    let directory = option_env!("CARGO_TARGET_TMPDIR").map(PathBuf::from);
    let path = directory.unwrap_or_else(std::env::temp_dir).join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validity {
    Now,
    Past,
    Future,
}

fn params(names: &[&str], validity: Validity) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    // Verifiers find an authority by its name.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("test {}", unique_number()));
    (params.not_before, params.not_after) = match validity {
        Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2120, 1, 1)),
        Validity::Past => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
        Validity::Future => (date_time_ymd(2119, 1, 1), date_time_ymd(2120, 1, 1)),
    };
    params
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = params(&[], Validity::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            pem: issuer.pem(),
            issuer,
        }
    }

    /// Writes the authority's certificate to a file.
    pub(crate) fn file(&self) -> PathBuf {
        file(&self.pem)
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        roots(self.issuer.der())
    }

    /// Issues a certificate for names or addresses.
    pub(crate) fn issue(&self, names: &[&str]) -> Identity {
        self.issue_for(names, Validity::Now)
    }

    pub(crate) fn issue_for(&self, names: &[&str], validity: Validity) -> Identity {
        let mut params = params(names, validity);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::new(&certificate, &key)
    }

    /// Returns the configuration of clients that trust this authority.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_of(&VERSIONS)
    }

    pub(crate) fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        Arc::new(client_builder(self.roots(), versions).with_no_client_auth())
    }

    /// Returns the configuration of clients that trust this authority and identify themselves with a certificate.
    pub(crate) fn client_with(
        &self,
        identity: &Identity,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let config = client_builder(self.roots(), versions)
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap();
        Arc::new(config)
    }
}

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) pem: String,
    pub(crate) key_pem: String,
    pub(crate) certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new(certificate: &Certificate, key: &KeyPair) -> Self {
        Self {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    /// Creates a self-signed certificate. With `is_ca`, it says that it is an authority.
    pub(crate) fn self_signed(names: &[&str], is_ca: bool) -> Self {
        Self::self_signed_with(&KeyPair::generate().unwrap(), names, is_ca)
    }

    pub(crate) fn self_signed_with(key: &KeyPair, names: &[&str], is_ca: bool) -> Self {
        let mut params = params(names, Validity::Now);
        params.is_ca = match is_ca {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::ExplicitNoCa,
        };
        Self::new(&params.self_signed(key).unwrap(), key)
    }

    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// Returns the configuration of a server with this certificate, which accepts all clients.
    pub(crate) fn server_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        self.serve(server_builder(versions).with_no_client_auth())
    }

    /// Returns the configuration of a server with this certificate, which accepts only clients with a certificate of
    /// `authority`.
    pub(crate) fn server_config_for(
        &self,
        authority: &Authority,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        let roots = Arc::new(authority.roots());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .build()
            .unwrap();
        self.serve(server_builder(versions).with_client_cert_verifier(verifier))
    }

    fn serve(&self, builder: ConfigBuilder<ServerConfig, WantsServerCert>) -> ServerConfig {
        builder.with_single_cert(self.chain(), self.key()).unwrap()
    }
}

/// Returns root certificates with this one alone.
pub(crate) fn roots(certificate: &CertificateDer<'static>) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    roots
}

pub(crate) fn client_builder(
    roots: RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
}

pub(crate) fn server_builder(
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
}
