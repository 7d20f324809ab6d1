//! Procedures: named notifications in both directions, and calls with answers and cancellation; with a page that uses
//! them.
//!
//! ```sh
//! cargo run --example procedures
//! ```
//!
//! Open <http://127.0.0.1:8080> in two windows. To listen on another address: `cargo run --example procedures --
//! 127.0.0.1:9000`. Programs connect to the same address, and offer the subprotocol `humphrey_ws.procedures.v1` or
//! `websocket.io-rpc-v0.1`. The guide explains how it works: docs/procedures.md.
//!
//! | a client sends | and receives |
//! |---|---|
//! | notification `broadcast` | notification `message` for everyone in the room `main` |
//! | notification `ping` | notification `pong` |
//! | call `myip` | its address |
//! | call `uppercase` | its text in capitals |
//! | call `ask` | the client's answer to the server's call `size` |
//! | call `report` with a number of pages | a part for each page as it is written, ten a second, then the report; unless it is cancelled |
//! | call `reports` | how many reports are being written, and how many were cancelled: `1 0`; notification `reports` when that changes |
//! | call `$join` of the room `main` | its last messages, and all later ones |

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::procedures::{CLIENT_JS, Call, Procedures, Reply};
use humphrey_ws::{AsyncWebsocketApp, HistoryLimits, Origins, Room};

use std::env;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

const PAGE_TIME: Duration = Duration::from_millis(100);
const PAGES_MAX: u32 = 1_000;
/// Each report is written by its own thread.
const REPORTS_MAX: usize = 100;

/// Counts of reports. The lock is held while changes are broadcast, so that every client receives them in order.
#[derive(Default)]
struct Reports(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    running: usize,
    cancelled: usize,
}

impl Reports {
    /// Makes a change, if it is possible, and notifies every client.
    fn change(&self, everyone: &Room, change: impl FnOnce(&mut Counts) -> bool) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_changed = change(&mut counts);
        if is_changed {
            everyone.notify("reports", counts.text());
        }
        is_changed
    }
}

impl Counts {
    fn text(&self) -> String {
        format!("{} {}", self.running, self.cancelled)
    }
}

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let procedures = Procedures::<Reports>::new()
        .on_notification("broadcast", |event| {
            event.stream().room("main").notify("message", event.data())
        })
        .on_notification("ping", |event| event.stream().notify("pong", event.data()))
        .on_call("myip", |call| Ok(call.stream().peer_addr().to_string()))
        .on_call("uppercase", |call| Ok(call.text()?.to_uppercase()))
        .on_call("ask", |call| {
            let reply = call.defer();
            let wait = Duration::from_secs(5);
            call.stream()
                .call("size", "", wait, move |answer| match answer {
                    Ok(size) => reply.ok(size),
                    Err(error) => reply.error(error),
                });
        })
        .on_call("report", report)
        .on_call("reports", |call| {
            let counts = call.state().0.lock();
            Ok(counts.unwrap_or_else(PoisonError::into_inner).text())
        });

    let app = AsyncWebsocketApp::<Reports>::new()
        .with_address(&address)
        .with_routes(page())
        .with_allowed_origins(Origins::Same)
        .with_history("main", HistoryLimits::messages(100).bytes(64 * 1024))
        .with_procedures(procedures)
        .with_join_handler(|_, room| room == "main")
        .with_connect_handler(|stream, _| {
            // Clients of the older subprotocol have no `$join`.
            if stream.subprotocol() != Some("humphrey_ws.procedures.v1") {
                stream.join("main");
            }
        });
    app.run();
}

/// Writes the report on its own thread, so that the client's next messages are not delayed.
fn report(call: Call<Reports>) {
    let reply = call.defer();
    let pages = call.text().ok().and_then(|text| text.parse().ok());
    let Some(pages) = pages.filter(|pages| (1..=PAGES_MAX).contains(pages)) else {
        return reply.error(format!("the number of pages must be from 1 to {PAGES_MAX}"));
    };
    let (reports, everyone) = (call.state().clone(), call.stream().everyone());
    let may_begin = reports.change(&everyone, |counts| {
        let may_begin = counts.running < REPORTS_MAX;
        counts.running += usize::from(may_begin);
        may_begin
    });
    if !may_begin {
        return reply.error("too many reports are being written");
    }
    thread::spawn(move || write(pages, reply, &reports, &everyone));
}

fn write(pages: u32, reply: Reply, reports: &Arc<Reports>, everyone: &Room) {
    for page in 1..=pages {
        // Simulates the work, and returns early if the call is cancelled, for example because the page was closed.
        if reply.wait_cancelled(PAGE_TIME) {
            reports.change(everyone, |counts| {
                counts.running -= 1;
                counts.cancelled += 1;
                true
            });
            return reply.error("");
        }
        // Fails in the older subprotocol, which has no streamed answers.
        let _ = reply.item(page.to_string());
    }
    reports.change(everyone, |counts| {
        counts.running -= 1;
        true
    });
    reply.ok(format!("A report of {pages} pages."));
}

/// The page loads nothing from other hosts and runs only its own script.
fn page() -> SubApp<Reports> {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; \
        connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let file = |content: &'static str, kind: &'static str| {
        move |_| {
            Response::new(StatusCode::OK, content)
                .with_header("Content-Type", format!("text/{kind}; charset=utf-8"))
                .with_header("Content-Security-Policy", POLICY)
                .with_header("X-Content-Type-Options", "nosniff")
                .with_header("Referrer-Policy", "no-referrer")
                .with_header("Cache-Control", "no-cache")
        }
    };
    SubApp::new()
        .with_stateless_route("/", file(include_str!("page.html"), "html"))
        .with_stateless_route("/page.css", file(include_str!("page.css"), "css"))
        .with_stateless_route("/page.js", file(include_str!("page.js"), "javascript"))
        .with_stateless_route("/client.js", file(CLIENT_JS, "javascript"))
}
