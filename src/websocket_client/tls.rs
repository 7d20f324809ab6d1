//! The TLS settings of a client, for `wss://` URLs.

pub(super) mod blocking;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection};

use super::url::ServerUrl;
use crate::tls_client::{self, TlsError};

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
        Ok(Self::for_websocket(tls_client::trusting_platform()?))
    }

    /// Trusts the authorities whose certificates are in a PEM file (RFC 7468), instead of those that the operating system
    /// trusts. The file is read once. It may also contain the self-signed certificate of a server, unless that says that it is
    /// an authority (`CA:TRUE`), which a server's must not.
    ///
    /// # Errors
    ///
    /// [`TlsError::Roots`] if the file can't be read, or contains no certificate or an invalid one.
    pub fn from_pem_file(path: impl AsRef<Path>) -> Result<Self, TlsError> {
        let config = tls_client::trusting_pem_file(path.as_ref())?;
        Ok(Self::for_websocket(config))
    }

    /// Trusts the authorities whose certificates are in this PEM text, instead of those that the operating system trusts. See
    /// [`from_pem_file`](Self::from_pem_file).
    ///
    /// # Errors
    ///
    /// [`TlsError::Roots`] if the text contains no certificate or an invalid one.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        Ok(Self::for_websocket(tls_client::trusting_pem(pem)?))
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

    fn for_websocket(mut config: ClientConfig) -> Self {
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
