//! Autobahn's cases for clients: asks its fuzzing server how many there are, lets it put each, and echoes what it sends.
//!
//! ```sh
//! cargo run --features client --example autobahn_client -- ws://127.0.0.1:9001
//! ```

use humphrey_ws::websocket_client::{Client, ClientError};

use std::env;
use std::time::Duration;

const AGENT: &str = "client";

fn main() -> Result<(), ClientError> {
    let server = env::args().nth(1).unwrap_or("ws://127.0.0.1:9001".into());
    let cases = connect(&format!("{server}/getCaseCount"))?.receive()?;
    let cases: u32 = cases.text().and_then(|text| text.parse().ok()).unwrap_or(0);
    for case in 1..=cases {
        echo(connect(&format!(
            "{server}/runCase?case={case}&agent={AGENT}"
        ))?);
    }
    // The server closes once it has written its reports.
    while connect(&format!("{server}/updateReports?agent={AGENT}"))?
        .receive()
        .is_ok()
    {}
    Ok(())
}

fn connect(url: &str) -> Result<Client, ClientError> {
    let builder = Client::builder(url)
        .with_read_timeout(Some(Duration::from_secs(60)))
        .with_message_bytes_max(64 << 20);
    // As in the example `echo`, the environment variable COMPRESS enables compression.
    #[cfg(feature = "deflate")]
    let builder = match env::var_os("COMPRESS") {
        Some(_) => builder.with_compression(),
        None => builder,
    };
    builder.connect()
}

/// Until the server closes, or breaks the protocol: what is right is in its report.
fn echo(mut client: Client) {
    while let Ok(message) = client.receive() {
        if client.send(message).is_err() {
            break;
        }
    }
}
