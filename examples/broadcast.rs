//! Broadcasts from handlers and from outside: everyone hears who connects, and every line of standard input. What a
//! client sends is echoed to it alone.
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
//! Another address to listen on can be given: `cargo run --example broadcast -- 127.0.0.1:9000`.

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

/// Everyone gets this, the new client included.
fn connect_handler(stream: AsyncStream, _: Arc<()>) {
    let message = Message::new(format!("Welcome, {}!", stream.peer_addr()));
    stream.broadcast(message);
}

fn message_handler(stream: AsyncStream, message: Message, _: Arc<()>) {
    stream.send(message);
}

/// A sender works from any thread. The end of the input ends this one only: the app runs on.
fn user_input(sender: AsyncSender) {
    for line in stdin().lines().map_while(Result::ok) {
        sender.broadcast(Message::new(line));
    }
}
