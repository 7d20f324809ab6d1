//! Certificates, and rustls clients.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use humphrey_ws::tls::Tls;
use humphrey_ws::{AsyncWebsocketApp, RunningApp};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned,
    SupportedProtocolVersion,
};
use tungstenite::WebSocket;

use crate::support::{read_head, start, tcp, upgrade_request};

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// An authority that issues certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        // Authorities are found by their names.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Issues a certificate for a name.
    pub(crate) fn issue(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity {
            pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            certificate: certificate.into(),
            key: key.serialize_der(),
        }
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// Returns the configuration of clients that trust this authority.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client_of(&VERSIONS)
    }

    pub(crate) fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        Arc::new(config)
    }

    /// Returns the configuration of clients that identify themselves.
    pub(crate) fn client_with(
        &self,
        identity: &Identity,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(identity.chain(), identity.key())
            .unwrap();
        Arc::new(config)
    }
}

/// A certificate and its key.
pub(crate) struct Identity {
    pub(crate) pem: String,
    pub(crate) key_pem: String,
    pub(crate) certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone()]
    }

    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    /// Returns the configuration of a server with this certificate, of any client.
    pub(crate) fn server(&self) -> ServerConfig {
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&VERSIONS)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.key())
            .unwrap()
    }

    /// Writes both to files, and returns their paths.
    pub(crate) fn write(&self, directory: &Path) -> (PathBuf, PathBuf) {
        let paths = (directory.join("cert.pem"), directory.join("key.pem"));
        fs::write(&paths.1, &self.key_pem).unwrap();
        fs::write(&paths.0, &self.pem).unwrap();
        paths
    }
}

/// Creates an empty directory for a test.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// Starts an app with a new certificate. Returns the configuration of clients that trust it.
pub(crate) fn start_tls<S, T>(
    app: AsyncWebsocketApp<S, T>,
) -> (RunningApp, SocketAddr, Arc<ClientConfig>)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    let authority = Authority::new();
    let tls = Tls::from_config(authority.issue("localhost").server()).unwrap();
    let (running, address) = start(app.with_tls(tls));
    (running, address, authority.client())
}

/// Connects without completing the handshake, which the first read or write does.
pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> TlsStream {
    connect_as(address, config, "localhost")
}

/// Connects to the server with this name.
pub(crate) fn connect_as(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> TlsStream {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let client = ClientConnection::new(config.clone(), name).unwrap();
    StreamOwned::new(client, tcp(address))
}

/// Connects a WebSocket whose frames the test writes and reads itself.
pub(crate) fn raw_websocket(address: SocketAddr, config: &Arc<ClientConfig>) -> TlsStream {
    let mut stream = connect(address, config);
    stream.write_all(upgrade_request("/").as_bytes()).unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

/// Connects tungstenite's client.
pub(crate) fn websocket(address: SocketAddr, config: &Arc<ClientConfig>) -> WebSocket<TlsStream> {
    let stream = connect(address, config);
    let (client, _) =
        tungstenite::client(format!("ws://{address}/"), stream).expect("the handshake succeeds");
    client
}

/// Sends bytes, and returns everything up to the end of the stream, which must be announced by a close_notify.
pub(crate) fn ask(stream: &mut TlsStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = Vec::new();
    stream.read_to_end(&mut response).expect("a close_notify");
    String::from_utf8(response).unwrap()
}
