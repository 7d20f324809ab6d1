//! Broadcasts every line of standard input to every page as server-sent events. A page needs neither a WebSocket nor
//! code for reconnecting, and a short disconnect loses nothing.
//!
//! ```sh
//! cargo run --example server_sent_events
//! ```
//!
//! Then open <http://127.0.0.1:8080/>, or follow the stream in another terminal, and type into the first one:
//!
//! ```sh
//! curl -N http://127.0.0.1:8080/events
//! ```
//!
//! To listen on another address: `cargo run --example server_sent_events -- 127.0.0.1:9000`.

use humphrey::SubApp;
use humphrey::http::headers::HeaderType;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Message, Subscription};

use std::env;
use std::io::stdin;
use std::thread::spawn;
use std::time::Duration;

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Lines</title>
<style>body { font: 1.2em/1.6 system-ui; max-width: 40em; margin: 2em auto } .note { color: gray }</style>
<ul id="lines"></ul>
<script>
  const lines = document.getElementById('lines');
  function show(text, kind) {
    const item = lines.appendChild(document.createElement('li'));
    item.textContent = text;
    item.className = kind;
  }
  // The browser reconnects by itself, and sends the id of the last event that it has seen.
  const source = new EventSource('/events');
  source.onmessage = event => show(event.data, 'line');
  source.addEventListener('reset', () => show('Some lines are missing here.', 'note'));
</script>
"#;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let app = AsyncWebsocketApp::<()>::new()
        .with_address(address)
        .with_routes(SubApp::new().with_stateless_route("/", |_| {
            Response::new(StatusCode::OK, PAGE).with_header(HeaderType::ContentType, "text/html")
        }))
        // Kept for replay to reconnecting pages and late joiners.
        .with_history("lines", HistoryLimits::messages(100).bytes(64 * 1024))
        .with_event_stream("/events", |_, _| {
            Ok(Subscription::room("lines")
                .with_history()
                .with_retry(Duration::from_millis(500)))
        });

    let lines = app.sender().room("lines");
    spawn(move || {
        for line in stdin().lines().map_while(Result::ok) {
            lines.broadcast(Message::new(line));
        }
    });

    app.run();
}
