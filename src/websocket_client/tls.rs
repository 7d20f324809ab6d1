//! The TLS settings of a client, for `wss://` URLs.

pub(super) mod blocking;
pub(super) mod error;

use std::fmt;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt;

use self::error::TlsError;
use super::url::ServerUrl;
use crate::crypto;

/// The protocol below a WebSocket (RFC 7301 §6). A server that prefers HTTP/2 must not select it.
const ALPN: &[u8] = b"http/1.1";

/// The TLS settings of a client for `wss://` URLs: which authorities it trusts. Needs the feature `client-tls` or
/// `client-tls-aws-lc`.
///
/// A server has to present a certificate that is valid now, contains the host of the URL, and was issued by a trusted authority
/// (RFC 6125, RFC 9525). There is no setting that turns this off. TLS 1.2 (RFC 5246) and 1.3 (RFC 8446) are accepted.
///
/// A program that connects repeatedly should keep the settings and clone them: clones share the loaded certificates, and the
/// sessions that make the next handshake with the same server cheaper (RFC 8446 §2.2).
///
/// ```no_run
/// use humphrey_ws::websocket_client::{Client, ClientTls};
///
/// // Trusts only the company's own authority.
/// let tls = ClientTls::from_pem_file("authority.pem")?;
/// let mut client = Client::builder("wss://live.example:8443/")
///     .with_tls(tls.clone())
///     .connect()?;
/// client.send("hello")?;
/// # Ok::<(), humphrey_ws::websocket_client::ClientError>(())
/// ```
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The settings of rustls contain keys.
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Trusts the certificate authorities that the operating system trusts. This is the default of a client.
    ///
    /// macOS, iOS, Windows and Android verify certificates themselves. On other systems, the authorities are read once from the
    /// usual places, or from those that the environment variables `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    ///
    /// # Errors
    ///
    /// [`TlsError::Roots`] if the system has no authorities, as in containers without the package `ca-certificates`.
    pub fn platform() -> Result<Self, TlsError> {
        let verified = builder()?.with_platform_verifier();
        let verified = verified.map_err(|error| TlsError::Roots(error.to_string()))?;
        Ok(Self::from_verified(verified))
    }

    /// Trusts the authorities whose certificates are in a PEM file (RFC 7468), instead of those that the operating system
    /// trusts. The file is read once. It may also contain the self-signed certificate of a server, unless that says that it is
    /// an authority (`CA:TRUE`), which a server's must not.
    ///
    /// # Errors
    ///
    /// [`TlsError::Roots`] if the file can't be read, or contains no certificate or an invalid one.
    pub fn from_pem_file(path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let path = path.as_ref();
        let named = |why: &dyn fmt::Display| TlsError::Roots(format!("{}: {why}", path.display()));
        let pem = fs::read(path).map_err(|error| named(&error))?;
        let roots = roots_of(&pem).map_err(|why| named(&why))?;
        Self::with_roots(roots)
    }

    /// Trusts the authorities whose certificates are in this PEM text, instead of those that the operating system trusts. See
    /// [`from_pem_file`](Self::from_pem_file).
    ///
    /// # Errors
    ///
    /// [`TlsError::Roots`] if the text contains no certificate or an invalid one.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        Self::with_roots(roots_of(pem).map_err(TlsError::Roots)?)
    }

    /// Uses settings of rustls 0.23 as they are, for example with a certificate of the client's own. Their ALPN protocols must be
    /// empty or `http/1.1` (RFC 7301).
    ///
    /// ```
    /// use humphrey_ws::websocket_client::ClientTls;
    ///
    /// fn tls_with(mut config: rustls::ClientConfig) -> ClientTls {
    ///     config.alpn_protocols = vec![b"http/1.1".to_vec()];
    ///     ClientTls::from_config(config)
    /// }
    /// ```
    pub fn from_config(config: impl Into<Arc<ClientConfig>>) -> Self {
        Self {
            config: config.into(),
        }
    }

    fn with_roots(roots: RootCertStore) -> Result<Self, TlsError> {
        Ok(Self::from_verified(
            builder()?.with_root_certificates(roots),
        ))
    }

    fn from_verified(builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> Self {
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        Self::from_config(config)
    }

    /// Begins a TLS connection to the server of a URL, without I/O. This is for programs with an event loop of their own, which
    /// open the socket and also use [`Handshake`](super::Handshake) and [`Connection`](super::Connection). The server's
    /// certificate has to contain the URL's host, which is also sent (SNI, RFC 6066 §3) unless it is an address.
    ///
    /// # Errors
    ///
    /// [`TlsError::Protocol`] with an error of rustls, if it can't use its settings.
    pub fn start(&self, url: &ServerUrl) -> Result<ClientConnection, TlsError> {
        let name = url
            .tls_name()
            .map_err(|error| TlsError::Protocol(error.to_string()))?;
        Ok(ClientConnection::new(self.config.clone(), name)?)
    }
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
