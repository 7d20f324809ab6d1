//! Clients of `humphrey_ws.procedures.v1` receive the messages of rooms with a history together with their ids, so that
//! they can resume. All other clients receive plain messages.

use crate::frames::{RoomFrame, V1, connect_at};
use crate::support;

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use humphrey_ws::{Accept, AsyncWebsocketApp, HistoryId, HistoryLimits, Message};
use support::{Client, eventually, start};
use tungstenite::WebSocket;

const STOP: Duration = Duration::from_millis(100);

/// Starts an app whose clients join `r` after the id in their path, and `other`.
fn app() -> AsyncWebsocketApp<()> {
    AsyncWebsocketApp::new()
        .with_shards(2)
        .with_history("r", HistoryLimits::messages(10_000).bytes(8 << 20))
        .with_handshake_handler(|request, _| {
            let offered = request.subprotocols().next();
            Ok(offered.map_or_else(Accept::new, |offered| {
                Accept::new().with_subprotocol(offered)
            }))
        })
        .with_connect_handler(|stream, _| {
            stream.join("other");
            stream
                .join_since("r", stream.path()[1..].parse().ok())
                .expect("the history reaches back to the id");
        })
        .with_message_handler(|stream, _, _| {
            let room = stream.room("r");
            room.broadcast_except(stream.id(), Message::new("to others"));
            stream.send(Message::new("done"));
        })
}

fn connect(address: SocketAddr, path: &str) -> WebSocket<TcpStream> {
    connect_at(address, path, V1).0
}

/// Receives the next message, which must have an id, and returns both.
fn with_id(client: &mut WebSocket<TcpStream>) -> (HistoryId, Result<String, Vec<u8>>) {
    let frame = RoomFrame::parse(client.read().unwrap());
    assert_eq!(frame.room, "r");
    let id = frame.id.parse().unwrap();
    match frame.kind {
        1 => (id, Ok(String::from_utf8(frame.content).unwrap())),
        2 => (id, Err(frame.content)),
        kind => panic!("kind {kind}"),
    }
}

#[test]
fn clients_of_the_subprotocol_alone_get_ids() {
    let (running, address) = start(app());
    let sender = running.sender();
    let room = sender.room("r");
    let mut plain = Client::connect_to(address, "/");
    let mut numbered = connect(address, "/");
    eventually("both clients are in the room", || {
        room.len() == 2 && sender.room("other").len() == 2
    });

    room.broadcast(Message::new("a text"));
    let first = room.last_id().unwrap();
    sender.room("other").broadcast(Message::new("kept nowhere"));
    room.broadcast(Message::new_binary(b"\0\xff"));
    sender.broadcast(Message::new("to everyone"));
    let second = room.last_id().unwrap();

    assert_eq!(with_id(&mut numbered), (first, Ok("a text".into())));
    let text = |client: &mut WebSocket<TcpStream>| client.read().unwrap().into_text().unwrap();
    assert_eq!(text(&mut numbered), "kept nowhere");
    assert_eq!(with_id(&mut numbered), (second, Err(b"\0\xff".to_vec())));
    assert_eq!(text(&mut numbered), "to everyone");
    assert_eq!(plain.receive_text(), "a text");
    assert_eq!(plain.receive_text(), "kept nowhere");
    assert_eq!(plain.receive().into_data(), &b"\0\xff"[..]);
    assert_eq!(plain.receive_text(), "to everyone");

    // Each receives the messages of the other.
    plain.send("go");
    assert_eq!(plain.receive_text(), "done");
    assert_eq!(with_id(&mut numbered).1, Ok("to others".into()));
    numbered.send("go".into()).unwrap();
    assert_eq!(text(&mut numbered), "done");
    assert_eq!(plain.receive_text(), "to others");

    // A form without recipients does not count as lost.
    plain.close();
    eventually("one client has left", || room.len() == 1);
    room.broadcast(Message::new("alone"));
    assert_eq!(with_id(&mut numbered).1, Ok("alone".into()));
    assert_eq!(sender.metrics().dropped.total(), 0);
    running.shutdown(STOP);
}

#[test]
fn reconnect_with_the_last_id_gets_each_message_once() {
    const MESSAGES: u64 = 5_000;
    let (running, address) = start(app());
    let room = running.sender().room("r");
    let publisher = {
        let room = room.clone();
        thread::spawn(move || {
            (1..=MESSAGES).for_each(|n| room.broadcast(Message::new(n.to_string())))
        })
    };
    let clients: Vec<_> = (0..4)
        .map(|client| {
            thread::spawn(move || {
                let mut last: Option<HistoryId> = None;
                let mut seen = 0;
                while seen < MESSAGES {
                    let path = last.map_or("/".to_owned(), |id| format!("/{id}"));
                    let mut connection = connect(address, &path);
                    // The client leaves during the broadcasts, each time after a few more messages.
                    for _ in 0..100 + client * 50 {
                        let (id, message) = with_id(&mut connection);
                        seen += 1;
                        assert_eq!(id.sequence(), seen);
                        assert_eq!(message, Ok(seen.to_string()));
                        last = Some(id);
                        if seen == MESSAGES {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    publisher.join().unwrap();
    for client in clients {
        client.join().unwrap();
    }
    running.shutdown(STOP);
}
