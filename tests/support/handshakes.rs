//! Handshakes with headers of the test's choice, and apps behind either kind of listener.

use std::net::SocketAddr;

use humphrey_ws::{AsyncWebsocketApp, RunningApp};
use tungstenite::client::ClientRequestBuilder;
use tungstenite::handshake::HandshakeError;

use crate::support::{Client, start, start_linked, tcp};

/// The source of connections: the app's own listener, or a linked Humphrey app.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Own,
    Linked,
}

pub(crate) const WAYS: [Way; 2] = [Way::Own, Way::Linked];

/// Starts the same app behind either kind of listener.
pub(crate) fn start_by<S, T>(
    way: Way,
    state: S,
    build: impl FnOnce(AsyncWebsocketApp<S, T>) -> AsyncWebsocketApp<S, T>,
) -> (RunningApp, SocketAddr)
where
    S: Send + Sync + 'static,
    T: Send + Sync + Default + 'static,
{
    match way {
        Way::Own => start(build(AsyncWebsocketApp::new_with_config(state, 8, 1))),
        Way::Linked => start_linked(build(AsyncWebsocketApp::new_unlinked_with_config(state, 8))),
    }
}

pub(crate) fn request(address: SocketAddr, target: &str) -> ClientRequestBuilder {
    ClientRequestBuilder::new(format!("ws://{address}{target}").parse().unwrap())
}

pub(crate) fn connect(request: ClientRequestBuilder, address: SocketAddr) -> Client {
    let (client, _) =
        tungstenite::client(request, tcp(address)).expect("the handshake is accepted");
    Client(client)
}

/// Returns the status of a rejected handshake.
pub(crate) fn rejected(request: ClientRequestBuilder, address: SocketAddr) -> u16 {
    match tungstenite::client(request, tcp(address)) {
        Ok(_) => panic!("the handshake was accepted"),
        Err(HandshakeError::Failure(tungstenite::Error::Http(response))) => {
            response.status().as_u16()
        }
        Err(error) => panic!("{error}"),
    }
}
