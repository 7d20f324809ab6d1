//! rustls clients, and apps that accept them.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use humphrey_ws::tls::Tls;
use humphrey_ws::{AsyncWebsocketApp, RunningApp};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tungstenite::WebSocket;

use crate::certificates::{Authority, Identity, VERSIONS};
use crate::support::{read_head, start, tcp, upgrade_request};

pub(crate) type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl Authority {
    /// Issues a certificate for `localhost`, and returns the TLS settings of an app that uses it.
    pub(crate) fn app_tls(&self) -> Tls {
        Tls::from_config(self.issue(&["localhost"]).server_config(&VERSIONS)).unwrap()
    }
}

impl Identity {
    /// Writes the certificate and the key to files, and returns their paths.
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
    let (running, address) = start(app.with_tls(authority.app_tls()));
    (running, address, authority.client())
}

/// Connects without completing the handshake, which the first read or write does.
pub(crate) fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> TlsStream {
    connect_as(address, config, "localhost")
}

/// Connects to the server with this name.
pub(crate) fn connect_as(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> TlsStream {
    secure(tcp(address), config, name)
}

/// Begins TLS on a socket that is connected to the server with this name.
pub(crate) fn secure(socket: TcpStream, config: &Arc<ClientConfig>, name: &str) -> TlsStream {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let client = ClientConnection::new(config.clone(), name).unwrap();
    StreamOwned::new(client, socket)
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
