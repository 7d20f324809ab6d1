//! Broadcasts from handlers and from another thread: every client sees who connects, and every line of standard input.
//! A client's own messages are echoed to it alone.
//!
//! ```sh
//! cargo run --example broadcast
//! ```
//!
//! Then open the consoles of two browser windows, and type into all three:
//!
//! ```js
//! ws = new WebSocket('ws://127.0.0.1:8080'); ws.onmessage = e => console.log(e.data)
//! ws.send('only I get this back')
//! ```
//!
//! To listen on another address: `cargo run --example broadcast -- 127.0.0.1:9000`.

use humphrey_ws::{AsyncSender, AsyncStream, AsyncWebsocketApp, Message};

use std::env;
use std::io::stdin;
use std::sync::Arc;
use std::thread::spawn;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let app = AsyncWebsocketApp::<()>::new()
        .with_address(address)
        .with_connect_handler(connect_handler)
        .with_message_handler(message_handler);

    let sender = app.sender();
    spawn(move || user_input(sender));

    app.run();
}

/// The broadcast includes the new client.
fn connect_handler(stream: AsyncStream, _: Arc<()>) {
    let message = Message::new(format!("Welcome, {}!", stream.peer_addr()));
    stream.broadcast(message);
}

fn message_handler(stream: AsyncStream, message: Message, _: Arc<()>) {
    stream.send(message);
}

/// Sends from its own thread. When the input ends, only this thread ends; the app runs on.
fn user_input(sender: AsyncSender) {
    for line in stdin().lines().map_while(Result::ok) {
        sender.broadcast(Message::new(line));
    }
}
