//! The reserved calls that the server answers itself; their names begin with `$`.

use super::join::JoinHandler;
use super::payload::{CallError, Payload};
use super::peer::CallOutcome;
use super::refresh::RefreshHandler;
use crate::async_app::publish::AppShared;
use crate::async_app::stream::AsyncStream;
use crate::error::JoinErrorReason;
use crate::history_id::HistoryId;
use crate::message::Message;
use crate::protocol::procedures::{self, take_name};

/// The error of a join that asks for messages after one that is no longer kept.
const GAP: &[u8] = b"gap";

type BuiltinCall<StreamState> = fn(&Asker<'_, StreamState>, &[u8]) -> CallOutcome;

/// The call: its connection, its app and its id.
pub(super) struct Asker<'a, StreamState>
where
    StreamState: Send + Sync + Default + 'static,
{
    pub(super) stream: &'a AsyncStream<StreamState>,
    pub(super) shared: &'a AppShared,
    pub(super) on_join: Option<&'a dyn JoinHandler<StreamState>>,
    pub(super) on_refresh: Option<&'a dyn RefreshHandler<StreamState>>,
    pub(super) id: u32,
}

pub(super) fn builtin<StreamState>(name: &str) -> Option<BuiltinCall<StreamState>>
where
    StreamState: Send + Sync + Default + 'static,
{
    match name {
        "$ping" => Some(|_, payload| Ok(payload.into())),
        "$join" => Some(join),
        "$leave" => Some(leave),
        "$watch" => Some(watch),
        "$presence" => Some(presence),
        "$refresh" => Some(refresh),
        _ => None,
    }
}

/// From where the room's kept messages are replayed to a client that joins.
enum Since {
    /// New messages only.
    New,
    /// All kept messages.
    All,
    Id(HistoryId),
}

fn parse_join(mut payload: &[u8]) -> Result<(&str, Since), CallError> {
    let room = take_name(&mut payload).map_err(|malformed| malformed.to_string())?;
    let since = match payload {
        b"new" => Since::New,
        b"all" => Since::All,
        id => {
            let id = std::str::from_utf8(id).map_err(|_| "the id is not UTF-8")?;
            Since::Id(id.parse().map_err(|error| format!("{error}"))?)
        }
    };
    Ok((room, since))
}

/// Checks whether clients may join and leave a room by themselves.
fn check_open<StreamState>(asker: &Asker<'_, StreamState>, room: &str) -> Result<(), CallError>
where
    StreamState: Send + Sync + Default + 'static,
{
    match asker
        .on_join
        .is_some_and(|allows| allows(asker.stream, room))
    {
        true => Ok(()),
        false => Err(CallError::refused("this room is not open to clients")),
    }
}

fn join<StreamState>(asker: &Asker<'_, StreamState>, payload: &[u8]) -> CallOutcome
where
    StreamState: Send + Sync + Default + 'static,
{
    let stream = asker.stream;
    let (name, since) = parse_join(payload)?;
    check_open(asker, name)?;
    let position = || {
        let room = asker.shared.rooms.find(name)?;
        Some(room.history()?.position())
    };
    if !matches!(since, Since::New)
        && position().is_some()
        && stream.room(name).contains(stream.id())
    {
        // Nothing would be replayed to a client that is in the room already.
        stream.leave(name);
    }
    let gap = || stream.send(Message::new_binary(procedures::item(asker.id, GAP)));
    let joined = match since {
        Since::New => stream.try_join(name),
        Since::All => stream.join_since(name, None).map(drop),
        Since::Id(id) => match stream.join_since(name, Some(id)) {
            Err(error) if error.reason == JoinErrorReason::HistoryGone => {
                gap();
                stream.join_since(name, None).map(drop)
            }
            joined => joined.map(drop),
        },
    };
    joined.map_err(|error| match error.reason {
        // The client retries.
        #[cfg(feature = "cluster")]
        JoinErrorReason::Broker => CallError::busy(error.to_string()),
        _ => CallError::refused(error.to_string()),
    })?;
    // After the replay: messages sent to the room up to here reach the client before the answer does.
    Ok(position().map_or_else(Payload::default, |position| position.to_string().into()))
}

fn leave<StreamState>(asker: &Asker<'_, StreamState>, payload: &[u8]) -> CallOutcome
where
    StreamState: Send + Sync + Default + 'static,
{
    let room = std::str::from_utf8(payload).map_err(|_| "the room's name is not UTF-8")?;
    // Where the program has put a client in a room, for example one of muted clients, only the program removes it.
    check_open(asker, room)?;
    asker.stream.leave(room);
    Ok(Payload::default())
}

/// Joins a room, and begins to tell the client who is in it.
fn watch<StreamState>(asker: &Asker<'_, StreamState>, payload: &[u8]) -> CallOutcome
where
    StreamState: Send + Sync + Default + 'static,
{
    let (name, _) = parse_join(payload)?;
    let stream = asker.stream;
    let was_member = stream.room(name).contains(stream.id());
    let joined = join(asker, payload)?;
    let (session, shared) = stream.session().ok_or("the connection has gone")?;
    if let Err(refused) = shared.watch_presence(name, session) {
        if !was_member {
            stream.leave(name);
        }
        return Err(CallError::refused(refused.to_string()));
    }
    Ok(joined)
}

/// Prolongs the session of the client, which has a fresh token. Its new expiry follows as a notification.
fn refresh<StreamState>(asker: &Asker<'_, StreamState>, payload: &[u8]) -> CallOutcome
where
    StreamState: Send + Sync + Default + 'static,
{
    let handler = asker
        .on_refresh
        .ok_or_else(|| CallError::refused("this server prolongs no sessions"))?;
    let token = std::str::from_utf8(payload).map_err(|_| "the token is not UTF-8")?;
    let expires_at = handler(asker.stream, token)?;
    // The program may have made it permanent meanwhile.
    if let Some((session, shared)) = asker.stream.session()
        && shared.expires(session)
    {
        asker.stream.set_expires_at(expires_at);
    }
    Ok(Payload::from(""))
}

/// Returns who is in a room.
fn presence<StreamState>(asker: &Asker<'_, StreamState>, payload: &[u8]) -> CallOutcome
where
    StreamState: Send + Sync + Default + 'static,
{
    let room = std::str::from_utf8(payload).map_err(|_| "the room's name is not UTF-8")?;
    if room.len() > procedures::NAME_BYTES_MAX {
        return Err("the room's name is longer than 255 bytes".into());
    }
    check_open(asker, room)?;
    if !asker.shared.keeps_presence(room) {
        return Err(CallError::refused("the presence of this room is not kept"));
    }
    Ok(asker.shared.presence_of(room).to_json().into())
}
