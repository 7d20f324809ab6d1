//! Rooms of the server under test, whose messages are numbered. One lock orders the broadcasts to a room and its joins and
//! leaves, so that the server can tell each member exactly which messages it must receive.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::SeqCst;

use humphrey_ws::{AsyncStream, HistoryId, JoinErrorReason, Message};

use super::state::{HandlerOrder, ServerState};
use crate::check::Outcome;
use crate::text;

/// Rooms whose names begin so keep a history.
pub(crate) const KEPT: &str = "kept/";
/// How many messages these rooms keep, and how many bytes of them.
pub(crate) const KEPT_MESSAGES: usize = 32;
pub(crate) const KEPT_BYTES: usize = 8 << 10;
/// The room that gets more than slow readers read.
pub(crate) const FIRE: &str = "fire";
/// The origin of the messages to everyone.
pub(crate) const EVERYONE: &str = "*";

/// The longest message to a room.
pub(crate) fn bytes_max(room: &str) -> usize {
    match room {
        FIRE => 8_000,
        _ => 300,
    }
}

/// How many messages a room gets in a round.
pub(crate) fn messages_per_round(room: &str) -> u64 {
    match room {
        FIRE => 4,
        _ => 1,
    }
}

/// Executes a client's command, and answers it.
pub(super) fn received(stream: &AsyncStream<HandlerOrder>, text: &str, shared: &ServerState) {
    let mut words = text.split(' ');
    let verb = words.next().unwrap_or_default();
    let room = words.next().unwrap_or_default();
    let answer = match verb {
        "join" => join(stream, room, shared),
        "leave" => leave(stream, room, shared),
        "since" => match words.next().map(str::parse).transpose() {
            Ok(id) => join_since(stream, room, id, shared),
            Err(error) => return shared.violated(&format!("{text:?}: {error}")),
        },
        "echo" => text.to_owned(),
        _ => return shared.violated(&format!("an unknown command: {text:?}")),
    };
    shared.send(stream, Message::new(answer));
}

/// Tells the client the number of the first message that it receives.
fn join(stream: &AsyncStream<HandlerOrder>, room: &str, shared: &ServerState) -> String {
    let mut numbers = shared.rooms.lock();
    let next = *numbers.entry(room.to_owned()).or_insert(1);
    if let Err(error) = stream.try_join(room) {
        shared.violated(&error.to_string());
    }
    format!("joined {room} {next} 0")
}

/// Tells the client the number after the last message that it receives.
fn leave(stream: &AsyncStream<HandlerOrder>, room: &str, shared: &ServerState) -> String {
    let numbers = shared.rooms.lock();
    let next = numbers.get(room).copied().unwrap_or_default();
    stream.leave(room);
    format!("left {room} {next}")
}

/// Tells the client the number of the first message that is not replayed, and how many are.
fn join_since(
    stream: &AsyncStream<HandlerOrder>,
    room: &str,
    id: Option<HistoryId>,
    shared: &ServerState,
) -> String {
    let mut numbers = shared.rooms.lock();
    let next = *numbers.entry(room.to_owned()).or_insert(1);
    match stream.join_since(room, id) {
        Ok(replayed) => {
            shared.replayed.fetch_add(replayed as u64, SeqCst);
            format!("joined {room} {next} {replayed}")
        }
        Err(error) => {
            if error.reason != JoinErrorReason::HistoryGone {
                shared.violated(&error.to_string());
            }
            format!("gone {room}")
        }
    }
}

/// Sends a round of messages: to each room, and then to everyone. Returns the number of the next message to each room and to
/// everyone.
pub(super) fn broadcast_round(shared: &ServerState, round: u64) -> Outcome<String> {
    let sender = shared.sender()?;
    let names: Vec<String> = shared.rooms.lock().keys().cloned().collect();
    for name in names {
        let room = sender.room(&name);
        for _ in 0..messages_per_round(&name) {
            let mut numbers = shared.rooms.lock();
            let Some(next) = numbers.get_mut(&name) else {
                break;
            };
            let number = *next;
            *next += 1;
            let text = text::numbered(shared.seed, &name, number, bytes_max(&name));
            let recipients = room.len() as u64;
            if name.starts_with(KEPT) {
                room.broadcast_with(|id| match id {
                    Some(id) => Message::new(format!("{id} {text}")),
                    None => Message::new(&text),
                });
            } else if recipients == 0 {
                numbers.remove(&name);
                break;
            } else {
                room.broadcast(Message::new(text));
            }
            shared.due.fetch_add(recipients, SeqCst);
        }
    }
    let everyone = sender.everyone();
    shared.due.fetch_add(everyone.len() as u64, SeqCst);
    let text = text::numbered(shared.seed, EVERYONE, round, bytes_max(EVERYONE));
    everyone.broadcast(Message::new(text));
    let mut line = format!("{EVERYONE}={} ", round + 1);
    for (name, next) in &*shared.rooms.lock() {
        let _ = write!(line, "{name}={next} ");
    }
    Ok(line)
}
