//! yawc, upgraded by hyper.

use std::io;

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::{Request, Response};
use tokio::net::TcpListener;
use yawc::frame::OpCode;
use yawc::{Frame, Options, WebSocket, WebSocketError};

use crate::http1;
use crate::registry::{Payload, Registry};

pub async fn serve(listener: TcpListener, registry: Registry) -> io::Result<()> {
    http1::serve(listener, registry, answer).await
}

async fn answer(
    mut request: Request<Incoming>,
    registry: Registry,
) -> Result<Response<Empty<Bytes>>, WebSocketError> {
    let path = request.uri().path().to_owned();
    let subscriber = registry.subscriber();
    let options = Options::default().without_compression();
    let (response, upgraded) = WebSocket::upgrade_with_options(&mut request, options)?;
    tokio::spawn(async move {
        if let Ok(socket) = upgraded.await {
            subscriber
                .serve(socket.map(Ok::<_, WebSocketError>), path)
                .await;
        }
    });
    Ok(response)
}

impl Payload for Frame {
    fn binary(bytes: Bytes) -> Self {
        Frame::binary(bytes)
    }

    fn data(&self) -> Option<&[u8]> {
        (self.opcode() == OpCode::Binary).then(|| &**self.payload())
    }

    fn into_bytes(self) -> Bytes {
        self.into_payload()
    }
}
