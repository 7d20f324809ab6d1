//! Envelopes: the form in which nodes send messages to each other.
//!
//! An envelope is a version (one byte), a kind (one byte), and fields. A field is a tag (one byte), the length of its
//! value (a varint), and the value; the field [`PAYLOAD`] comes last, has no length, and goes to the end. Readers skip
//! fields that they don't know, so later versions can add some. Numbers are varints (LEB128) or little-endian.
//!
//! Envelopes are untrusted: a broker may be shared, and a node may have another version.

use std::fmt;

use bytes::Bytes;

use crate::message::Message;
use crate::varint;

/// The version that this code writes.
pub(crate) const VERSION: u8 = 1;
/// The oldest version that this code reads.
pub(crate) const VERSION_MIN: u8 = 1;

/// The most bytes that the envelope of a message takes in addition to the payload.
pub(crate) const OVERHEAD_BYTES_MAX: usize = 64;

// Kinds.
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const HEARTBEAT: u8 = 3;
const DIRECT_TEXT: u8 = 4;
const DIRECT_BINARY: u8 = 5;
const CLOSE: u8 = 6;
const JOIN: u8 = 7;
const LEAVE: u8 = 8;
const CLOSE_USER: u8 = 9;
const COUNT: u8 = 10;
const COUNTED: u8 = 11;
const PRESENCE: u8 = 12;

// Tags. Those of later versions must be different.
const PAYLOAD: u8 = 0;
const NODE: u8 = 1;
const SERIAL: u8 = 2;
const EXCEPT: u8 = 3;
const UNCOMPRESSED: u8 = 4;
const VERSIONS: u8 = 5;
const STOPPING: u8 = 6;
const TO: u8 = 7;
const CODE: u8 = 8;
const USER: u8 = 9;
const QUERY: u8 = 10;
const ROOM: u8 = 11;
const MEMBERS: u8 = 12;
const AT: u8 = 13;

/// A connection of some node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RemoteConnection {
    pub(crate) node: u32,
    pub(crate) shard: u16,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl RemoteConnection {
    const LEN: usize = 14;

    fn encode(self) -> [u8; Self::LEN] {
        let mut value = [0; Self::LEN];
        value[..4].copy_from_slice(&self.node.to_le_bytes());
        value[4..6].copy_from_slice(&self.shard.to_le_bytes());
        value[6..10].copy_from_slice(&self.slot.to_le_bytes());
        value[10..].copy_from_slice(&self.generation.to_le_bytes());
        value
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let (node, value) = value.split_first_chunk()?;
        let (shard, value) = value.split_first_chunk()?;
        let (slot, value) = value.split_first_chunk()?;
        let generation = value.first_chunk()?;
        Some(Self {
            node: u32::from_le_bytes(*node),
            shard: u16::from_le_bytes(*shard),
            slot: u32::from_le_bytes(*slot),
            generation: u32::from_le_bytes(*generation),
        })
    }
}

/// A decoded envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    /// The node that has sent it.
    pub(crate) node: u32,
    /// Counts the messages of this node on this channel, or its heartbeats, from 1. 0 if they are not counted.
    pub(crate) serial: u64,
    pub(crate) content: Content<'a>,
}

/// What an envelope contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content<'a> {
    /// A message for the members of a room, or for everyone.
    Message {
        payload: Payload<'a>,
        except: Option<RemoteConnection>,
        /// When a message of a room with a history was sent, in milliseconds since 1970; 0 if it is not known.
        sent_at: u64,
    },
    Heartbeat(Heartbeat),
    /// An action on one connection.
    Direct(RemoteConnection, DirectAction<'a>),
    /// Closes the connections of a user.
    CloseUser {
        user: &'a str,
        code: u16,
        reason: &'a str,
    },
    /// Asks for the number of members of a room, or of all clients.
    Count {
        query: u64,
        room: Option<&'a str>,
    },
    /// The answer.
    Counted {
        query: u64,
        members: u64,
    },
    /// What the node tells about the presence of the channel's room (`crate::presence`).
    Presence(&'a [u8]),
}

/// The payload of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payload<'a> {
    pub(crate) is_text: bool,
    /// The message must not be compressed.
    pub(crate) uncompressed: bool,
    pub(crate) bytes: &'a [u8],
}

/// An action on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirectAction<'a> {
    Send(Payload<'a>),
    Close { code: u16, reason: &'a str },
    Join { room: &'a str },
    Leave { room: &'a str },
}

/// A sign of life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// The oldest and the newest version of envelopes that the node reads.
    pub(crate) versions: (u8, u8),
    /// The node is stopping: this is its last heartbeat.
    pub(crate) is_last: bool,
}

/// Why bytes are not an envelope that this version reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadEnvelope {
    /// It ends within a field.
    Truncated,
    /// A field has a value that it can't have.
    Field(u8),
    /// A field that this kind needs is missing.
    Missing(u8),
    /// The text is not UTF-8.
    Utf8,
    /// A version that this code doesn't read.
    Version(u8),
    /// A kind that this code doesn't know, for example of a newer version.
    Kind(u8),
}

impl fmt::Display for BadEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("it ends within a field"),
            Self::Field(tag) => write!(f, "field {tag} has an invalid value"),
            Self::Missing(tag) => write!(f, "field {tag} is missing"),
            Self::Utf8 => f.write_str("its text is not UTF-8"),
            Self::Version(version) => write!(f, "it has the unknown version {version}"),
            Self::Kind(kind) => write!(f, "it has the unknown kind {kind}"),
        }
    }
}

impl<'a> Envelope<'a> {
    /// Decodes an envelope.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, BadEnvelope> {
        let [version, kind, rest @ ..] = bytes else {
            return Err(BadEnvelope::Truncated);
        };
        if !(VERSION_MIN..=VERSION).contains(version) {
            return Err(BadEnvelope::Version(*version));
        }
        if !(TEXT..=PRESENCE).contains(kind) {
            return Err(BadEnvelope::Kind(*kind));
        }
        let fields = Fields::decode(rest)?;
        Ok(Self {
            node: fields.node.ok_or(BadEnvelope::Missing(NODE))?,
            serial: fields.serial,
            content: fields.content(*kind)?,
        })
    }

    #[cfg(test)]
    pub(crate) fn encode(&self) -> Bytes {
        self.content.encode().envelope(self.node, self.serial)
    }
}

/// The content of an envelope, without the node and the serial.
#[derive(Debug, Clone)]
pub(crate) struct EncodedContent {
    kind: u8,
    fields: Vec<u8>,
}

impl EncodedContent {
    pub(crate) fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether it is a message of the app, which has a serial and counts in the metrics.
    pub(crate) fn is_message(&self) -> bool {
        self.kind != PRESENCE
    }

    /// Completes the envelope.
    pub(crate) fn envelope(&self, node: u32, serial: u64) -> Bytes {
        let mut out = Vec::with_capacity(HEAD_BYTES_MAX + self.fields.len());
        out.extend_from_slice(&[VERSION, self.kind]);
        write_field(&mut out, NODE, &node.to_le_bytes());
        if serial > 0 {
            write_number(&mut out, SERIAL, serial);
        }
        out.extend_from_slice(&self.fields);
        debug_assert!(out.len() <= HEAD_BYTES_MAX + self.fields.len());
        out.into()
    }
}

/// The most bytes that the version, the kind, the node and the serial take.
const HEAD_BYTES_MAX: usize = 2 + 6 + 12;

impl Content<'_> {
    pub(crate) fn encode(&self) -> EncodedContent {
        let mut fields = Vec::new();
        let kind = match *self {
            Self::Message {
                payload,
                except,
                sent_at,
            } => {
                fields.reserve_exact(OVERHEAD_BYTES_MAX - HEAD_BYTES_MAX + payload.bytes.len());
                if let Some(except) = except {
                    write_field(&mut fields, EXCEPT, &except.encode());
                }
                if sent_at > 0 {
                    write_number(&mut fields, AT, sent_at);
                }
                payload.encode(&mut fields);
                if payload.is_text { TEXT } else { BINARY }
            }
            Self::Heartbeat(Heartbeat { versions, is_last }) => {
                write_field(&mut fields, VERSIONS, &[versions.0, versions.1]);
                if is_last {
                    write_field(&mut fields, STOPPING, &[]);
                }
                HEARTBEAT
            }
            Self::Direct(to, action) => {
                write_field(&mut fields, TO, &to.encode());
                match action {
                    DirectAction::Send(payload) => {
                        payload.encode(&mut fields);
                        if payload.is_text {
                            DIRECT_TEXT
                        } else {
                            DIRECT_BINARY
                        }
                    }
                    DirectAction::Close { code, reason } => {
                        write_field(&mut fields, CODE, &code.to_le_bytes());
                        write_payload(&mut fields, reason.as_bytes());
                        CLOSE
                    }
                    DirectAction::Join { room } => {
                        write_field(&mut fields, ROOM, room.as_bytes());
                        JOIN
                    }
                    DirectAction::Leave { room } => {
                        write_field(&mut fields, ROOM, room.as_bytes());
                        LEAVE
                    }
                }
            }
            Self::CloseUser { user, code, reason } => {
                write_field(&mut fields, USER, user.as_bytes());
                write_field(&mut fields, CODE, &code.to_le_bytes());
                write_payload(&mut fields, reason.as_bytes());
                CLOSE_USER
            }
            Self::Count { query, room } => {
                write_number(&mut fields, QUERY, query);
                if let Some(room) = room {
                    write_field(&mut fields, ROOM, room.as_bytes());
                }
                COUNT
            }
            Self::Counted { query, members } => {
                write_number(&mut fields, QUERY, query);
                write_number(&mut fields, MEMBERS, members);
                COUNTED
            }
            Self::Presence(update) => {
                write_payload(&mut fields, update);
                PRESENCE
            }
        };
        EncodedContent { kind, fields }
    }
}

impl<'a> Payload<'a> {
    pub(crate) fn of(message: &'a Message) -> Self {
        Self {
            is_text: message.is_text(),
            uncompressed: message.is_uncompressed(),
            bytes: message.bytes(),
        }
    }

    pub(crate) fn to_message(self) -> Message {
        // The text was checked when the envelope was decoded.
        let message = match self.is_text {
            true => Message::new_checked_text(self.bytes),
            false => Message::new_binary(self.bytes),
        };
        #[cfg(feature = "deflate")]
        if self.uncompressed {
            return message.uncompressed();
        }
        message
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if self.uncompressed {
            write_field(out, UNCOMPRESSED, &[]);
        }
        write_payload(out, self.bytes);
    }
}

/// The fields of an envelope of any kind.
#[derive(Default)]
struct Fields<'a> {
    node: Option<u32>,
    serial: u64,
    except: Option<RemoteConnection>,
    uncompressed: bool,
    versions: Option<(u8, u8)>,
    stopping: bool,
    to: Option<RemoteConnection>,
    code: Option<u16>,
    user: Option<&'a str>,
    query: Option<u64>,
    room: Option<&'a str>,
    members: Option<u64>,
    at: u64,
    payload: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn decode(mut rest: &'a [u8]) -> Result<Self, BadEnvelope> {
        let mut fields = Self::default();
        while let [tag, after @ ..] = rest {
            if *tag == PAYLOAD {
                fields.payload = Some(after);
                break;
            }
            let (len, after) = varint::read(after).ok_or(BadEnvelope::Truncated)?;
            let len = usize::try_from(len).map_err(|_| BadEnvelope::Truncated)?;
            let (value, after) = after.split_at_checked(len).ok_or(BadEnvelope::Truncated)?;
            fields.set(*tag, value).ok_or(BadEnvelope::Field(*tag))?;
            rest = after;
        }
        Ok(fields)
    }

    /// `None` if the field can't have this value. Later versions may append to the value of a field with a fixed length.
    fn set(&mut self, tag: u8, value: &'a [u8]) -> Option<()> {
        match tag {
            NODE => self.node = Some(u32::from_le_bytes(*value.first_chunk()?)),
            SERIAL => self.serial = varint::read(value)?.0,
            EXCEPT => self.except = Some(RemoteConnection::decode(value)?),
            UNCOMPRESSED => self.uncompressed = true,
            VERSIONS => {
                let &[min, max] = value.first_chunk()?;
                self.versions = Some((min, max));
            }
            STOPPING => self.stopping = true,
            TO => self.to = Some(RemoteConnection::decode(value)?),
            CODE => self.code = Some(u16::from_le_bytes(*value.first_chunk()?)),
            USER => self.user = Some(std::str::from_utf8(value).ok()?),
            QUERY => self.query = Some(varint::read(value)?.0),
            ROOM => self.room = Some(std::str::from_utf8(value).ok()?),
            MEMBERS => self.members = Some(varint::read(value)?.0),
            AT => self.at = varint::read(value)?.0,
            _ => {}
        }
        Some(())
    }

    fn content(&self, kind: u8) -> Result<Content<'a>, BadEnvelope> {
        let to = || self.to.ok_or(BadEnvelope::Missing(TO));
        let code = || self.code.ok_or(BadEnvelope::Missing(CODE));
        let query = || self.query.ok_or(BadEnvelope::Missing(QUERY));
        let room = || self.room.ok_or(BadEnvelope::Missing(ROOM));
        Ok(match kind {
            TEXT | BINARY => Content::Message {
                payload: self.payload(kind == TEXT)?,
                except: self.except,
                sent_at: self.at,
            },
            HEARTBEAT => Content::Heartbeat(Heartbeat {
                versions: self.versions.ok_or(BadEnvelope::Missing(VERSIONS))?,
                is_last: self.stopping,
            }),
            DIRECT_TEXT | DIRECT_BINARY => {
                let payload = self.payload(kind == DIRECT_TEXT)?;
                Content::Direct(to()?, DirectAction::Send(payload))
            }
            CLOSE => {
                let (code, reason) = (code()?, self.text()?);
                Content::Direct(to()?, DirectAction::Close { code, reason })
            }
            JOIN => Content::Direct(to()?, DirectAction::Join { room: room()? }),
            LEAVE => Content::Direct(to()?, DirectAction::Leave { room: room()? }),
            CLOSE_USER => Content::CloseUser {
                user: self.user.ok_or(BadEnvelope::Missing(USER))?,
                code: code()?,
                reason: self.text()?,
            },
            COUNT => Content::Count {
                query: query()?,
                room: self.room,
            },
            COUNTED => Content::Counted {
                query: query()?,
                members: self.members.ok_or(BadEnvelope::Missing(MEMBERS))?,
            },
            PRESENCE => Content::Presence(self.payload.ok_or(BadEnvelope::Missing(PAYLOAD))?),
            kind => return Err(BadEnvelope::Kind(kind)),
        })
    }

    fn payload(&self, is_text: bool) -> Result<Payload<'a>, BadEnvelope> {
        let bytes = self.payload.ok_or(BadEnvelope::Missing(PAYLOAD))?;
        if is_text && std::str::from_utf8(bytes).is_err() {
            return Err(BadEnvelope::Utf8);
        }
        Ok(Payload {
            is_text,
            uncompressed: self.uncompressed,
            bytes,
        })
    }

    fn text(&self) -> Result<&'a str, BadEnvelope> {
        let bytes = self.payload.ok_or(BadEnvelope::Missing(PAYLOAD))?;
        std::str::from_utf8(bytes).map_err(|_| BadEnvelope::Utf8)
    }
}

fn write_payload(out: &mut Vec<u8>, payload: &[u8]) {
    out.push(PAYLOAD);
    out.extend_from_slice(payload);
}

fn write_number(out: &mut Vec<u8>, tag: u8, number: u64) {
    let mut value = Vec::with_capacity(varint::BYTES_MAX);
    varint::write(&mut value, number);
    write_field(out, tag, &value);
}

fn write_field(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    varint::write(out, value.len() as u64);
    out.extend_from_slice(value);
}

#[cfg(all(test, not(loom)))]
#[path = "wire_tests.rs"]
mod tests;
