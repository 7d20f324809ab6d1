//! Notifications: one room for each user. A parcel ("Paekli") is posted over HTTP; every device of its recipient that is
//! connected hears of it at once, and the others find it when they ask.
//!
//! ```sh
//! cargo run --example notifications
//! ```
//!
//! In the consoles of some browser windows, subscribe to one recipient, or to all by leaving the parameter away:
//!
//! ```js
//! ws = new WebSocket('ws://127.0.0.1:8080/notifications?recipient=ada'); ws.onmessage = e => console.log(e.data)
//! ```
//!
//! Then, from a shell, send something, with or without anybody listening, and list what there is:
//!
//! ```sh
//! curl -d 'Cookies from home.' http://127.0.0.1:8080/paekli/ada
//! curl http://127.0.0.1:8080/paekli/ada
//! ```
//!
//! The same inside an existing Humphrey app: `cargo run --example notifications -- 127.0.0.1:8080 --linked`.

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

/// Recipients that something is kept for, and how much for each.
const RECIPIENTS_MAX: usize = 10_000;
const PARCELS_MAX: usize = 100;
const PARCEL_BYTES_MAX: usize = 4096;
/// The room of those who want to hear of everything. No recipient's has this name.
const EVERYTHING: &str = "everything";

/// In place of a database: the parcels of each recipient, numbered from 1.
#[derive(Default)]
struct Office(Mutex<HashMap<String, VecDeque<(u64, String)>>>);

/// A WebSocket app, whose streams have the room that they have subscribed to as their state.
type Notifications<State> = AsyncWebsocketApp<State, String>;

fn main() {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:8080".into());
    match arguments.next().as_deref() {
        Some("--linked") => linked(address),
        _ => alone(address),
    }
}

/// An app of one's own, which serves the route as well.
fn alone(address: String) {
    let app = Notifications::<Office>::new();
    let live = app.sender();
    let paekli = move |request, office| paekli(request, office, &live);
    with_subscriptions(app)
        .with_address(address)
        .with_routes(SubApp::new().with_route("/paekli/*", paekli))
        .run();
}

/// The same in a Humphrey app that is there already.
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

/// `/notifications`, with or without `?recipient=NAME`. Whoever may not know everything is to be stopped here.
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
        // Who asks for the list after this misses nothing.
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

/// `POST` stores a parcel and tells of it; `GET` lists what is kept.
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

    // That nobody listens is no error: it has been stored.
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
