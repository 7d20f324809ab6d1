//! TLS in the app's own listener: an echo at `wss://localhost:8443/`, and a page at `https://localhost:8443/`.
//!
//! A Humphrey app with its own TLS can't hand over its WebSockets to an async app. The same routes, mounted here, are
//! served over this listener's TLS instead.
//!
//! Run with `cargo run --features tls --example tls -- 127.0.0.1:8443 fullchain.pem privkey.pem`. For a certificate to try
//! it:
//!
//! ```text
//! openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -keyout privkey.pem -out fullchain.pem \
//!     -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1
//! ```

use std::time::Duration;

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::tls::Tls;
use humphrey_ws::{AsyncWebsocketApp, Message};

const PAGE: &str = "<!DOCTYPE html><meta charset=utf-8><title>TLS</title><p>connecting</p><script>
const socket = new WebSocket(`wss://${location.host}/`), line = document.querySelector('p');
socket.onopen = () => socket.send('hello over TLS');
socket.onmessage = event => line.textContent = event.data;
</script>";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, certificates, key] = arguments.as_slice() else {
        panic!("the arguments are ADDRESS CERTIFICATES KEY");
    };
    let tls = Tls::from_pem_files(certificates, key)
        // A renewed certificate is used within a minute, without a restart.
        .and_then(|tls| tls.watch(Duration::from_secs(60)))
        .expect("the certificate and the key can be used");

    let routes = SubApp::new().with_stateless_route("/", |_| {
        Response::new(StatusCode::OK, PAGE).with_header(
            humphrey::http::headers::HeaderType::ContentType,
            "text/html; charset=utf-8",
        )
    });
    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_address(address.as_str())
        .with_tls(tls)
        .with_routes(routes)
        .with_message_handler(|stream, message: Message, _| stream.send(message));
    app.run();
}
