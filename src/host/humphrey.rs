//! An existing Humphrey app: its handlers answer the handshake and hand the socket over.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;

use humphrey::http::Request;
use humphrey::stream::Stream;

use crate::engine::{Hub, Newcomer, Received, Upgraded};
use crate::protocol::handshake;
use crate::stream::WebsocketStream;

/// Answers the handshake of a request that Humphrey has read (RFC 6455 §4.2.2). False if it was refused.
pub(crate) fn handshake(request: &Request, stream: &mut Stream) -> bool {
    let headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|header| (header.name.to_string(), header.value))
        .collect();
    let pairs = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let minor_version = match request.version.strip_prefix("HTTP/1.") {
        Some("0") | None => 0,
        Some(_) => 1,
    };
    match handshake::check(&request.method.to_string(), minor_version, pairs) {
        Ok(handshake) => stream.write_all(&handshake::response(&handshake)).is_ok(),
        Err(refusal) => {
            // Nobody is left to tell if this fails, too.
            let _ = stream.write_all(&handshake::refusal(refusal));
            false
        }
    }
}

/// Takes in what comes through the hook of an unlinked app, on a thread that is parked while nothing comes.
pub(crate) fn adopt_from(handed_over: Receiver<WebsocketStream>, hub: Arc<Hub>) -> io::Result<()> {
    thread::Builder::new()
        .name("humphrey_ws adopt".into())
        .spawn(move || {
            for stream in handed_over {
                if hub.has_stopped() {
                    // Somebody has kept a copy of the sender. From here on it fails.
                    hub.count_unhandled(stream.unclaimed());
                    break;
                }
                adopt(stream, &hub);
            }
        })
        .map(drop)
}

fn adopt(stream: WebsocketStream, hub: &Hub) {
    let parts = match stream.into_parts() {
        Ok(parts) => parts,
        Err(refused) => {
            hub.count_unhandled(refused.unclaimed());
            log::error!(
                "a TLS stream was handed to an AsyncWebsocketApp, which can't take it over yet: it is closed. \
                 Let a proxy end TLS in front of the app, or use websocket_handler for this route"
            );
            refused.refuse("TLS connections can't be served here");
            return;
        }
    };
    let messages = parts.messages.len();
    let newcomer = parts.socket.set_nonblocking(true).and_then(|()| {
        Ok(Newcomer {
            peer: parts.peer.ok_or(io::ErrorKind::NotConnected)?,
            stream: mio::net::TcpStream::from_std(parts.socket),
            upgraded: Some(Upgraded {
                target: parts.target,
                owed: parts.owed,
                closed: parts.closed,
                received: parts.protocol.map(|protocol| Received {
                    messages: parts.messages,
                    protocol,
                }),
            }),
        })
    });
    match newcomer {
        Ok(newcomer) => hub.adopt(newcomer),
        // The client has gone meanwhile.
        Err(error) => {
            hub.count_unhandled(messages);
            log::debug!("a connection was not taken over: {error}");
        }
    }
}
