//! Procedures: named notifications both ways, and calls that return, with cancellation.
//!
//! ```sh
//! cargo run --example procedures
//! ```
//!
//! Clients offer the subprotocol `humphrey_ws.procedures.v1`, or `websocket.io-rpc-v0.1`, at <ws://127.0.0.1:8080>. Another
//! address to listen on can be given: `cargo run --example procedures -- 127.0.0.1:9000`. The guide explains how it works:
//! docs/procedures.md.
//!
//! | a client sends | and gets |
//! |---|---|
//! | notification `broadcast` | notification `message` for everyone in the room `main` |
//! | notification `ping` | notification `pong` |
//! | call `myip` | its address |
//! | call `uppercase` | its text in capitals |
//! | call `report` | nothing: it runs until it is cancelled |
//! | call `countdown` with a number | a part for each tenth of a second, then `lift-off` |
//! | call `reports` | how many reports run, and how many were cancelled: `1 0` |
//! | call `$join` of the room `main` | its last messages, and what comes |

use humphrey_ws::{AsyncWebsocketApp, Procedures};

use std::env;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

#[derive(Default)]
struct Reports {
    running: AtomicUsize,
    cancelled: AtomicUsize,
}

fn main() {
    let address = env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let procedures = Procedures::<Reports>::new()
        .on("broadcast", |event| {
            event.stream().room("main").notify("message", event.data())
        })
        .on("ping", |event| event.stream().notify("pong", event.data()))
        .call("myip", |call| Ok(call.stream().peer_addr().to_string()))
        .call("uppercase", |call| Ok(call.text()?.to_uppercase()))
        .call("report", |call| {
            call.state().running.fetch_add(1, Relaxed);
            while !call.cancelled() {
                // Work, a little at a time.
                thread::sleep(Duration::from_millis(10));
            }
            call.state().running.fetch_sub(1, Relaxed);
            call.state().cancelled.fetch_add(1, Relaxed);
            Err(call.abort())
        })
        .call("reports", |call| {
            let Reports { running, cancelled } = &**call.state();
            let (running, cancelled) = (running.load(Relaxed), cancelled.load(Relaxed));
            Ok(format!("{running} {cancelled}"))
        })
        // Not to hold up what the client sends meanwhile, this one answers from a thread of its own.
        .call("countdown", |call| {
            let reply = call.defer();
            let from: u32 = match call.text().ok().and_then(|text| text.parse().ok()) {
                Some(from) => from,
                None => return reply.error("from which number?"),
            };
            thread::spawn(move || {
                for n in (1..=from).rev() {
                    if reply.item(n.to_string()).is_err()
                        || reply.wait_cancelled(Duration::from_millis(100))
                    {
                        return;
                    }
                }
                reply.ok("lift-off");
            });
        });

    let app: AsyncWebsocketApp<Reports> = AsyncWebsocketApp::new()
        .with_address(&address)
        .with_history("main", 100, 64 * 1024)
        .with_procedures(procedures)
        .with_join_handler(|_, room| room == "main")
        .with_connect_handler(|stream, _| {
            // Clients of the older subprotocol can't ask for it.
            if stream.subprotocol() != Some("humphrey_ws.procedures.v1") {
                stream.join("main");
            }
        });
    app.run();
}
