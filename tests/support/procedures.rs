//! Clients of procedures that write and read frames byte by byte, as the table in the guide specifies them.

#![allow(dead_code)] // Each test file uses some of it.

use std::net::SocketAddr;
use std::time::Duration;

use humphrey_ws::{AsyncWebsocketApp, Calls, Procedures, RunningApp};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;

use crate::support::{Client, tcp};

pub(crate) const V1: &str = "humphrey_ws.procedures.v1";
pub(crate) const OLD: &str = "websocket.io-rpc-v0.1";
/// The shutdown timeout at the end of a test, after which remaining clients are cut off.
pub(crate) const STOP: Duration = Duration::from_millis(100);

/// Connects a client that offers these subprotocols, and returns the selected one.
pub(crate) fn connect_offering(address: SocketAddr, offered: &str) -> (Client, Option<String>) {
    connect_offering_at(address, "/", offered)
}

fn connect_offering_at(
    address: SocketAddr,
    target: &str,
    offered: &str,
) -> (Client, Option<String>) {
    let url = format!("ws://{address}{target}");
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert(
        "Sec-WebSocket-Protocol",
        HeaderValue::from_str(offered).unwrap(),
    );
    let (client, response) = tungstenite::client(request, tcp(address)).expect("the handshake");
    let chosen = response.headers().get("Sec-WebSocket-Protocol");
    let chosen = chosen.map(|chosen| chosen.to_str().unwrap().to_owned());
    (Client(client), chosen)
}

pub(crate) fn connect(address: SocketAddr, subprotocol: &str) -> Client {
    connect_at(address, "/", subprotocol)
}

pub(crate) fn connect_at(address: SocketAddr, target: &str, subprotocol: &str) -> Client {
    let (client, chosen) = connect_offering_at(address, target, subprotocol);
    assert_eq!(chosen.as_deref(), Some(subprotocol));
    client
}

pub(crate) fn app(procedures: Procedures) -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new().with_procedures(procedures)
}

pub(crate) fn notification(name: &str, payload: &[u8]) -> Vec<u8> {
    [&[1, name.len() as u8], name.as_bytes(), payload].concat()
}

pub(crate) fn request(id: u32, name: &str, payload: &[u8]) -> Vec<u8> {
    let head = [&[2], &id.to_be_bytes()[..], &[name.len() as u8]].concat();
    [&head, name.as_bytes(), payload].concat()
}

pub(crate) fn with_id(form: u8, id: u32, rest: &[u8]) -> Vec<u8> {
    [&[form], &id.to_be_bytes()[..], rest].concat()
}

pub(crate) fn reset(id: u32) -> Vec<u8> {
    with_id(3, id, b"")
}

pub(crate) fn response(id: u32, payload: &[u8]) -> Vec<u8> {
    with_id(4, id, payload)
}

pub(crate) fn item(id: u32, payload: &[u8]) -> Vec<u8> {
    with_id(6, id, payload)
}

/// A message or a state of a room that keeps a history.
pub(crate) struct RoomFrame {
    pub(crate) room: String,
    /// Empty for a state without an id.
    pub(crate) id: String,
    pub(crate) kind: u8,
    pub(crate) content: Vec<u8>,
}

impl RoomFrame {
    pub(crate) fn parse(message: tungstenite::Message) -> Self {
        let tungstenite::Message::Binary(frame) = message else {
            panic!("{message:?} has no id");
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let rest = frame.strip_prefix(&[7]).expect("a frame of a room");
        let (room, rest) = rest[1..].split_at(rest[0].into());
        let (id, rest) = rest[1..].split_at(rest[0].into());
        Self {
            room: text(room),
            id: text(id),
            kind: rest[0],
            content: rest[1..].to_vec(),
        }
    }
}

pub(crate) trait Frames {
    fn send_at_once(&mut self, frames: impl IntoIterator<Item = Vec<u8>>);
    fn receive_frame(&mut self) -> Vec<u8>;
    /// Receives an error frame with this code, and returns its text.
    fn receive_error(&mut self, id: u32, code: u8) -> String;
    fn receive_close(self) -> (u16, String);
}

impl Frames for Client {
    /// Sends frames with one write, so that the server reads them together.
    fn send_at_once(&mut self, frames: impl IntoIterator<Item = Vec<u8>>) {
        for frame in frames {
            let message = tungstenite::Message::binary(frame);
            self.0.write(message).expect("the frame is buffered");
        }
        self.0.flush().expect("the frames are sent");
    }

    fn receive_frame(&mut self) -> Vec<u8> {
        match self.receive() {
            tungstenite::Message::Binary(frame) => frame.to_vec(),
            other => panic!("not a frame: {other:?}"),
        }
    }

    /// Receives an error frame with this code, and returns its text.
    fn receive_error(&mut self, id: u32, code: u8) -> String {
        let frame = self.receive_frame();
        let head = with_id(5, id, &[code]);
        assert!(
            frame.starts_with(&head),
            "{frame:?} is not error {code} of {id}"
        );
        String::from_utf8(frame[head.len()..].to_vec()).unwrap()
    }

    /// Receives a close frame, and returns its code and reason.
    fn receive_close(mut self) -> (u16, String) {
        match self.receive() {
            tungstenite::Message::Close(Some(frame)) => {
                while self.0.read().is_ok() {}
                (frame.code.into(), frame.reason.to_string())
            }
            other => panic!("not a close frame with a code: {other:?}"),
        }
    }
}

pub(crate) fn calls(running: &RunningApp) -> Calls {
    running.sender().metrics().calls
}
