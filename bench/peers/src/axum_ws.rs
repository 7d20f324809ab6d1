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

use crate::hall::{Hall, Payload};

pub async fn serve(listener: TcpListener, hall: Hall) -> io::Result<()> {
    let app = Router::new().fallback(any(upgrade)).with_state(hall);
    let listener = listener.tap_io(|stream| {
        // It fails only for a socket that is gone.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await
}

async fn upgrade(State(hall): State<Hall>, uri: Uri, upgrade: WebSocketUpgrade) -> Response {
    let guest = hall.guest();
    upgrade.on_upgrade(move |socket| guest.serve(socket, uri.path().to_owned()))
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
