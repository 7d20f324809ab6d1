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

/// The version that this code writes.
pub(crate) const VERSION: u8 = 1;
/// The oldest version that this code reads.
pub(crate) const VERSION_MIN: u8 = 1;

/// The most bytes that an envelope takes in addition to its payload.
pub(crate) const OVERHEAD_BYTES_MAX: usize = 64;

// Kinds.
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const HEARTBEAT: u8 = 3;

// Tags. Those of later versions must be different.
const PAYLOAD: u8 = 0;
const NODE: u8 = 1;
const COUNT: u8 = 2;
const EXCEPT: u8 = 3;
const UNCOMPRESSED: u8 = 4;
const VERSIONS: u8 = 5;
const STOPPING: u8 = 6;

/// A connection of some node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RemoteConnection {
    pub(crate) node: u32,
    pub(crate) shard: u16,
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A decoded envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    /// The node that has sent it.
    pub(crate) node: u32,
    pub(crate) content: EnvelopeContent<'a>,
}

/// What an envelope contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnvelopeContent<'a> {
    Message(MessageEnvelope<'a>),
    Heartbeat(Heartbeat),
}

/// A message for the members of a room, or for everyone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageEnvelope<'a> {
    /// Counts the messages of this node on this channel, from 1; for a room with a history, its appends. 0 if unknown.
    pub(crate) count: u64,
    pub(crate) is_text: bool,
    /// The message must not be compressed.
    pub(crate) uncompressed: bool,
    /// A connection that does not receive it.
    pub(crate) except: Option<RemoteConnection>,
    pub(crate) payload: &'a [u8],
}

/// A sign of life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// Increases with each heartbeat of a node.
    pub(crate) count: u64,
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
        if !matches!(*kind, TEXT | BINARY | HEARTBEAT) {
            return Err(BadEnvelope::Kind(*kind));
        }
        let fields = Fields::decode(rest)?;
        let content = match *kind {
            HEARTBEAT => EnvelopeContent::Heartbeat(Heartbeat {
                count: fields.count,
                versions: fields.versions.ok_or(BadEnvelope::Missing(VERSIONS))?,
                is_last: fields.stopping,
            }),
            kind => {
                let payload = fields.payload.ok_or(BadEnvelope::Missing(PAYLOAD))?;
                let is_text = kind == TEXT;
                if is_text && std::str::from_utf8(payload).is_err() {
                    return Err(BadEnvelope::Utf8);
                }
                EnvelopeContent::Message(MessageEnvelope {
                    count: fields.count,
                    is_text,
                    uncompressed: fields.uncompressed,
                    except: fields.except,
                    payload,
                })
            }
        };
        let node = fields.node.ok_or(BadEnvelope::Missing(NODE))?;
        Ok(Self { node, content })
    }

    /// Encodes an envelope.
    pub(crate) fn encode(&self) -> Bytes {
        let payload_len = match self.content {
            EnvelopeContent::Message(MessageEnvelope { payload, .. }) => payload.len(),
            EnvelopeContent::Heartbeat(_) => 0,
        };
        let mut out = Vec::with_capacity(OVERHEAD_BYTES_MAX + payload_len);
        let kind = match self.content {
            EnvelopeContent::Message(MessageEnvelope { is_text: true, .. }) => TEXT,
            EnvelopeContent::Message(_) => BINARY,
            EnvelopeContent::Heartbeat(_) => HEARTBEAT,
        };
        out.extend_from_slice(&[VERSION, kind]);
        write_field(&mut out, NODE, &self.node.to_le_bytes());
        match self.content {
            EnvelopeContent::Message(message) => message.encode(&mut out),
            EnvelopeContent::Heartbeat(heartbeat) => heartbeat.encode(&mut out),
        }
        debug_assert!(out.len() <= OVERHEAD_BYTES_MAX + payload_len);
        out.into()
    }
}

impl MessageEnvelope<'_> {
    pub(crate) fn to_message(self) -> Message {
        // The text was checked when the envelope was decoded.
        let message = match self.is_text {
            true => Message::new_checked_text(self.payload),
            false => Message::new_binary(self.payload),
        };
        #[cfg(feature = "deflate")]
        if self.uncompressed {
            return message.uncompressed();
        }
        message
    }

    fn encode(&self, out: &mut Vec<u8>) {
        write_count(out, self.count);
        if self.uncompressed {
            write_field(out, UNCOMPRESSED, &[]);
        }
        if let Some(except) = self.except {
            let mut value = [0; 14];
            value[..4].copy_from_slice(&except.node.to_le_bytes());
            value[4..6].copy_from_slice(&except.shard.to_le_bytes());
            value[6..10].copy_from_slice(&except.slot.to_le_bytes());
            value[10..].copy_from_slice(&except.generation.to_le_bytes());
            write_field(out, EXCEPT, &value);
        }
        out.push(PAYLOAD);
        out.extend_from_slice(self.payload);
    }
}

impl Heartbeat {
    fn encode(&self, out: &mut Vec<u8>) {
        write_count(out, self.count);
        write_field(out, VERSIONS, &[self.versions.0, self.versions.1]);
        if self.is_last {
            write_field(out, STOPPING, &[]);
        }
    }
}

/// The fields of an envelope of any kind.
#[derive(Default)]
struct Fields<'a> {
    node: Option<u32>,
    count: u64,
    except: Option<RemoteConnection>,
    uncompressed: bool,
    versions: Option<(u8, u8)>,
    stopping: bool,
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
            let (len, after) = read_varint(after).ok_or(BadEnvelope::Truncated)?;
            let len = usize::try_from(len).map_err(|_| BadEnvelope::Truncated)?;
            let (value, after) = after.split_at_checked(len).ok_or(BadEnvelope::Truncated)?;
            fields.set(*tag, value).ok_or(BadEnvelope::Field(*tag))?;
            rest = after;
        }
        Ok(fields)
    }

    /// `None` if the field can't have this value. Later versions may append to the value of a field.
    fn set(&mut self, tag: u8, value: &[u8]) -> Option<()> {
        match tag {
            NODE => self.node = Some(u32::from_le_bytes(*value.first_chunk()?)),
            COUNT => self.count = read_varint(value)?.0,
            EXCEPT => {
                let (node, value) = value.split_first_chunk()?;
                let (shard, value) = value.split_first_chunk()?;
                let (slot, value) = value.split_first_chunk()?;
                let generation = value.first_chunk()?;
                self.except = Some(RemoteConnection {
                    node: u32::from_le_bytes(*node),
                    shard: u16::from_le_bytes(*shard),
                    slot: u32::from_le_bytes(*slot),
                    generation: u32::from_le_bytes(*generation),
                });
            }
            UNCOMPRESSED => self.uncompressed = true,
            VERSIONS => {
                let &[min, max] = value.first_chunk()?;
                self.versions = Some((min, max));
            }
            STOPPING => self.stopping = true,
            _ => {}
        }
        Some(())
    }
}

fn write_count(out: &mut Vec<u8>, count: u64) {
    if count > 0 {
        let mut value = Vec::new();
        write_varint(&mut value, count);
        write_field(out, COUNT, &value);
    }
}

fn write_field(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    write_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn write_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Returns a number and what follows it. `None` if it is incomplete or longer than 64 bits.
fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * index);
        if shifted >> (7 * index) != bits {
            return None;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(all(test, not(loom)))]
#[path = "wire_tests.rs"]
mod tests;
