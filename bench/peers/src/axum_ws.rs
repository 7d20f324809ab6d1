//! axum, with its own extractor; over TLS with axum-server.

use std::io;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::any;
use axum::serve::ListenerExt;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::registry::{Payload, Registry};

/// The PEM files of a certificate and its key.
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    certificate: Option<Certificate>,
) -> io::Result<()> {
    let app = Router::new().fallback(any(upgrade)).with_state(registry);
    if let Some(files) = certificate {
        // The provider that humphrey_ws uses, too. This fails only if there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = RustlsConfig::from_pem_file(files.certificate, files.key).await?;
        let acceptor = RustlsAcceptor::new(config).acceptor(NoDelayAcceptor::new());
        let server = axum_server::from_tcp(listener.into_std()?)?.acceptor(acceptor);
        return server.serve(app.into_make_service()).await;
    }
    let listener = listener.tap_io(|stream| {
        // Fails only if the socket is closed.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await
}

async fn upgrade(
    State(registry): State<Registry>,
    uri: Uri,
    upgrade: WebSocketUpgrade,
) -> Response {
    let subscriber = registry.subscriber();
    upgrade.on_upgrade(move |socket| subscriber.serve(socket, uri.path().to_owned()))
}

impl Payload for Message {
    fn binary(bytes: Bytes) -> Self {
        Self::Binary(bytes)
    }

    fn data(&self) -> Option<&[u8]> {
        match self {
            Self::Binary(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn into_bytes(self) -> Bytes {
        self.into_data()
    }
}
