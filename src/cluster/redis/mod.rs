//! A connection to a Redis or Valkey server, as a state machine without I/O.
//!
//! Messages are published with pub/sub. A payload is the id of the message, if it is in a history, then a line feed, and
//! the envelope. A history is a list of envelopes and a string with its position, which one script appends to, and another
//! one reads:
//!
//! - The string contains the epoch, the sequences of the last message and of the beginning, the bytes of the list, and the
//!   `run_id` of the server, which changes when the server restarts or another one takes its place. An append or a read on a
//!   server with another `run_id` begins a new epoch, since acknowledged messages may have been lost. The messages that are
//!   still there remain, under ids of the new epoch.
//! - A string for each node contains the counter of its last append. An append whose counter is not higher is not executed
//!   again. A [conflict](Appended::Conflict) uses up the counter, too. So an append that is repeated after a lost reply may
//!   be answered with [`Appended::Before`] though there was a conflict; the history then does not contain its envelope. If
//!   the counter was deleted, a repeated append is not executed.
//!   A refused append has to be sent with a new counter, since later ones may have been executed.
//! - An append begins the history before it compares the expected position. So the start of the new epoch is what an append
//!   has to expect if there is no history, not even messages that have survived.
//! - All keys expire, with each append anew, and those of a room with each read: after [`RedisSettings::history_expiry`],
//!   counters after an hour.
//!
//! Replies arrive in the order of the commands, with messages between them; so a queue of unanswered commands is enough to
//! assign them. A message that this connection has sent itself may arrive before or after the reply to its command.
//!
//! A user of the server needs these rights: `~prefix:* &prefix:* +hello +info +publish +subscribe +unsubscribe`, `+select`
//! if the URL has a database, and for histories
//! `+evalsha +script|load +get +mget +set +llen +lrange +rpush +lpop +pexpire`.

mod errors;
mod names;
mod resp;
mod scripts;
pub(super) mod sentinel;
pub(crate) mod url;

#[cfg(all(test, not(loom)))]
mod history_tests;
#[cfg(all(test, not(loom)))]
mod hostile_tests;
#[cfg(all(test, not(loom)))]
mod read_tests;
#[cfg(all(test, not(loom)))]
mod server_tests;
#[cfg(all(test, not(loom)))]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::errors::{CLUSTER, Consequence, LOADING, REPLICA, SENTINEL, ServerError, Setup, VERSION};
use self::names::RedisNames;
use self::resp::{Decimal, RespDecoder, RespFrame, RespValue, put_argument, put_command};
use self::scripts::{APPEND, READ, RedisScript};
use self::url::RedisLogin;
use super::broker::{
    Append, Appended, Broker, BrokerError, Channel, Command, Event, History, Incarnation, Kind,
    READ_SHARED_BYTES_MAX, Read, Refused,
};
use crate::history_id::HistoryId;

/// The most channels of one command, so that a server with many subscriptions serves others in between.
const CHANNELS_PER_COMMAND: usize = 1_000;
/// The most bytes of a history that are read at once, by default.
const HISTORY_READ_BYTES_MAX: usize = 16 << 20;
/// How long a server remembers the counter of a node's last append.
const COUNTER_EXPIRY_MS: u64 = 3_600_000;
/// A server rejects expiries that end after the year 292 million.
const EXPIRY_MS_MAX: u64 = 1 << 53;
/// What a message in a reply is accounted for, in addition to its length.
const MESSAGE_OVERHEAD_BYTES: u64 = 16;
/// The longest id, `ffffffffffffffff-18446744073709551615`, and the line feed.
const ID_BYTES_MAX: usize = 16 + 1 + 20 + 1;

/// The settings of a connection.
#[derive(Debug, Clone)]
pub(crate) struct RedisSettings {
    pub(crate) login: RedisLogin,
    /// Whether the connection is encrypted.
    pub(crate) tls: bool,
    /// The longest envelope that is received. Longer ones are reported as empty; their bytes are not buffered. At least
    /// 64 KiB are received.
    pub(crate) message_bytes_max: usize,
    /// The most bytes of a history that are read at once. Older messages of a longer one count as no longer kept. Each
    /// message counts with its length and 16 bytes.
    pub(crate) history_read_bytes_max: usize,
    /// Several histories are read at once as far as all together have no more bytes than this. At most
    /// `history_read_bytes_max`.
    pub(crate) history_read_shared_bytes_max: usize,
    /// How long a history is kept after its last message.
    pub(crate) history_expiry: Duration,
}

impl RedisSettings {
    pub(crate) fn new(login: RedisLogin, tls: bool, message_bytes_max: usize) -> Self {
        Self {
            login,
            tls,
            message_bytes_max,
            // Far less than `client-output-buffer-limit pubsub`, at which a server disconnects a subscriber.
            history_read_bytes_max: HISTORY_READ_BYTES_MAX,
            history_read_shared_bytes_max: READ_SHARED_BYTES_MAX,
            history_expiry: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// A connection to a server.
///
/// [`Command::Subscribe`] with more than 1,000 channels becomes several commands, so [`Event::Refused`] may be reported for
/// each 1,000 of them.
#[derive(Debug)]
pub(crate) struct Redis {
    decoder: RespDecoder,
    session: RedisSession,
}

/// What is known of a connection, except received bytes.
#[derive(Debug)]
struct RedisSession {
    settings: RedisSettings,
    names: RedisNames,
    append: RedisScript,
    read: RedisScript,
    /// The unanswered commands, oldest first.
    unanswered: VecDeque<Unanswered>,
    /// `None` until the server has reported it.
    incarnation: Option<Incarnation>,
    /// Whether the scripts were sent to the server.
    has_loaded: bool,
    /// Why the server has not taken a script.
    load_error: Option<ServerError>,
}

/// A command that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unanswered {
    Setup(Setup),
    Load,
    /// The number of channels that have not been confirmed.
    Subscribe(u32),
    Unsubscribe(u32),
    Publish,
    Append,
    /// The rooms.
    Read(Vec<Arc<str>>),
}

impl Redis {
    pub(crate) fn new(settings: RedisSettings) -> Self {
        let decoder = RespDecoder::new(
            settings.message_bytes_max.saturating_add(ID_BYTES_MAX),
            settings.history_read_bytes_max,
        );
        let session = RedisSession {
            names: RedisNames::new(&settings.login.app),
            append: RedisScript::new(APPEND),
            read: RedisScript::new(READ),
            unanswered: VecDeque::new(),
            incarnation: None,
            has_loaded: false,
            load_error: None,
            settings,
        };
        Self { decoder, session }
    }
}

impl Broker for Redis {
    fn begins_tls(&self) -> bool {
        self.session.settings.tls
    }

    fn connect(&mut self, out: &mut Vec<u8>) {
        self.decoder.reset();
        self.session.connect(out);
    }

    fn command(&mut self, command: Command, out: &mut Vec<u8>) {
        self.session.command(command, out);
    }

    fn received(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), BrokerError> {
        self.decoder.push(bytes);
        while let Some(frame) = self.decoder.next().map_err(protocol)? {
            self.session.frame(frame, events)?;
        }
        Ok(())
    }
}

/// Sending.
impl RedisSession {
    fn connect(&mut self, out: &mut Vec<u8>) {
        self.unanswered.clear();
        self.incarnation = None;
        self.has_loaded = false;
        self.load_error = None;
        let login = &self.settings.login;
        let has_credentials = login.user.is_some() || login.password.is_some();
        put_command(out, if has_credentials { 7 } else { 4 });
        put_argument(out, &[b"HELLO"]);
        put_argument(out, &[b"3"]);
        if has_credentials {
            put_argument(out, &[b"AUTH"]);
            put_argument(
                out,
                &[login.user.as_deref().unwrap_or("default").as_bytes()],
            );
            put_argument(out, &[login.password.as_deref().unwrap_or("").as_bytes()]);
        }
        put_argument(out, &[b"SETNAME"]);
        put_argument(out, &[login.app.as_bytes()]);
        self.unanswered.push_back(Unanswered::Setup(Setup::Hello));
        if login.database != 0 {
            put_command(out, 2);
            put_argument(out, &[b"SELECT"]);
            put_argument(out, &[Decimal::new(login.database.into()).bytes()]);
            self.unanswered.push_back(Unanswered::Setup(Setup::Select));
        }
        put_command(out, 2);
        put_argument(out, &[b"INFO"]);
        put_argument(out, &[b"server"]);
        self.unanswered.push_back(Unanswered::Setup(Setup::Info));
        // While a server loads its data, it accepts these commands, and refuses others.
        put_command(out, 2);
        put_argument(out, &[b"INFO"]);
        put_argument(out, &[b"persistence"]);
        self.unanswered.push_back(Unanswered::Setup(Setup::Loading));
    }

    fn command(&mut self, command: Command, out: &mut Vec<u8>) {
        match command {
            Command::Subscribe(channels) => {
                for channels in channels.chunks(CHANNELS_PER_COMMAND) {
                    self.put_channels(b"SUBSCRIBE", channels, out);
                    let count = channels.len() as u32;
                    self.unanswered.push_back(Unanswered::Subscribe(count));
                }
            }
            Command::Unsubscribe(channels) => {
                for channels in channels.chunks(CHANNELS_PER_COMMAND) {
                    self.put_channels(b"UNSUBSCRIBE", channels, out);
                    let count = channels.len() as u32;
                    self.unanswered.push_back(Unanswered::Unsubscribe(count));
                }
            }
            Command::Publish { channel, envelope } => {
                out.reserve(envelope.len() + 256);
                put_command(out, 3);
                put_argument(out, &[b"PUBLISH"]);
                self.names.put_channel(out, &channel);
                put_argument(out, &[b"\n", &envelope]);
                self.unanswered.push_back(Unanswered::Publish);
            }
            Command::Append(append) => self.append(&append, out),
            Command::Read(reads) => self.read(reads, out),
        }
    }

    fn put_channels(&self, name: &[u8], channels: &[Channel], out: &mut Vec<u8>) {
        put_command(out, 1 + channels.len());
        put_argument(out, &[name]);
        for channel in channels {
            self.names.put_channel(out, channel);
        }
    }

    fn append(&mut self, append: &Append, out: &mut Vec<u8>) {
        self.load(out);
        out.reserve(append.envelope.len() + 1024);
        self.append.put_start(3, 11, out);
        self.names.put_room_keys(out, &append.room);
        self.names.put_counter_key(out, append.node);
        put_argument(out, &[Decimal::new(append.counter).padded()]);
        self.put_run_id(out);
        let new_epoch = format!("{:x}", append.new_epoch);
        put_argument(out, &[new_epoch.as_bytes()]);
        let expected = append.expected.map(|id| id.to_string());
        put_argument(out, &[expected.unwrap_or_default().as_bytes()]);
        for number in [
            append.messages_max.into(),
            append.bytes_max,
            self.expiry_ms(),
            COUNTER_EXPIRY_MS,
        ] {
            put_argument(out, &[Decimal::new(number).bytes()]);
        }
        self.names.put_room_channel(out, &append.room);
        put_argument(out, &[&append.envelope]);
        put_argument(out, &[if append.needs_counter { b"1" } else { b"0" }]);
        self.unanswered.push_back(Unanswered::Append);
    }

    fn read(&mut self, reads: Vec<Read>, out: &mut Vec<u8>) {
        self.load(out);
        self.read
            .put_start(2 * reads.len(), 5 + 4 * reads.len(), out);
        for read in &reads {
            self.names.put_room_keys(out, &read.room);
        }
        self.put_run_id(out);
        let bytes_max = self.settings.history_read_bytes_max as u64;
        let shared_bytes_max = self.settings.history_read_shared_bytes_max as u64;
        for number in [
            bytes_max,
            shared_bytes_max,
            MESSAGE_OVERHEAD_BYTES,
            self.expiry_ms(),
        ] {
            put_argument(out, &[Decimal::new(number).bytes()]);
        }
        for read in &reads {
            // No history has the empty epoch.
            let epoch = read.since.map(|id| format!("{:x}", id.epoch()));
            put_argument(out, &[epoch.unwrap_or_default().as_bytes()]);
            let since = read.since.map_or(0, |id| id.sequence());
            put_argument(out, &[Decimal::new(since).bytes()]);
            let new_epoch = format!("{:x}", read.new_epoch);
            put_argument(out, &[new_epoch.as_bytes()]);
            put_argument(out, &[if read.extends { b"1" } else { b"0" }]);
        }
        let rooms = reads.into_iter().map(|read| read.room).collect();
        self.unanswered.push_back(Unanswered::Read(rooms));
    }

    fn expiry_ms(&self) -> u64 {
        let expiry = self.settings.history_expiry.as_millis();
        u64::try_from(expiry)
            .unwrap_or(u64::MAX)
            .clamp(1, EXPIRY_MS_MAX)
    }

    /// Loads the scripts, if that was not done on this connection. An app without histories does not need the right to do
    /// so.
    fn load(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.has_loaded, true) {
            return;
        }
        self.load_error = None;
        for script in [&self.append, &self.read] {
            script.put_load(out);
            self.unanswered.push_back(Unanswered::Load);
        }
    }

    fn put_run_id(&self, out: &mut Vec<u8>) {
        let run_id = self
            .incarnation
            .as_ref()
            .map_or("", |incarnation| &incarnation.0);
        put_argument(out, &[run_id.as_bytes()]);
    }
}

/// Receiving.
impl RedisSession {
    fn frame(
        &mut self,
        mut frame: RespFrame<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), BrokerError> {
        match frame.next() {
            Some(RespValue::Push(_)) => self.pushed(frame, events),
            Some(RespValue::Error(error)) => self.error(error, events),
            // It precedes a reply.
            None | Some(RespValue::Attribute) => Ok(()),
            Some(reply) => self.reply(reply, frame, events),
        }
    }

    fn pushed(
        &mut self,
        mut frame: RespFrame<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), BrokerError> {
        match frame.next_string() {
            Some(b"message") => {
                let Some(name) = frame.next_string() else {
                    return Err(protocol("a message has no channel"));
                };
                let Some(channel) = self.names.channel(name) else {
                    return Ok(());
                };
                let (id, envelope) = match frame.next() {
                    Some(RespValue::String(payload)) => split_payload(payload),
                    Some(RespValue::TooLong) => (None, Bytes::new()),
                    _ => return Err(protocol("a message has no payload")),
                };
                events.push(Event::Message {
                    channel,
                    id,
                    envelope,
                });
            }
            Some(b"subscribe") => {
                let channel = frame
                    .next_string()
                    .and_then(|name| self.names.channel(name));
                match (channel, self.unanswered.front_mut()) {
                    (Some(channel), Some(Unanswered::Subscribe(left))) => {
                        *left -= 1;
                        if *left == 0 {
                            self.unanswered.pop_front();
                        }
                        events.push(Event::Subscribed(channel));
                    }
                    _ => {
                        return Err(protocol(
                            "it confirms a subscription that was not requested",
                        ));
                    }
                }
            }
            Some(b"unsubscribe") => match self.unanswered.front_mut() {
                Some(Unanswered::Unsubscribe(left)) => {
                    *left -= 1;
                    if *left == 0 {
                        self.unanswered.pop_front();
                    }
                }
                _ => return Err(protocol("it has ended a subscription of its own accord")),
            },
            // For example an invalidation; they are not replies.
            _ => {}
        }
        Ok(())
    }

    fn reply(
        &mut self,
        reply: RespValue<'_>,
        frame: RespFrame<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), BrokerError> {
        let command = self.unanswered.pop_front();
        match (command, reply) {
            (Some(Unanswered::Setup(setup)), _) => self.is_set_up(setup, reply, frame, events)?,
            (Some(Unanswered::Load), RespValue::String(_)) => {}
            (Some(Unanswered::Publish), RespValue::Number(receivers)) => {
                let receivers = u64::try_from(receivers).unwrap_or_default();
                events.push(Event::Published { receivers });
            }
            (Some(Unanswered::Append), _) => {
                let appended = appended(reply, frame).ok_or_else(|| protocol(BAD_APPEND))?;
                events.push(Event::Appended(appended));
            }
            (Some(Unanswered::Read(rooms)), RespValue::Array(len)) if len == rooms.len() => {
                self.read_rooms(rooms, frame, events)?;
            }
            (None, _) => return Err(protocol("it sends a reply to no command")),
            _ => return Err(protocol("a reply is of an unexpected type")),
        }
        Ok(())
    }

    /// Handles the reply of the script `read`.
    fn read_rooms(
        &self,
        rooms: Vec<Arc<str>>,
        mut frame: RespFrame<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), BrokerError> {
        for (at, room) in rooms.into_iter().enumerate() {
            let event = match frame.next() {
                Some(RespValue::Array(4)) => history(room, &mut frame),
                Some(RespValue::Null) if at > 0 => Some(Event::ReadPostponed),
                Some(RespValue::Error(error)) => {
                    let error = ServerError::new(error, self.settings.login.password.as_deref());
                    let passes = match error.consequence() {
                        Consequence::GiveUp(error) => return Err(error),
                        Consequence::Refused { passes } => passes,
                        Consequence::NoScript => false,
                    };
                    Some(Event::Refused(Refused {
                        command: Kind::Read,
                        error: error.text,
                        passes,
                    }))
                }
                _ => None,
            };
            events.push(event.ok_or_else(|| protocol(BAD_READ))?);
        }
        Ok(())
    }

    /// Handles the reply to a command that sets the connection up.
    fn is_set_up(
        &mut self,
        setup: Setup,
        reply: RespValue<'_>,
        frame: RespFrame<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), BrokerError> {
        match (setup, reply) {
            (Setup::Hello, RespValue::Map(entries)) => check_hello(entries, frame),
            (Setup::Hello, _) => Err(BrokerError::Unusable(VERSION.into())),
            (Setup::Select, RespValue::String(_)) => Ok(()),
            (Setup::Info, RespValue::String(info)) => {
                let incarnation =
                    Incarnation(run_id(info).ok_or_else(|| {
                        BrokerError::Unusable("its INFO contains no run_id".into())
                    })?);
                self.incarnation = Some(incarnation);
                Ok(())
            }
            (Setup::Loading, RespValue::String(info)) => {
                if info_field(info, b"loading:").is_some_and(|loading| loading != "0") {
                    return Err(BrokerError::Unusable(LOADING.into()));
                }
                events.extend(self.incarnation.clone().map(Event::Ready));
                Ok(())
            }
            _ => Err(protocol("a reply is of an unexpected type")),
        }
    }

    fn error(&mut self, error: &[u8], events: &mut Vec<Event>) -> Result<(), BrokerError> {
        let mut error = ServerError::new(error, self.settings.login.password.as_deref());
        let mut refusals = 1;
        let command = match self.unanswered.pop_front() {
            Some(Unanswered::Setup(setup)) => return Err(error.setup_failure(setup)),
            Some(Unanswered::Load) => {
                // Reported with what needs the script.
                self.load_error = Some(error);
                return Ok(());
            }
            Some(Unanswered::Subscribe(_)) => Some(Kind::Subscribe),
            Some(Unanswered::Unsubscribe(_)) => None,
            Some(Unanswered::Publish) => Some(Kind::Publish),
            Some(Unanswered::Append) => Some(Kind::Append),
            Some(Unanswered::Read(rooms)) => {
                refusals = rooms.len();
                Some(Kind::Read)
            }
            // For example before it closes the connection.
            None => return Err(BrokerError::Unusable(error.text)),
        };
        let mut consequence = error.consequence();
        if consequence == Consequence::NoScript {
            // Somebody has removed the scripts. The next command that needs one loads both first. The script must not be
            // sent again for this command only, since later ones may have been executed meanwhile.
            self.has_loaded = false;
            consequence = match &self.load_error {
                None => Consequence::Refused { passes: true },
                Some(load_error) => {
                    error = load_error.clone();
                    error.consequence()
                }
            };
        }
        let passes = match consequence {
            Consequence::GiveUp(error) => return Err(error),
            Consequence::Refused { passes } => passes,
            Consequence::NoScript => false,
        };
        if let Some(command) = command {
            let refused = Refused {
                command,
                error: error.text,
                passes,
            };
            events.extend(std::iter::repeat_n(Event::Refused(refused), refusals));
        }
        Ok(())
    }
}

const BAD_APPEND: &str = "the reply to an append is malformed";
const BAD_READ: &str = "the reply to a read is malformed";

fn protocol(error: impl std::fmt::Display) -> BrokerError {
    BrokerError::Protocol(error.to_string().into())
}

/// Splits a payload into the id and the envelope. What is malformed is all envelope, which then is malformed, too.
fn split_payload(payload: &[u8]) -> (Option<HistoryId>, Bytes) {
    // Copied, since a part of the receive buffer would keep all of it in memory.
    let copy = Bytes::copy_from_slice;
    let within = &payload[..payload.len().min(ID_BYTES_MAX)];
    let Some(id_len) = within.iter().position(|&byte| byte == b'\n') else {
        return (None, copy(payload));
    };
    match (&payload[..id_len], &payload[id_len + 1..]) {
        (b"", envelope) => (None, copy(envelope)),
        (id, envelope) => match parse_id(id) {
            Some(id) => (Some(id), copy(envelope)),
            None => (None, copy(payload)),
        },
    }
}

fn parse_id(text: &[u8]) -> Option<HistoryId> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Checks the reply to `HELLO`, of so many entries.
fn check_hello(entries: usize, mut frame: RespFrame<'_>) -> Result<(), BrokerError> {
    let unusable = |why: &str| Err(BrokerError::Unusable(why.into()));
    for _ in 0..entries {
        let key = frame.next_string();
        if !matches!(key, Some(b"role" | b"mode")) {
            frame.skip();
            continue;
        }
        match (key, frame.next_string()) {
            (Some(b"role"), Some(b"replica" | b"slave")) => return unusable(REPLICA),
            (Some(b"mode"), Some(b"cluster")) => return unusable(CLUSTER),
            (Some(b"mode"), Some(b"sentinel")) => return unusable(SENTINEL),
            _ => {}
        }
    }
    Ok(())
}

/// Finds what distinguishes this life of the server in the reply to `INFO`.
fn run_id(info: &[u8]) -> Option<Arc<str>> {
    let id = info_field(info, b"run_id:")?;
    (!id.is_empty()).then(|| id.into())
}

/// Finds a field in the reply to `INFO`.
fn info_field<'a>(info: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let mut lines = info.split(|&byte| byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(name))?;
    Some(std::str::from_utf8(value).ok()?.trim())
}

/// Decodes the reply of the script `append`.
fn appended(reply: RespValue<'_>, mut frame: RespFrame<'_>) -> Option<Appended> {
    Some(match reply {
        RespValue::String(id) => Appended::Id(parse_id(id)?),
        RespValue::Number(0) => Appended::Before,
        RespValue::Number(1) => Appended::Unknown,
        RespValue::Array(1) => Appended::Conflict {
            position: parse_id(frame.next_string()?)?,
        },
        _ => return None,
    })
}

/// Decodes a history, of which the array of four values has begun.
fn history(room: Arc<str>, frame: &mut RespFrame<'_>) -> Option<Event> {
    let position = parse_id(frame.next_string()?)?;
    let mut sequence = || match frame.next()? {
        RespValue::Number(number) => u64::try_from(number).ok(),
        _ => None,
    };
    let base = sequence().filter(|&base| base <= position.sequence())?;
    let first = sequence().filter(|&first| first > 0)?;
    let RespValue::Array(len) = frame.next()? else {
        return None;
    };
    let mut messages = Vec::with_capacity(len);
    for _ in 0..len {
        messages.push(match frame.next()? {
            RespValue::String(envelope) => Bytes::copy_from_slice(envelope),
            RespValue::TooLong => Bytes::new(),
            _ => return None,
        });
    }
    let end = first.checked_add(len as u64)?;
    (position.sequence().checked_add(1)? == end).then_some(Event::History(History {
        room,
        position,
        base,
        first,
        messages,
    }))
}
