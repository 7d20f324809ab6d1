//! Tests that every server of the library selects the subprotocol of plain messages if it selects no other. Browsers
//! fail a handshake in which none of their subprotocols is selected.

use crate::support;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use humphrey_ws::{
    Accept, AsyncWebsocketApp, Message, Procedures, WebsocketStream, websocket_handler,
};
use support::{
    client_frame, read_frame, read_head, serve_route, start, start_linked, tcp,
    upgrade_request_offering,
};

const PLAIN: &str = "humphrey_ws.plain.v1";
const PROCEDURES: &str = "humphrey_ws.procedures.v1";
/// The offer of the JavaScript client, with a subprotocol of its program.
const OFFERED: &str = "humphrey_ws.procedures.v1, chat, humphrey_ws.plain.v1";

/// Connects, and returns the selected subprotocols and the one that the message handler sees.
fn chosen(address: SocketAddr, path: &str, offered: &str) -> (Vec<String>, String) {
    let mut socket = tcp(address);
    let request = upgrade_request_offering(path, offered);
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    let chosen = lines.filter(|(name, _)| name.eq_ignore_ascii_case("Sec-WebSocket-Protocol"));
    let chosen = chosen.map(|(_, value)| value.to_owned()).collect();
    // Bytes that are malformed in the subprotocols of procedures.
    socket.write_all(&client_frame(0x82, b"\x01\x01a")).unwrap();
    let (_, seen) = read_frame(&mut socket).unwrap();
    (chosen, String::from_utf8(seen).unwrap())
}

fn with_subprotocol_reply(app: AsyncWebsocketApp<()>) -> AsyncWebsocketApp<()> {
    app.with_message_handler(|stream, _, _| {
        stream.send(Message::new(stream.subprotocol().unwrap_or("none")));
    })
}

fn with_handshake_handler(app: AsyncWebsocketApp<()>) -> AsyncWebsocketApp<()> {
    app.with_handshake_handler(|request, _| {
        Ok(match request.path() {
            "/chat" => Accept::new().with_subprotocol("chat"),
            "/none" => Accept::new().without_subprotocol(),
            _ => Accept::new(),
        })
    })
}

fn expect(address: SocketAddr, path: &str, offered: &str, expected: &str, seen: &str) {
    let expected = match expected {
        "" => Vec::new(),
        one => vec![one.to_owned()],
    };
    let found = chosen(address, path, offered);
    assert_eq!(found, (expected, seen.to_owned()), "{path} {offered}");
}

#[test]
fn app_without_procedures_chooses_plain() {
    for asks in [false, true] {
        let build = |app| {
            with_subprotocol_reply(if asks {
                with_handshake_handler(app)
            } else {
                app
            })
        };
        let own = start(build(AsyncWebsocketApp::new()));
        let linked = start_linked(build(AsyncWebsocketApp::new_unlinked()));
        for (running, address) in [own, linked] {
            expect(address, "/", OFFERED, PLAIN, "none");
            expect(address, "/", "other", "", "none");
            expect(address, "/", "humphrey_ws.plain.v1x", "", "none");
            expect(address, "/none", OFFERED, PLAIN, "none");
            if asks {
                expect(address, "/chat", OFFERED, "chat", "chat");
            }
            running.shutdown(support::DEADLINE);
        }
    }
}

#[test]
fn app_with_procedures_chooses_plain_only_without_them() {
    let build = |app: AsyncWebsocketApp<()>| {
        with_subprotocol_reply(with_handshake_handler(
            app.with_procedures(Procedures::new()),
        ))
    };
    let (running, address) = start(build(AsyncWebsocketApp::new()));
    expect(address, "/none", OFFERED, PLAIN, "none");
    expect(address, "/chat", OFFERED, "chat", "chat");
    expect(address, "/", "other, humphrey_ws.plain.v1", PLAIN, "none");
    let mut socket = tcp(address);
    let request = upgrade_request_offering("/", OFFERED);
    socket.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut socket);
    assert!(head.contains(PROCEDURES) && !head.contains(PLAIN), "{head}");
    running.shutdown(support::DEADLINE);
}

#[test]
fn blocking_route_chooses_plain() {
    let serve = |mut stream: WebsocketStream, _: Arc<()>| {
        while stream.recv().is_ok() {
            stream.send(Message::new("none")).unwrap();
        }
    };
    let address = serve_route(websocket_handler(serve));
    expect(address, "/", OFFERED, PLAIN, "none");
    expect(address, "/", "other", "", "none");
}
