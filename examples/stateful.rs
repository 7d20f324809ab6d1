//! Shared state, state of each connection, and a heartbeat.
//!
//! A chat. A client's first message is its name; further ones are numbered and broadcast. A heartbeat detects clients
//! that vanish without closing, such as a phone that leaves its network, so that the others are informed.
//!
//! ```sh
//! cargo run --example stateful
//! ```
//!
//! Then open the consoles of two browser windows:
//!
//! ```js
//! ws = new WebSocket('ws://127.0.0.1:8080'); ws.onmessage = e => console.log(e.data)
//! ws.send('Ada')
//! ws.send('Good morning!')
//! ```
//!
//! To listen on another address: `cargo run --example stateful -- 127.0.0.1:9000`.

use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{AsyncStream, AsyncWebsocketApp, Message};

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The state of the app, which all handlers share.
#[derive(Default)]
struct Room {
    guests: AtomicUsize,
}

/// The state of one connection, which starts as its default.
#[derive(Default)]
struct Guest {
    name: OnceLock<String>,
    messages: AtomicUsize,
}

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let app = AsyncWebsocketApp::<Room, Guest>::new()
        .with_address(address)
        // A client that is silent for two seconds is pinged; after five, it is disconnected.
        .with_heartbeat(Heartbeat::new(
            Duration::from_secs(2),
            Duration::from_secs(5),
        ))
        .with_connect_handler(connect_handler)
        .with_message_handler(message_handler)
        .with_disconnect_handler(disconnect_handler);

    app.run();
}

fn connect_handler(stream: AsyncStream<Guest>, _: Arc<Room>) {
    stream.send(Message::new("What is your name?"));
}

fn message_handler(stream: AsyncStream<Guest>, message: Message, room: Arc<Room>) {
    let Some(text) = message.text() else {
        return stream.send(Message::new("Only text, please."));
    };

    match stream.state.name.get() {
        Some(name) => {
            let number = stream.state.messages.fetch_add(1, Ordering::Relaxed) + 1;
            stream.broadcast(Message::new(format!("{name} ({number}): {text}")));
        }
        None => {
            // Handlers of one connection never run at the same time, so no other handler can have set it meanwhile.
            let name = stream.state.name.get_or_init(|| text.to_string());
            let guests = room.guests.fetch_add(1, Ordering::Relaxed) + 1;
            stream.broadcast(Message::new(format!("{name} is here, guest {guests}.")));
        }
    }
}

fn disconnect_handler(stream: AsyncStream<Guest>, room: Arc<Room>) {
    if let Some(name) = stream.state.name.get() {
        let guests = room.guests.fetch_sub(1, Ordering::Relaxed) - 1;
        stream.broadcast(Message::new(format!("{name} has left, {guests} remain.")));
    }
}
