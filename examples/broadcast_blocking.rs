//! Broadcasts with the blocking API: each client has a thread of its own, which alternates between the client's
//! messages and a bus that carries the lines of standard input to all clients.
//!
//! Its limits are those of threads: here, 32 clients at once and a delay of some milliseconds. The example `broadcast`
//! does the same without either limit.
//!
//! ```sh
//! cargo run --example broadcast_blocking
//! ```
//!
//! Then open the consoles of two browser windows, and type into all three:
//!
//! ```js
//! ws = new WebSocket('ws://127.0.0.1:8080'); ws.onmessage = e => console.log(e.data)
//! ws.send('only I get this back')
//! ```
//!
//! To listen on another address: `cargo run --example broadcast_blocking -- 127.0.0.1:9000`.

use async_broadcast::{InactiveReceiver, Sender, TryRecvError, broadcast};
use humphrey::App;
use humphrey_ws::restion::Restion;
use humphrey_ws::{Message, WebsocketStream, websocket_handler};

use std::env;
use std::io::stdin;
use std::sync::Arc;
use std::thread::{sleep, spawn};
use std::time::Duration;

/// The threads of the Humphrey app, and therefore the maximum number of clients at once.
const THREADS: usize = 32;
/// Lines that the bus keeps for clients that have not taken them yet.
const BUS_LINES: usize = 16;

/// An inactive receiver, from which each new client gets its own.
type BusHandle = InactiveReceiver<Arc<str>>;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let (mut bus, receiver) = broadcast(BUS_LINES);
    // Neither a slow client nor having no clients blocks the input: the oldest line makes room for the newest.
    bus.set_overflow(true);
    bus.set_await_active(false);
    spawn(move || user_input(bus));

    let app: App<BusHandle> = App::new_with_config(THREADS, receiver.deactivate())
        .with_websocket_route("/*", websocket_handler(client_handler));

    app.run(address).unwrap();
}

fn user_input(bus: Sender<Arc<str>>) {
    for line in stdin().lines().map_while(Result::ok) {
        // Fails only if no client is connected.
        let _ = bus.try_broadcast(line.into());
    }
}

fn client_handler(mut stream: WebsocketStream, bus: Arc<BusHandle>) {
    let mut bus = bus.activate_cloned();

    loop {
        let echo = match stream.recv_nonblocking() {
            Restion::Ok(message) => Some(message),
            Restion::Err(_) => break,
            Restion::None => None,
        };

        let news = match bus.try_recv() {
            Ok(line) => Some(Message::new(&*line)),
            Err(TryRecvError::Overflowed(n)) => Some(Message::new(format!("({n} lines missed)"))),
            // The input may have ended, but the client can still send.
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        };

        let idle = echo.is_none() && news.is_none();
        for message in echo.into_iter().chain(news) {
            if stream.send(message).is_err() {
                return;
            }
        }
        if idle {
            sleep(Duration::from_millis(10));
        }
    }
}
