//! A chat: names, rooms, presence, private messages, and replay for late joiners and reconnecting clients.
//!
//! ```sh
//! cargo run --example chat
//! ```
//!
//! Open <http://127.0.0.1:8080> in two windows and write. To listen on another address: `cargo run --example chat --
//! 127.0.0.1:9000`. On several machines: `cargo run --features cluster --example chat -- 127.0.0.1:9000 redis://localhost`. The guide
//! explains how it works: docs/chat.md.
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
//! | `welcome` `{you, room, people}` | the name of the client, and of the people in the room; follows the replay |
//! | `gap` `{restarted}` | some messages after `since` are no longer kept; precedes the replay |
//! | `refused` `{key, why}` | the message of the client was not sent |
//!
//! Who comes and goes is the presence of the room `here/ROOM`, which a client of the procedures' subprotocol is told
//! (`join(…, { onPresence })` of the JavaScript client). Each person's state is `{"name": …, "wanted": …}`.

use humphrey::SubApp;
use humphrey::http::{Response, StatusCode};
use humphrey_ws::ping::Heartbeat;
use humphrey_ws::procedures::{CLIENT_JS, Procedures};
use humphrey_ws::{
    Accept, AsyncStream, AsyncWebsocketApp, CloseCode, HistoryId, HistoryLimits, JoinError,
};
use humphrey_ws::{JoinErrorReason, Limits, Message, Origins, PresenceRooms, Reject, RequestHead};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use std::env;
use std::hash::{BuildHasher, RandomState};
use std::iter;
use std::sync::{Arc, Mutex};
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

/// Held while a name is chosen, so that no two people get the same one. People on two nodes of a cluster may, if they come at the
/// same moment.
#[derive(Default)]
struct Chat(Mutex<()>);

/// A person in a room, as the presence of the room has it.
struct Person {
    /// Made of the secret key, and known to everyone.
    id: String,
    wanted_name: String,
    name: String,
    /// 0 while the person may come back.
    windows: usize,
}

/// A connection: one window of a person, who may have several. It is in three rooms of the library.
#[derive(Default)]
struct Guest {
    room: String,
    wanted_name: String,
    id: String,
    since: Option<HistoryId>,
    spoken: Mutex<Option<Instant>>,
}

type Stream = AsyncStream<Guest>;

fn main() {
    let address = env::args().nth(1).unwrap_or("127.0.0.1:8080".into());

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
        .with_presence(PresenceRooms::new("here/*").grace(GRACE))
        // No procedures of its own: the page's client uses those of the library, to watch who is here.
        .with_procedures(Procedures::new())
        .with_join_handler(|stream, room| room == stream.state.here_room())
        .with_handshake_handler(|request, _| guest(request))
        .with_connect_handler(enter)
        .with_message_handler(say);

    #[cfg(feature = "cluster")]
    let app = match env::args().nth(2) {
        Some(url) => app.with_cluster(url.as_str()),
        None => app,
    };

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
    // A client without a key is a new person at each connection.
    let key = given("person").unwrap_or_else(random);
    if key.len() > 64 {
        return Err(bad("too long a person"));
    }
    let guest = Guest {
        room: clean(&query("room")).ok_or_else(|| bad("which room?"))?,
        wanted_name: clean(&query("name")).ok_or_else(|| bad("what name?"))?,
        id: id_of(&key),
        since: given("since")
            .map(|id| id.parse())
            .transpose()
            .map_err(|_| bad("since when?"))?,
        ..Guest::default()
    };
    if guest.room.contains('/') {
        return Err(bad("a / in the room"));
    }
    // All connections of a person are one user.
    Ok(Accept::new().user(guest.id.clone()).with_state(guest))
}

/// Makes the public id of a person, the same on all servers. Nobody can compute the secret key from it.
fn id_of(key: &str) -> String {
    let hash = Sha256::digest(key);
    hash[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
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

    /// The room whose presence says who is here.
    fn here_room(&self) -> String {
        format!("here/{}", self.room)
    }

    /// The room of all windows of one person, for private messages.
    fn person_room(&self, id: &str) -> String {
        format!("person/{}/{id}", self.room)
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
    let here = guest.here_room();
    if let Err(error) = stream.try_join(&here) {
        return stream.close(CloseCode::TRY_AGAIN_LATER, &error.to_string());
    }
    // The first time, it waits for the answers of other nodes, which would delay others if it were done with the lock.
    people(&stream);
    let naming = chat.0.lock().unwrap();
    let mut people = people(&stream);
    let known = people.iter().position(|person| person.id == guest.id);
    let before = known.map(|known| people.remove(known));
    if before.is_none() && people.len() >= PEOPLE_MAX {
        return stream.close(CloseCode::POLICY_VIOLATION, "This room is full.");
    }
    let name = match before {
        Some(before) if before.wanted_name == guest.wanted_name => before.name,
        _ => free_name(&people, &guest.wanted_name),
    };
    let state = json!({"name": name, "wanted": guest.wanted_name});
    stream.set_presence(&here, state.to_string());
    drop(naming);
    if let Err(error) = join(&stream) {
        return stream.close(CloseCode::TRY_AGAIN_LATER, &error.to_string());
    }
    let mut names: Vec<_> = people.into_iter().map(|person| person.name).collect();
    names.push(name.clone());
    names.sort();
    let welcome = json!({"you": name, "room": guest.room, "people": names});
    stream.send(message("welcome", welcome));
}

/// The people in the room of a client, without those who have no name yet.
fn people(stream: &Stream) -> Vec<Person> {
    let present = stream.room(&stream.state.here_room()).presence();
    let person = |member: &humphrey_ws::PresentMember| {
        let state: Value = serde_json::from_slice(&member.state).ok()?;
        Some(Person {
            id: member.user.clone()?,
            wanted_name: state["wanted"].as_str()?.to_owned(),
            name: state["name"].as_str()?.to_owned(),
            windows: member.connections,
        })
    };
    present.members.iter().filter_map(person).collect()
}

/// Joins the rooms of messages, and replays those after the last one that the client has, or all that are kept.
fn join(stream: &Stream) -> Result<(), JoinError> {
    let guest = &*stream.state;
    stream.try_join(&guest.person_room(&guest.id))?;
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

fn say(stream: Stream, message: Message, _: Arc<Chat>) {
    let request: Value = serde_json::from_slice(message.bytes()).unwrap_or_default();
    let field = |name: &str| request[name].as_str().map(str::to_owned);
    let key = field("key").filter(|key| key.len() <= 64);
    if let Err(why) = try_say(&stream, field("text"), field("to"), &key) {
        stream.send(self::message("refused", json!({"key": key, "why": why})));
    }
}

fn try_say(
    stream: &Stream,
    text: Option<String>,
    to: Option<String>,
    key: &Option<String>,
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
    let people = people(stream);
    let find = |is_it: &dyn Fn(&&Person) -> bool| people.iter().find(is_it);
    let from = find(&|person| person.id == guest.id).ok_or("You are not here.")?;
    let from = &from.name;
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
    let recipient = find(&|person| person.name == to && person.windows > 0);
    let recipient = recipient.ok_or_else(|| format!("{to} is not here."))?;
    let windows = |id: &str| stream.room(&guest.person_room(id));
    let private = message(
        "private",
        json!({"from": from, "to": to, "text": text, "at": at, "key": key}),
    );
    windows(&recipient.id).broadcast(private.clone());
    if recipient.id != guest.id {
        windows(&guest.id).broadcast(private);
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
