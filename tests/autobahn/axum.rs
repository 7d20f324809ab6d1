//! An echo server whose connections come from an axum app.
//!
//! ```sh
//! cargo run --features axum --example autobahn_axum -- 127.0.0.1:9000
//! ```

use axum::Router;
use axum::routing::any;
use humphrey_ws::AsyncWebsocketApp;
use tokio::net::TcpListener;

use std::env;
use std::io;
use std::net::SocketAddr;

#[tokio::main]
async fn main() -> io::Result<()> {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_unlinked()
        .with_message_handler(|stream, message, _| stream.send(message));
    // As in the example `echo`, the environment variable COMPRESS enables compression.
    #[cfg(feature = "deflate")]
    let app = match env::var_os("COMPRESS") {
        Some(_) => app.with_compression(humphrey_ws::Compression::new()),
        None => app,
    };
    let running = app.start()?;

    let router = Router::new()
        .route("/", any(humphrey_ws::axum::upgrade))
        .with_state(running.sender());
    let listener = TcpListener::bind(address).await?;
    axum::serve(
        listener,
        router.into_make_service_with_connect_info::<SocketAddr>(),
    )
    .await
}
