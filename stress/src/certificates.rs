//! A certificate authority, the certificates that it issues to the server under test, and the TLS clients that trust it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};

use crate::check::{During, Outcome};
use crate::random::Random;

/// The name in the certificates.
pub(crate) const SERVER_NAME: &str = "localhost";

/// Number of sessions that a client keeps for resumption.
const SESSIONS: usize = 64;

/// Returns the files of the certificate and of its key in a directory.
pub(crate) fn files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("cert.pem"), directory.join("key.pem"))
}

/// The authority, and a directory with the server's current certificate, which is removed with it.
pub(crate) struct Certificates {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Certificates {
    /// Creates an authority and a first certificate.
    pub(crate) fn new() -> Outcome<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("humphrey_ws-stress-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).during(format!("creating {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "humphrey_ws stress");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().during("making a key")?;
        let issuer = CertifiedIssuer::self_signed(params, key).during("making an authority")?;
        let certificates = Self { issuer, directory };
        certificates.renew()?;
        Ok(certificates)
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    /// Issues a certificate and replaces the server's files. Returns the certificate.
    pub(crate) fn renew(&self) -> Outcome<CertificateDer<'static>> {
        let names = vec![SERVER_NAME.to_owned()];
        let params = CertificateParams::new(names).during("naming the server")?;
        let key = KeyPair::generate().during("making a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .during("issuing a certificate")?;
        let (certificate_file, key_file) = files(&self.directory);
        fs::write(&certificate_file, certificate.pem()).during("writing the certificate")?;
        fs::write(&key_file, key.serialize_pem()).during("writing the key")?;
        Ok(certificate.der().clone())
    }

    /// Returns the configurations of clients that trust the authority and resume their sessions.
    pub(crate) fn clients(&self) -> Outcome<TlsClients> {
        self.clients_with(|| Resumption::in_memory_sessions(SESSIONS))
    }

    /// Returns the configurations of clients that trust the authority and make full handshakes only.
    pub(crate) fn clients_without_resumption(&self) -> Outcome<TlsClients> {
        self.clients_with(Resumption::disabled)
    }

    fn clients_with(&self, resumption: impl Fn() -> Resumption) -> Outcome<TlsClients> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.issuer.der().clone())
            .during("trusting the authority")?;
        let config = |version| -> Outcome<Arc<ClientConfig>> {
            let provider = Arc::new(ring::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .during("configuring TLS clients")?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.resumption = resumption();
            Ok(Arc::new(config))
        };
        Ok(TlsClients([config(&TLS12)?, config(&TLS13)?]))
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // Files that can't be removed do not make the run fail.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The configurations of clients of TLS 1.2 and of TLS 1.3.
#[derive(Clone, Debug)]
pub(crate) struct TlsClients(pub(crate) [Arc<ClientConfig>; 2]);

impl TlsClients {
    /// Returns the configuration of one of the versions.
    pub(crate) fn any(&self, random: &mut Random) -> &Arc<ClientConfig> {
        let [tls12, tls13] = &self.0;
        match random.below(2) {
            0 => tls12,
            _ => tls13,
        }
    }
}
