//! axum, with its own extractor.

use std::io;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::http::Uri;
use axum::response::Response;
use axum::routing::any;
use axum::serve::ListenerExt;
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::registry::{Payload, Registry};

pub async fn serve(listener: TcpListener, registry: Registry) -> io::Result<()> {
    let app = Router::new().fallback(any(upgrade)).with_state(registry);
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
