//! The server for the JavaScript client's tests, beside the example `procedures`.
//!
//! ```sh
//! cargo run --example client_server -- 127.0.0.1:9000 [KEPT [CLUSTER]]
//! ```
//!
//! CLUSTER is the URL of a broker; with it, the server is a node of a cluster.
//!
//! - The server broadcasts a number to the room `numbers` every few milliseconds, from 1 on. The room keeps the last KEPT of
//!   them (default: 100,000).
//! - Rooms whose name begins with `topic` keep their last messages.
//! - `/events` streams the room `topic` as server-sent events. `/two` streams two such rooms and the messages to all clients.
//! - Rooms whose name begins with `lobby` have presence.
//! - The query parameter `expires` of the address is in how many seconds the session expires.
//! - The query parameter `user` of the address names the user of a connection. Without it, the connection has no user.

use humphrey_ws::procedures::CallError;
use humphrey_ws::{
    Accept, AsyncWebsocketApp, CloseCode, HistoryLimits, Message, PresenceRooms, Procedures,
    Reject, Subscription,
};

use std::env;
use std::thread::{sleep, spawn};
use std::time::{Duration, SystemTime};

// Timeout of calls to the client that must time out.
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);

fn procedures() -> Procedures<()> {
    Procedures::new()
        .on_call("echo", |call| Ok(call.data().bytes().to_vec()))
        .on_call("fail", |call| match call.text() {
            Ok(text) => Err::<Vec<u8>, _>(text.into()),
            Err(error) => Err(error),
        })
        .on_call("forget", |call| drop(call.defer()))
        .on_call("hang", |call| {
            let reply = call.defer();
            spawn(move || {
                reply.wait_cancelled(LONG);
            });
        })
        .on_call("parts", |call| {
            for part in call.text()?.split(' ') {
                call.item(part)?;
            }
            Ok("done")
        })
        // Calls the client's procedure of the given name, and returns the result.
        .on_call("ask", |call| {
            let name = call.text()?;
            let timeout = if name == "slow" { SHORT } else { LONG };
            let answer = call.stream().call_wait(name, "question", timeout);
            Ok(answer.unwrap_or_else(|error| error.to_string().into()))
        })
        .on_notification("publish", |event| {
            let Ok(text) = event.text() else { return };
            event.stream().room("topic").broadcast(Message::new(text));
        })
        .on_notification("publish bytes", |event| {
            let room = event.stream().room("topic");
            room.broadcast(Message::new_binary(event.data().bytes()));
        })
        // The room's name, a line break, and the text.
        .on_notification("publish to", |event| {
            let Ok((room, text)) = event
                .text()
                .map(|text| text.split_once('\n').unwrap_or((text, "")))
            else {
                return;
            };
            event.stream().room(room).broadcast(Message::new(text));
        })
        .on_notification("everyone", |event| {
            let Ok(text) = event.text() else { return };
            event.stream().broadcast(Message::new(text));
        })
        // The room's name, a line break, and the state.
        .on_notification("state", |event| {
            let text = event.text().unwrap_or_default();
            let (room, state) = text.split_once('\n').unwrap_or((text, ""));
            event.stream().set_presence(room, state);
        })
        .on_notification("notify", |event| {
            event.stream().room("topic").notify("topic", event.data());
        })
        .on_notification("back", |event| event.stream().notify("back", event.data()))
        .on_notification("close", |event| {
            let code: Option<u16> = event.text().ok().and_then(|code| code.parse().ok());
            let code = code.and_then(|code| CloseCode::try_from(code).ok());
            let code = code.unwrap_or(CloseCode::NORMAL);
            event.stream().close(code, "as requested");
        })
}

/// The time that is a number of seconds from now.
fn in_seconds(text: &str) -> Result<SystemTime, Reject> {
    let seconds: f64 = text.parse().map_err(|_| Reject::new(400))?;
    Ok(SystemTime::now() + Duration::from_secs_f64(seconds))
}

fn main() {
    let mut args = env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let kept = args.next().map_or(100_000, |kept| kept.parse().unwrap());

    let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new()
        .with_address(&address)
        .with_history(
            "numbers",
            HistoryLimits::messages(kept).bytes(64 * 1024 * 1024),
        )
        .with_history("topic*", HistoryLimits::messages(50).bytes(1024 * 1024))
        .with_presence(PresenceRooms::new("lobby*").grace(Duration::ZERO))
        .with_handshake_handler(|request, _| {
            let mut accept = match request.query_param("user") {
                Some(user) => Accept::new().user(user),
                None => Accept::new(),
            };
            if let Some(seconds) = request.query_param("expires") {
                accept = accept.expires_at(in_seconds(&seconds)?);
            }
            Ok(accept)
        })
        // The token is how many seconds the session is prolonged by.
        .with_refresh_handler(|_, token| {
            in_seconds(token).map_err(|_| CallError::refused("the token is not valid"))
        })
        .with_procedures(procedures())
        .with_join_handler(|_, room| room != "secret")
        .with_event_stream("/events", |_, _| Ok(Subscription::room("topic")))
        .with_event_stream("/two", |_, _| {
            Ok(Subscription::room("topic \"one\"")
                .and_room("topic 2")
                .with_broadcasts())
        })
        .with_message_handler(|stream, message, _| stream.send(message));

    #[cfg(feature = "cluster")]
    let app = match args.next() {
        Some(url) => app.with_cluster(url.as_str()),
        None => app,
    };

    let numbers = app.sender().room("numbers");
    spawn(move || {
        for n in 1.. {
            numbers.broadcast(Message::new(format!("{n}")));
            // The rate of the messages; no test waits for it.
            sleep(Duration::from_millis(3));
        }
    });
    app.run();
}
