//! A client, and its connection: connecting, the handshake, joining its room, receiving.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::account::Account;
use crate::frames::MessageReader;
use crate::load::connect::{self as handshake, ConnectionSpec};
use crate::run::procedure_frames::{self, Frame, SUBPROTOCOL};
use crate::wire;

/// Maximum length of the response to a handshake in bytes.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// A client of a room.
pub(super) struct Client {
    pub(super) room: usize,
    /// How often it has connected.
    pub(super) connects: usize,
    pub(super) account: Account,
    pub(super) connection: Option<Connection>,
    /// The id after which it resumes. Empty before it has joined for the first time.
    last_id: Vec<u8>,
    /// How often the server told it that messages are missing.
    pub(super) gaps: u64,
}

/// A connection of a client. Dropping it cuts it.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    phase: Phase,
    reader: MessageReader,
    pub(super) begun: Instant,
    /// Number of replayed messages, and when the last one arrived.
    replayed: u64,
    last_replayed: Option<Instant>,
}

enum Phase {
    Connecting,
    /// The request is sent. Contains the received bytes of the response.
    Handshaking(Vec<u8>),
    Joining,
    Joined,
}

/// What the bytes that have arrived have completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Messages that have arrived.
    pub(super) messages: u64,
    /// Set if the client has joined its room.
    pub(super) join: Option<Join>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Join {
    /// Number of replayed messages.
    pub(super) replayed: u64,
    /// The time from connecting to the last replayed message, or to the answer if there was none.
    pub(super) time: Duration,
}

impl Client {
    pub(super) fn new(room: usize) -> Self {
        Self {
            room,
            connects: 0,
            account: Account::default(),
            connection: None,
            last_id: Vec::new(),
            gaps: 0,
        }
    }

    /// Begins to connect to a server.
    pub(super) fn connect(&mut self, address: SocketAddrV4) -> io::Result<&Connection> {
        self.connects += 1;
        Ok(self.connection.insert(Connection::open(address)?))
    }

    pub(super) fn has_joined(&self) -> bool {
        let mut connection = self.connection.iter();
        connection.any(|connection| matches!(connection.phase, Phase::Joined))
    }

    /// Sends the request of the handshake, once the connection is established.
    pub(super) fn writable(&mut self, address: SocketAddrV4) -> io::Result<()> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        if matches!(connection.phase, Phase::Connecting) {
            let spec = ConnectionSpec {
                subprotocol: Some(SUBPROTOCOL),
                ..ConnectionSpec::default()
            };
            connection.send(handshake::request(address, &spec).as_bytes())?;
            connection.phase = Phase::Handshaking(Vec::new());
        }
        Ok(())
    }

    /// Takes bytes that have arrived.
    pub(super) fn receive(&mut self, bytes: &[u8], accept: &str) -> io::Result<Progress> {
        let Some(connection) = &mut self.connection else {
            return Ok(Progress::default());
        };
        let rest;
        let messages = match &mut connection.phase {
            Phase::Handshaking(response) => {
                response.extend_from_slice(bytes);
                let Some(end) = response_end(response, accept)? else {
                    return Ok(Progress::default());
                };
                rest = response.split_off(end);
                let mut join = Vec::new();
                let since: &[u8] = match &self.last_id[..] {
                    [] => b"new",
                    id => id,
                };
                procedure_frames::put_join(&mut join, self.room.to_string().as_bytes(), since);
                connection.send(&join)?;
                connection.phase = Phase::Joining;
                &rest[..]
            }
            _ => bytes,
        };
        self.receive_messages(messages)
    }

    fn receive_messages(&mut self, bytes: &[u8]) -> io::Result<Progress> {
        let Self {
            room,
            account,
            connection: Some(connection),
            last_id,
            gaps,
            ..
        } = self
        else {
            return Ok(Progress::default());
        };
        let Connection {
            phase,
            reader,
            begun,
            replayed,
            last_replayed,
            ..
        } = connection;
        let now = Instant::now();
        let mut progress = Progress::default();
        reader.read(bytes, |payload| {
            match procedure_frames::parse(payload) {
                Some(Frame::Room {
                    room: name,
                    id,
                    message,
                }) => {
                    let number = number_in(*room, name, message)?;
                    account.receive(number);
                    last_id.clear();
                    last_id.extend_from_slice(id);
                    progress.messages += 1;
                    if matches!(phase, Phase::Joining) {
                        *replayed += 1;
                        *last_replayed = Some(now);
                    }
                }
                Some(Frame::Joined { id }) => {
                    *phase = Phase::Joined;
                    if last_id.is_empty() {
                        last_id.extend_from_slice(id);
                    }
                    progress.join = Some(Join {
                        replayed: *replayed,
                        time: last_replayed.unwrap_or(now).duration_since(*begun),
                    });
                }
                Some(Frame::Gap) => *gaps += 1,
                Some(Frame::Error { text }) => {
                    let text = String::from_utf8_lossy(text);
                    return Err(io::Error::other(format!("$join failed: {text}")));
                }
                None => return Err(io::Error::other(format!("a frame is {payload:02x?}"))),
            }
            Ok(())
        })?;
        Ok(progress)
    }
}

impl Connection {
    fn open(address: SocketAddrV4) -> io::Result<Self> {
        let begun = Instant::now();
        let socket = handshake::begin(address, None).map_err(|error| {
            io::Error::new(error.kind(), format!("connecting to {address}: {error}"))
        })?;
        Ok(Self {
            socket,
            phase: Phase::Connecting,
            reader: MessageReader::default(),
            begun,
            replayed: 0,
            last_replayed: None,
        })
    }

    fn send(&self, request: &[u8]) -> io::Result<()> {
        handshake::send_in_one_piece(&self.socket, request)
    }
}

/// Returns the length of the response to a handshake, or `None` if it is incomplete.
fn response_end(response: &[u8], accept: &str) -> io::Result<Option<usize>> {
    let Some(end) = wire::head_end(response) else {
        return match response.len() <= RESPONSE_BYTES_MAX {
            true => Ok(None),
            false => Err(io::Error::other("the response is too long")),
        };
    };
    handshake::check_response(&response[..end], accept, false)?;
    let head = String::from_utf8_lossy(&response[..end]);
    match wire::header(&head, "sec-websocket-protocol") {
        Some(SUBPROTOCOL) => Ok(Some(end)),
        other => {
            let text = format!("the server chose the subprotocol {other:?}");
            Err(io::Error::other(text))
        }
    }
}

/// Returns the number of a message, which must be for this room.
fn number_in(room: usize, name: &[u8], message: &[u8]) -> io::Result<u64> {
    let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
    let number = text(message).parse().ok();
    match number {
        Some(number) if text(name).parse() == Ok(room) => Ok(number),
        _ => Err(io::Error::other(format!(
            "a member of room {room} received {:?} of room {:?}",
            text(message),
            text(name)
        ))),
    }
}
