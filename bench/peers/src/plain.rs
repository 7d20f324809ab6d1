//! tokio-tungstenite and tokio-websockets on bare sockets.

use std::io;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_websockets::ServerBuilder;

use crate::registry::{Payload, Registry};

pub async fn tungstenite(
    listener: TcpListener,
    registry: Registry,
    buffers: Option<usize>,
) -> io::Result<()> {
    let mut config = WebSocketConfig::default();
    if let Some(bytes) = buffers {
        config = config.read_buffer_size(bytes).write_buffer_size(bytes);
    }
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let subscriber = registry.subscriber();
        tokio::spawn(async move {
            let mut path = String::new();
            // Its signature is the library's.
            #[allow(clippy::result_large_err)]
            let note = |request: &Request, answer: Response| -> Result<Response, ErrorResponse> {
                path = request.uri().path().to_owned();
                Ok(answer)
            };
            let accepted =
                tokio_tungstenite::accept_hdr_async_with_config(stream, note, Some(config));
            if let Ok(socket) = accepted.await {
                subscriber.serve(socket, path).await;
            }
        });
    }
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

pub async fn websockets(listener: TcpListener, registry: Registry) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let subscriber = registry.subscriber();
        tokio::spawn(async move {
            if let Ok((request, socket)) = ServerBuilder::new().accept(stream).await {
                let path = request.uri().path().to_owned();
                subscriber.serve(socket, path).await;
            }
        });
    }
}

impl Payload for tokio_websockets::Message {
    fn binary(bytes: Bytes) -> Self {
        tokio_websockets::Message::binary(bytes)
    }

    fn data(&self) -> Option<&[u8]> {
        self.is_binary().then(|| &**self.as_payload())
    }

    fn into_bytes(self) -> Bytes {
        self.into_payload().into()
    }
}
