//! The smallest app: every message is echoed to its sender.
//!
//! ```sh
//! cargo run --example echo
//! ```
//!
//! Then open the console of a browser:
//!
//! ```js
//! ws = new WebSocket('ws://127.0.0.1:8080'); ws.onmessage = e => console.log(e.data)
//! ws.send('hello')
//! ```
//!
//! To listen on another address: `cargo run --example echo -- 127.0.0.1:9000`.

use humphrey_ws::AsyncWebsocketApp;

use std::env;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let app = AsyncWebsocketApp::<()>::new()
        .with_address(address)
        .with_message_handler(|stream, message, _| stream.send(message));
    // With the feature `deflate`: COMPRESS=yes cargo run --example echo --features deflate
    #[cfg(feature = "deflate")]
    let app = match env::var_os("COMPRESS") {
        Some(_) => app.with_compression(humphrey_ws::Compression::new()),
        None => app,
    };

    app.run();
}
