//! The server whose system calls `tests/syscalls/run` counts: two shards, and a thread of the program besides.
//!
//! What comes at `/everyone` goes to everyone, all else goes back to who sent it. A number on standard input has the main
//! thread send so many messages to everyone.
//!
//! ```sh
//! cargo run --example syscalls_server -- 127.0.0.1:9001 [pool]
//! ```
//!
//! When it listens, it prints its address.

use std::env;
use std::io;
use std::time::Duration;

use humphrey_ws::{AsyncWebsocketApp, Message};

fn main() {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or("127.0.0.1:9001".into());
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_address(address)
        .with_shards(2)
        .with_adaptive_handlers(args.next().as_deref() != Some("pool"))
        .with_message_handler(|stream, message, _| match stream.path() {
            "/everyone" => stream.broadcast(message),
            _ => stream.send(message),
        });
    let running = app.start().expect("it starts");
    let address = running.local_addr().expect("it listens");
    #[expect(clippy::print_stdout, reason = "the test reads the address")]
    {
        println!("{address}");
    }
    let sender = running.sender();
    let message = Message::new("x".repeat(32));
    for line in io::stdin().lines() {
        let count: usize = line.ok().and_then(|line| line.parse().ok()).unwrap_or(0);
        (0..count).for_each(|_| sender.broadcast(message.clone()));
    }
    running.shutdown(Duration::from_secs(1));
}
