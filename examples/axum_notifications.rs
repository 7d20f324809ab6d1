//! Notifications in an axum app: a POST handler stores a text and broadcasts it to every subscriber, through axum's
//! state.
//!
//! ```sh
//! cargo run --example axum_notifications --features axum
//! ```
//!
//! Then, with or without subscribers:
//!
//! ```sh
//! curl -d 'Tea is ready.' http://127.0.0.1:8080/notices
//! curl http://127.0.0.1:8080/notices
//! ```
//!
//! In a browser's console, `ws = new WebSocket('ws://127.0.0.1:8080/live'); ws.onmessage = e => console.log(e.data)`
//! subscribes. To listen on another address: `cargo run --example axum_notifications --features axum --
//! 127.0.0.1:9000`.

use axum::Router;
use axum::extract::{FromRef, State};
use axum::http::StatusCode;
use axum::routing::{any, get};
use humphrey_ws::{AsyncSender, AsyncWebsocketApp, Message, SendErrorReason};
use tokio::net::TcpListener;

use std::collections::VecDeque;
use std::env;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

/// The maximum number of stored notices.
const KEPT_MAX: usize = 100;

/// The state that the axum handlers share.
#[derive(Clone)]
struct Site {
    live: AsyncSender,
    notices: Arc<Mutex<VecDeque<String>>>,
}

/// Lets the route `/live` find the WebSocket app in the state.
impl FromRef<Site> for AsyncSender {
    fn from_ref(site: &Site) -> Self {
        site.live.clone()
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    // axum listens; this app does not.
    let websocket_app = AsyncWebsocketApp::<()>::new_unlinked();
    let running = websocket_app.start()?;

    let site = Site {
        live: running.sender(),
        notices: Arc::default(),
    };
    let router = Router::new()
        .route("/notices", get(notices).post(notify))
        .route("/live", any(humphrey_ws::axum::upgrade))
        .with_state(site);

    let listener = TcpListener::bind(address).await?;
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).await
}

async fn notices(State(site): State<Site>) -> String {
    let notices = site.notices.lock().unwrap();
    notices.iter().map(|notice| format!("{notice}\n")).collect()
}

/// Having no subscribers is not an error: the notice is stored.
async fn notify(State(site): State<Site>, notice: String) -> (StatusCode, &'static str) {
    {
        let mut notices = site.notices.lock().unwrap();
        notices.push_back(notice.clone());
        if notices.len() > KEPT_MAX {
            notices.pop_front();
        }
    }
    // `broadcast` would block while the engine is full, which a tokio task must not do.
    match site.live.try_broadcast(Message::new(notice)) {
        Ok(()) => (StatusCode::CREATED, "Kept, and told to all who listen.\n"),
        Err(error) if error.reason == SendErrorReason::Full => (
            StatusCode::CREATED,
            "Kept. Subscribers have too much to read already.\n",
        ),
        Err(_) => (StatusCode::CREATED, "Kept. It was told to nobody.\n"),
    }
}
