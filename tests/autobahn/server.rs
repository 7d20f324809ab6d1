//! Echo by the two ways through a Humphrey app: `/blocking` and `/linked`.
//!
//! ```sh
//! cargo run --example autobahn_server -- 127.0.0.1:9000
//! ```

use humphrey::App;
use humphrey::http::Request;
use humphrey::monitor::MonitorConfig;
use humphrey::route::SubApp;
use humphrey::stream::Stream;
use humphrey_ws::{AsyncWebsocketApp, WebsocketStream, async_websocket_handler, websocket_handler};
#[cfg(feature = "deflate")]
use humphrey_ws::{Compression, websocket_handler_with_compression};

use std::env;
use std::sync::Arc;
use std::thread::spawn;
use std::time::Duration;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let linked: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked()
        .with_message_handler(|stream, message, _| stream.send(message));
    // As in the example `echo`, the environment variable COMPRESS enables compression.
    #[cfg(feature = "deflate")]
    let linked = match env::var_os("COMPRESS") {
        Some(_) => linked.with_compression(Compression::new()),
        None => linked,
    };
    let hook = linked.connect_hook().unwrap();
    spawn(move || linked.run());

    let app: App<()> = App::new()
        .with_custom_connection_handler(upgrade)
        .with_websocket_route("/linked", async_websocket_handler(hook));
    #[cfg(feature = "deflate")]
    let app = match env::var_os("COMPRESS") {
        Some(_) => app.with_websocket_route(
            "/blocking",
            websocket_handler_with_compression(Compression::new(), echo),
        ),
        None => app.with_websocket_route("/blocking", websocket_handler(echo)),
    };
    #[cfg(not(feature = "deflate"))]
    let app = app.with_websocket_route("/blocking", websocket_handler(echo));
    app.run(address).unwrap();
}

/// Calls the WebSocket route of the path, as Humphrey does for `Upgrade: websocket`; but Autobahn writes `WebSocket`,
/// which Humphrey's own look at the header takes for something else.
fn upgrade(
    mut stream: Stream,
    _: Arc<Vec<SubApp<()>>>,
    routes: Arc<SubApp<()>>,
    _: Arc<humphrey::app::ErrorHandler>,
    state: Arc<()>,
    _: MonitorConfig,
    _: Option<Duration>,
) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(request) = Request::from_stream(&mut stream, peer) else {
        return;
    };
    let mut routes = routes.websocket_routes.iter();
    if let Some(route) = routes.find(|route| route.route == request.uri) {
        route.handler.serve(request, stream, state);
    }
}

fn echo(mut stream: WebsocketStream, _: Arc<()>) {
    while let Ok(message) = stream.recv() {
        if stream.send(message).is_err() {
            break;
        }
    }
}
