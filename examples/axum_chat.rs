//! A chat in an axum app: every text message is broadcast to all clients. A slow consumer is disconnected, learns that
//! it has missed messages, and reconnects.
//!
//! ```sh
//! cargo run --example axum_chat --features axum
//! ```
//!
//! Open <http://127.0.0.1:8080> in several browser windows and write into one of them. To listen on another address:
//! `cargo run --example axum_chat --features axum -- 127.0.0.1:9000`.

use axum::Router;
use axum::response::Html;
use axum::routing::{any, get};
use humphrey_ws::{
    AsyncStream, AsyncWebsocketApp, CloseCode, Limits, Message, Origins, SlowConsumer,
};
use tokio::net::TcpListener;

use std::env;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Chat</title>
<form><input autofocus aria-label="Message"> <button>Send</button></form>
<ul></ul>
<script>
  let ws;
  function show(text) {
    const item = document.createElement('li');
    item.textContent = text;
    document.querySelector('ul').prepend(item);
  }
  function connect() {
    ws = new WebSocket(`ws://${location.host}/chat`);
    ws.onmessage = event => show(event.data);
    ws.onclose = event => {
      // 1013: this window has read too slowly and has missed messages. Tell the user, and reconnect.
      show(event.code === 1013 ? 'You have missed some messages.' : 'The connection is closed.');
      setTimeout(connect, 1000);
    };
  }
  connect();
  document.querySelector('form').onsubmit = event => {
    event.preventDefault();
    ws.send(document.querySelector('input').value);
    event.target.reset();
  };
</script>
"#;

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    // axum listens; this app does not. Its handlers are plain functions that run on its own threads.
    let chat = AsyncWebsocketApp::<()>::new_unlinked()
        .with_allowed_origins(Origins::Same)
        .with_limits(
            Limits::default()
                .message_bytes_max(64 << 10)
                .outbox_bytes_max(256 << 10),
        )
        // The default, spelled out since it is the point here: a client with more than 256 KiB queued is disconnected
        // with 1013.
        .with_slow_consumer(SlowConsumer::Disconnect)
        .with_message_handler(say);
    let running = chat.start()?;

    let router = Router::new()
        .route("/", get(async || Html(PAGE)))
        .route("/chat", any(humphrey_ws::axum::upgrade))
        .with_state(running.sender());

    let listener = TcpListener::bind(address).await?;
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

fn say(stream: AsyncStream, message: Message, _: Arc<()>) {
    if message.is_text() {
        stream.broadcast(message);
    } else {
        stream.close(CloseCode::UNSUPPORTED_DATA, "only text, please");
    }
}
