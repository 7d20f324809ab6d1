//! TLS servers of rustls on blocking sockets. The module that includes this file includes `certificates.rs` beside it.

#![allow(dead_code)] // Each test file uses some of it.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::crypto::ring::Ticketer;
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use super::certificates::{Authority, Identity, VERSIONS};

/// A server's side of a TLS connection.
pub(crate) type TlsServer = StreamOwned<ServerConnection, TcpStream>;

impl Identity {
    /// A server with this certificate.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server_of(&VERSIONS)
    }

    pub(crate) fn server_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        with_protocols_and_tickets(self.server_config(versions))
    }

    /// A server with this certificate, which accepts only clients with a certificate of `authority`.
    pub(crate) fn server_for(
        &self,
        authority: &Authority,
        version: &'static SupportedProtocolVersion,
    ) -> Arc<ServerConfig> {
        with_protocols_and_tickets(self.server_config_for(authority, &[version]))
    }
}

/// Adds what web servers have beyond rustls's defaults: a choice of protocols (ALPN), and tickets for resumption.
fn with_protocols_and_tickets(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new().unwrap();
    Arc::new(config)
}

/// Performs the server's TLS handshake.
pub(crate) fn accept(config: Arc<ServerConfig>, mut socket: TcpStream) -> io::Result<TlsServer> {
    let mut connection = ServerConnection::new(config).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    let mut stream = StreamOwned::new(connection, socket);
    stream.flush()?;
    Ok(stream)
}

/// Sends close_notify.
pub(crate) fn announce_end(stream: &mut TlsServer) {
    stream.conn.send_close_notify();
    let _ = stream.flush();
}
