//! WebSocket in an existing Humphrey app: pages and a form next to `/ws`, and a route that broadcasts.
//!
//! ```sh
//! cargo run --example linked
//! ```
//!
//! Open <http://127.0.0.1:8080> in several browser windows and write into one of them. Or broadcast from a shell:
//!
//! ```sh
//! curl -d 'Tea is ready.' http://127.0.0.1:8080/notify
//! ```
//!
//! A browser's console can subscribe, too: `ws = new WebSocket('ws://127.0.0.1:8080/ws'); ws.onmessage = e =>
//! console.log(e.data)`. To listen on another address: `cargo run --example linked -- 127.0.0.1:9000`.

use humphrey::App;
use humphrey::http::headers::HeaderType;
use humphrey::http::method::Method;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{AsyncSender, AsyncWebsocketApp, Message, async_websocket_handler};

use std::env;
use std::sync::Arc;
use std::thread::spawn;

/// Threads of the Humphrey app. WebSocket clients do not occupy them.
const THREADS: usize = 32;

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Live</title>
<form><input autofocus aria-label="Message"> <button>Send</button></form>
<ul></ul>
<script>
  const ws = new WebSocket(`ws://${location.host}/ws`);
  ws.onmessage = event => {
    const item = document.createElement('li');
    item.textContent = event.data;
    document.querySelector('ul').prepend(item);
  };
  document.querySelector('form').onsubmit = event => {
    event.preventDefault();
    ws.send(document.querySelector('input').value);
    event.target.reset();
  };
</script>
"#;

/// The state of the Humphrey app: its routes reach the WebSocket clients through the sender.
struct Site {
    live: AsyncSender,
}

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let websocket_app = AsyncWebsocketApp::<()>::new_unlinked()
        .with_message_handler(|stream, message, _| stream.broadcast(message));

    let site = Site {
        live: websocket_app.sender(),
    };
    let hook = websocket_app.connect_hook().unwrap();
    let humphrey_app: App<Site> = App::new_with_config(THREADS, site)
        .with_stateless_route("/", page)
        .with_route("/notify", notify)
        .with_websocket_route("/ws", async_websocket_handler(hook));

    spawn(move || websocket_app.run());
    humphrey_app.run(address).unwrap();
}

fn page(_: Request) -> Response {
    Response::new(StatusCode::OK, PAGE)
        .with_header(HeaderType::ContentType, "text/html; charset=utf-8")
}

fn notify(request: Request, site: Arc<Site>) -> Response {
    if request.method != Method::Post {
        return Response::new(StatusCode::MethodNotAllowed, "Send the text with POST.\n")
            .with_header(HeaderType::Allow, "POST");
    }

    site.live
        .broadcast(Message::new(request.content.unwrap_or_default()));
    let told = format!("Told {} clients.\n", site.live.connections());
    Response::new(StatusCode::OK, told)
}
