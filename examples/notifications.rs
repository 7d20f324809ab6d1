//! Notifications with one room for each user. A parcel ("Paekli") is posted over HTTP. Every connected device of its
//! recipient is notified at once; other devices find the parcel when they list.
//!
//! ```sh
//! cargo run --example notifications
//! ```
//!
//! In the consoles of several browser windows, subscribe to one recipient, or to all recipients without the parameter:
//!
//! ```js
//! ws = new WebSocket('ws://127.0.0.1:8080/notifications?recipient=ada'); ws.onmessage = e => console.log(e.data)
//! ```
//!
//! Then, from a shell, post a parcel, with or without subscribers, and list the stored ones:
//!
//! ```sh
//! curl -d 'Cookies from home.' http://127.0.0.1:8080/paekli/ada
//! curl http://127.0.0.1:8080/paekli/ada
//! ```
//!
//! To run it inside an existing Humphrey app: `cargo run --example notifications -- 127.0.0.1:8080 --linked`.

use humphrey::http::method::Method;
use humphrey::http::{Request, Response, StatusCode};
use humphrey::{App, SubApp};
use humphrey_ws::{
    Accept, AsyncSender, AsyncWebsocketApp, Message, Reject, async_websocket_handler,
};
use serde_json::json;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::{env, thread};

/// Most recipients with stored parcels, and most parcels of each.
const RECIPIENTS_MAX: usize = 10_000;
const PARCELS_MAX: usize = 100;
const PARCEL_BYTES_MAX: usize = 4096;
/// The room of subscribers to all recipients. It can't be a recipient's room.
const EVERYTHING: &str = "everything";

/// The parcels of each recipient, numbered from 1. A real app would use a database.
#[derive(Default)]
struct Office(Mutex<HashMap<String, VecDeque<(u64, String)>>>);

/// A WebSocket app whose streams have the room of their subscription as state.
type Notifications<State> = AsyncWebsocketApp<State, String>;

fn main() {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:8080".into());
    match arguments.next().as_deref() {
        Some("--linked") => linked(address),
        _ => alone(address),
    }
}

/// Runs a standalone app, which serves the HTTP route as well.
fn alone(address: String) {
    let app = Notifications::<Office>::new();
    let live = app.sender();
    let paekli = move |request, office| paekli(request, office, &live);
    with_subscriptions(app)
        .with_address(address)
        .with_routes(SubApp::new().with_route("/paekli/*", paekli))
        .run();
}

/// Runs the WebSocket app inside an existing Humphrey app.
fn linked(address: String) {
    let app = Notifications::<()>::new_unlinked();
    let live = app.sender();
    let hook = app.connect_hook().unwrap();
    thread::spawn(move || with_subscriptions(app).run());

    let paekli = move |request, office| paekli(request, office, &live);
    let humphrey_app: App<Office> = App::new();
    humphrey_app
        .with_route("/paekli/*", paekli)
        .with_websocket_route("/notifications", async_websocket_handler(hook))
        .run(address)
        .unwrap();
}

/// Serves `/notifications`, with or without `?recipient=NAME`. A real app must check here who may subscribe to what.
fn with_subscriptions<State: Send + Sync>(app: Notifications<State>) -> Notifications<State> {
    app.with_handshake_handler(|request, _| {
        if request.path() != "/notifications" {
            return Err(Reject::new(404));
        }
        match request.query_param("recipient") {
            None => Ok(Accept::new().with_state(EVERYTHING.to_owned())),
            Some(name) if is_name(&name) => Ok(Accept::new().with_state(room_of(&name))),
            Some(_) => Err(Reject::new(400).with_body("that is no recipient's name\n")),
        }
    })
    .with_connect_handler(|stream, _| {
        stream.join(&stream.state);
        // After the join: a client that lists the parcels on this message misses none.
        stream.send(Message::new(
            json!({"subscribed": *stream.state}).to_string(),
        ));
    })
}

fn room_of(recipient: &str) -> String {
    format!("to/{recipient}")
}

fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    (1..=64).contains(&name.len()) && name.chars().all(is_plain)
}

/// `POST` stores a parcel and notifies subscribers; `GET` lists the stored parcels.
fn paekli(request: Request, office: Arc<Office>, live: &AsyncSender) -> Response {
    let recipient = request.uri.trim_start_matches("/paekli/");
    let parcel = String::from_utf8(request.content.unwrap_or_default());
    match (request.method, parcel) {
        _ if !is_name(recipient) => Response::new(StatusCode::NotFound, "No such recipient.\n"),
        (Method::Get, _) => list(recipient, &office),
        (Method::Post, Ok(text)) if text.len() > PARCEL_BYTES_MAX => {
            Response::new(StatusCode::RequestEntityTooLarge, "It is too heavy.\n")
        }
        (Method::Post, Ok(text)) if !text.is_empty() => post(recipient, text, &office, live),
        (Method::Post, _) => Response::new(StatusCode::BadRequest, "It must be text.\n"),
        _ => Response::new(StatusCode::MethodNotAllowed, "Use GET or POST.\n")
            .with_header("Allow", "GET, POST"),
    }
}

fn post(recipient: &str, parcel: String, office: &Office, live: &AsyncSender) -> Response {
    let mut parcels = office.0.lock().unwrap();
    if !parcels.contains_key(recipient) && parcels.len() >= RECIPIENTS_MAX {
        return Response::new(StatusCode::ServiceUnavailable, "The office is full.\n");
    }
    let kept = parcels.entry(recipient.to_owned()).or_default();
    let number = kept.back().map_or(1, |(last, _)| last + 1);
    let news = json!({"recipient": recipient, "number": number, "text": parcel}).to_string();
    kept.push_back((number, parcel));
    if kept.len() > PARCELS_MAX {
        kept.pop_front();
    }
    drop(parcels);

    // Having no subscribers is not an error: the parcel is stored.
    let news = Message::new(news);
    live.room(EVERYTHING).broadcast(news.clone());
    live.room(&room_of(recipient)).broadcast(news);
    Response::new(StatusCode::Created, format!("Stored as number {number}.\n"))
}

fn list(recipient: &str, office: &Office) -> Response {
    let parcels = office.0.lock().unwrap();
    let kept = parcels.get(recipient).into_iter().flatten();
    let kept = kept.map(|(number, text)| json!({"number": number, "text": text}));
    let list = json!(kept.collect::<Vec<_>>()).to_string();
    Response::new(StatusCode::OK, list).with_header("Content-Type", "application/json")
}
