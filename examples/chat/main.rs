//! A chat: names, rooms, presence, private messages, and replay for late joiners and reconnecting clients.
//!
//! ```sh
//! cargo run --example chat
//! ```
//!
//! Open <http://127.0.0.1:8080> in two windows and write. To listen on another address: `cargo run --example chat --
//! 127.0.0.1:9000`. On several machines: `cargo run --features cluster --example chat -- 127.0.0.1:9000 redis://localhost`; each of
//! them lists its own people only. The guide explains how it works: docs/chat.md.
//!
//! The protocol is JSON. A client connects to `/chat?room=ROOM&name=NAME`. It may add `&person=KEY`, a secret that
//! identifies the person on later connections, and `&since=ID`, the last message that it has received. It sends
//! `{"text": "…", "key": "…"}`, with `"to": "NAME"` for a private message. It receives objects with these types
//! (`{"type": …}`):
//!
//! | | |
//! |---|---|
//! | `said` `{id, from, text, at, key}` | a message to the room; kept, and replayed to late joiners |
//! | `private` `{from, to, text, at, key}` | a message to one person; not kept |
//! | `welcome` `{you, room, people}` | the name of the client, and the people in the room; follows the replay |
//! | `came` `{name}` · `left` `{name}` · `renamed` `{from, to}` | a change of the people in the room |
//! | `gap` `{restarted}` | some messages after `since` are no longer kept; precedes the replay |
//! | `refused` `{key, why}` | the message of the client was not sent |

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::procedures::{CLIENT_JS, Procedures};
use humphrey_ws::{
    Accept, AsyncSender, AsyncStream, AsyncWebsocketApp, CloseCode, HistoryId, HistoryLimits,
};
use humphrey_ws::{JoinError, JoinErrorReason, Limits, Message, Origins, Reject, RequestHead};
use serde_json::{Value, json};

use std::collections::HashMap;
use std::env;
use std::hash::{BuildHasher, RandomState};
use std::iter;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const NAME_CHARS_MAX: usize = 24;
const TEXT_CHARS_MAX: usize = 2_000;
const PEOPLE_MAX: usize = 100;
/// History of each room: number of messages, and their bytes together.
const HISTORY_MESSAGES: usize = 50;
const HISTORY_BYTES: usize = 64 * 1024;
/// Rate limit of a connection: one message per `PACE`, with bursts of up to `BURST`.
const PACE: Duration = Duration::from_millis(500);
const BURST: u32 = 20;
/// A person who reconnects within this time has not left, for example after a reload or in a tunnel.
const GRACE: Duration = Duration::from_secs(5);

/// The people in each room. The lock is held while changes are broadcast, so that every client receives them in the
/// same order.
#[derive(Default)]
struct Chat(Mutex<HashMap<String, Vec<Person>>>);

struct Person {
    key: String,
    wanted_name: String,
    /// Unique in the room.
    name: String,
}

/// A connection: one window of a person, who may have several. It is in three rooms of the library.
#[derive(Default)]
struct Guest {
    room: String,
    wanted_name: String,
    key: String,
    since: Option<HistoryId>,
    spoken: Mutex<Option<Instant>>,
}

type Stream = AsyncStream<Guest>;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let (leaving, left) = mpsc::sync_channel::<(Instant, Arc<Guest>)>(10_000);

    let app = AsyncWebsocketApp::<Chat, Guest>::new()
        .with_address(address)
        .with_routes(page())
        .with_allowed_origins(Origins::Same)
        .with_limits(
            Limits::default()
                .message_bytes_max(32 * 1024)
                // Rooms of the library, including those of people. Histories take at most 256 MiB.
                .rooms_max(4_000)
                .peer_connections_max(Some(200)),
        )
        .with_heartbeat(Heartbeat::new(
            Duration::from_secs(20),
            Duration::from_secs(30),
        ))
        .with_history(
            "talk/*",
            HistoryLimits::messages(HISTORY_MESSAGES).bytes(HISTORY_BYTES),
        )
        // No procedures of its own: the page's client uses the library's `$ping`.
        .with_procedures(Procedures::new())
        .with_handshake_handler(|request, _| guest(request))
        .with_connect_handler(enter)
        .with_message_handler(say)
        .with_disconnect_handler(move |stream, _| {
            let _ = leaving.send((Instant::now(), stream.state.clone()));
        });

    #[cfg(feature = "cluster")]
    let app = match env::args().nth(2) {
        Some(url) => app.with_cluster(url.as_str()),
        None => app,
    };

    // The grace period is the same for all, so people leave in order, and one thread suffices.
    let (chat, live) = (app.get_state(), app.sender());
    thread::spawn(move || {
        for (since, guest) in left {
            thread::sleep((since + GRACE).saturating_duration_since(Instant::now()));
            leave(&guest, &chat, &live);
        }
    });

    app.run();
}

/// Accepts or rejects a handshake.
fn guest(request: &RequestHead) -> Result<Accept<Guest>, Reject> {
    let bad = |what: &str| Reject::new(400).with_body(format!("{what}\n"));
    if request.path() != "/chat" {
        return Err(Reject::new(404));
    }
    let query = |name| request.query_param(name).unwrap_or_default();
    let given = |name| Some(query(name)).filter(|value| !value.is_empty());
    let guest = Guest {
        room: clean(&query("room")).ok_or_else(|| bad("which room?"))?,
        wanted_name: clean(&query("name")).ok_or_else(|| bad("what name?"))?,
        // A client without a key is a new person at each connection.
        key: given("person").unwrap_or_else(random),
        since: given("since")
            .map(|id| id.parse())
            .transpose()
            .map_err(|_| bad("since when?"))?,
        ..Guest::default()
    };
    if guest.key.len() > 64 || guest.room.contains('/') {
        return Err(bad("too long a person, or a / in the room"));
    }
    Ok(Accept::new().with_state(guest))
}

/// Returns a name on one line, of bounded length and without invisible characters; `None` if nothing remains.
fn clean(name: &str) -> Option<String> {
    let is_seen = |c: &char| {
        !c.is_control()
            && !matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            && !matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let words: Vec<&str> = name.split_whitespace().collect();
    let words = words.join(" ");
    let name: String = words.chars().filter(is_seen).take(NAME_CHARS_MAX).collect();
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

fn random() -> String {
    format!("{:x}", RandomState::new().hash_one(()))
}

impl Guest {
    /// The room of messages that are kept.
    fn talk_room(&self) -> String {
        format!("talk/{}", self.room)
    }

    /// The room of presence changes, which are not kept.
    fn here_room(&self) -> String {
        format!("here/{}", self.room)
    }

    /// The room of all windows of one person, for private messages.
    fn person_room(&self, key: &str) -> String {
        format!("person/{}/{key}", self.room)
    }

    /// Whether the rate limit allows another message.
    fn may_speak(&self) -> bool {
        let (now, mut spoken) = (Instant::now(), self.spoken.lock().unwrap());
        let until = spoken.unwrap_or(now).max(now) + PACE;
        let may = until <= now + PACE * BURST;
        if may {
            *spoken = Some(until);
        }
        may
    }
}

fn enter(stream: Stream, chat: Arc<Chat>) {
    let guest = &*stream.state;
    let mut rooms = chat.0.lock().unwrap();
    let people = rooms.entry(guest.room.clone()).or_default();
    let known = people.iter().position(|person| person.key == guest.key);
    if known.is_none() && people.len() >= PEOPLE_MAX {
        return stream.close(CloseCode::POLICY_VIOLATION, "This room is full.");
    }
    // The disconnect handler runs in any case, and removes this person again.
    let before = known.map(|known| people.remove(known));
    let name = match &before {
        Some(before) if before.wanted_name == guest.wanted_name => before.name.clone(),
        _ => free_name(people, &guest.wanted_name),
    };
    people.push(Person {
        key: guest.key.clone(),
        wanted_name: guest.wanted_name.clone(),
        name: name.clone(),
    });

    if let Err(error) = join(&stream) {
        return stream.close(CloseCode::TRY_AGAIN_LATER, &error.to_string());
    }
    let names: Vec<&str> = people.iter().map(|person| &*person.name).collect();
    let welcome = json!({"you": name, "room": guest.room, "people": names});
    stream.send(message("welcome", welcome));
    let change = match before {
        None => message("came", json!({"name": name})),
        Some(old) if old.name != name => message("renamed", json!({"from": old.name, "to": name})),
        Some(_) => return,
    };
    let here = stream.room(&guest.here_room());
    here.broadcast_except(stream.id(), change);
}

/// Joins the rooms, and replays the messages after the last one that the client has, or all that are kept.
fn join(stream: &Stream) -> Result<(), JoinError> {
    let guest = &*stream.state;
    stream.try_join(&guest.here_room())?;
    stream.try_join(&guest.person_room(&guest.key))?;
    let talk = stream.room(&guest.talk_room());
    let joined = stream.join_since(&guest.talk_room(), guest.since);
    match (joined, guest.since) {
        (Err(error), Some(since)) if error.reason == JoinErrorReason::HistoryGone => {
            let last = talk.last_id();
            let restarted = last.is_none_or(|last| last.epoch() != since.epoch());
            stream.send(message("gap", json!({"restarted": restarted})));
            stream.join_since(&guest.talk_room(), None)
        }
        (joined, _) => joined,
    }
    .map(drop)
}

fn leave(guest: &Guest, chat: &Chat, live: &AsyncSender) {
    let mut rooms = chat.0.lock().unwrap();
    if !live.room(&guest.person_room(&guest.key)).is_empty() {
        return;
    }
    let Some(people) = rooms.get_mut(&guest.room) else {
        return;
    };
    let known = people.iter().position(|person| person.key == guest.key);
    if let Some(known) = known {
        let change = message("left", json!({"name": people.remove(known).name}));
        live.room(&guest.here_room()).broadcast(change);
    }
    if people.is_empty() {
        rooms.remove(&guest.room);
    }
}

/// Returns the name, with a number appended if it is taken.
fn free_name(people: &[Person], wanted: &str) -> String {
    let is_free = |name: &String| {
        let name = name.to_lowercase();
        people.iter().all(|other| other.name.to_lowercase() != name)
    };
    let numbered = (2..).map(|number: u32| format!("{wanted} {number}"));
    let mut names = iter::once(wanted.to_owned()).chain(numbered);
    names.find(is_free).unwrap_or_default()
}

fn say(stream: Stream, message: Message, chat: Arc<Chat>) {
    let request: Value = serde_json::from_slice(message.bytes()).unwrap_or_default();
    let field = |name: &str| request[name].as_str().map(str::to_owned);
    let key = field("key").filter(|key| key.len() <= 64);
    if let Err(why) = try_say(&stream, field("text"), field("to"), &key, &chat) {
        stream.send(self::message("refused", json!({"key": key, "why": why})));
    }
}

fn try_say(
    stream: &Stream,
    text: Option<String>,
    to: Option<String>,
    key: &Option<String>,
    chat: &Chat,
) -> Result<(), String> {
    let guest = &*stream.state;
    let text = text
        .filter(|text| !text.trim().is_empty())
        .ok_or("The message is empty.")?;
    if text.chars().count() > TEXT_CHARS_MAX {
        return Err(format!(
            "The message is longer than {TEXT_CHARS_MAX} characters."
        ));
    }
    if !guest.may_speak() {
        return Err("You are sending too fast.".into());
    }
    let key_and_name = |is_it: &dyn Fn(&Person) -> bool| {
        let rooms = chat.0.lock().unwrap();
        let person = rooms
            .get(&guest.room)?
            .iter()
            .find(|person| is_it(person))?;
        Some((person.key.clone(), person.name.clone()))
    };
    let (_, from) = key_and_name(&|person| person.key == guest.key).ok_or("You are not here.")?;
    let at = SystemTime::now().duration_since(UNIX_EPOCH);
    let at = at.map_or(0, |at| at.as_millis() as u64);

    let Some(to) = to else {
        let said = |id: Option<HistoryId>| {
            let id = id.map(|id| id.to_string());
            let said = json!({"id": id, "from": from, "text": text, "at": at, "key": key});
            message("said", said)
        };
        let id = stream.room(&guest.talk_room()).broadcast_with(said);
        return id.map(drop).ok_or("The server is stopping.".into());
    };
    let windows = |key: &str| stream.room(&guest.person_room(key));
    let (to_key, to) = key_and_name(&|person| person.name == to)
        .filter(|(key, _)| !windows(key).is_empty())
        .ok_or_else(|| format!("{to} is not here."))?;
    let private = message(
        "private",
        json!({"from": from, "to": to, "text": text, "at": at, "key": key}),
    );
    windows(&to_key).broadcast(private.clone());
    if to_key != guest.key {
        windows(&guest.key).broadcast(private);
    }
    Ok(())
}

fn message(kind: &str, mut content: Value) -> Message {
    content["type"] = kind.into();
    Message::new(content.to_string())
}

/// The page loads nothing from other hosts and runs only its own script, so markup in messages stays text.
fn page() -> SubApp<Chat> {
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
        .with_stateless_route("/client.js", file(CLIENT_JS, "javascript"))
        .with_stateless_route("/page.js", file(include_str!("page.js"), "javascript"))
}
