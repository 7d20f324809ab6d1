//! What nodes tell each other about a room, as bytes.
//!
//! ```text
//! ask:     1 | node (4)                          0 asks all nodes
//! update:  2 | flags | version | previous | entries until the end
//! entry:   kind | user: length, text  or  connection: 14 bytes | [connections | set at | length, state]
//! ```
//!
//! Numbers are varints (LEB128), and little-endian where a length is given. The bytes are untrusted.

use std::fmt;
#[cfg(test)]
use std::sync::Arc;

use bytes::Bytes;

use super::member::{ConnectionKey, Fact, Member};
use crate::varint;

const ASK: u8 = 1;
const UPDATE: u8 = 2;

/// The first part of all facts.
const FIRST: u8 = 1;
/// The last part of all facts.
const LAST: u8 = 2;
/// Contains no facts, but repeats the version of the last message.
const REPEAT: u8 = 4;
/// A part of all facts that is neither the first nor the last. Without flags, a message contains changes.
const MIDDLE: u8 = 8;

const USER: u8 = 0;
const CONNECTION: u8 = 1;
/// Added to the kind of a member that has left. Nothing follows it.
const LEFT: u8 = 0x80;

/// The longest user that a node believes.
const USER_BYTES_MAX: usize = 1 << 10;
/// The most facts in one message. A node sends fewer.
const FACTS_MAX: usize = 1 << 15;
/// The latest time of a state that a node believes, in the year 2255. Later ones would win for ever.
const SET_AT_MAX: u64 = 9_000_000_000_000_000;
/// The longest state that a node believes.
const STATE_BYTES_MAX: usize = 1 << 20;

/// A message of a node about a room.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Update {
    /// Asks all nodes, or one, for all their facts.
    Ask { of: Option<u32> },
    /// The facts that have changed since the message `previous`; `None` for a member that has left.
    Changes {
        version: u64,
        previous: u64,
        facts: Vec<(Member, Option<Fact>)>,
    },
    /// A part of all facts.
    Part {
        version: u64,
        previous: u64,
        is_first: bool,
        is_last: bool,
        facts: Vec<(Member, Option<Fact>)>,
    },
    /// The node's last message had this version.
    Repeat { version: u64 },
}

/// Why bytes are not an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadUpdate {
    Truncated,
    Kind,
    /// A user is not UTF-8.
    Utf8,
    /// A user or a state is longer than any that a node sends, or there are too many.
    TooLong,
    /// A state was set in a far future.
    Time,
    /// The members of other nodes take too much memory.
    TooMuch,
}

impl fmt::Display for BadUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "an update of a room's presence is truncated",
            Self::Kind => "an update of a room's presence has an unknown kind",
            Self::Utf8 => "an update of a room's presence names a user that is not UTF-8",
            Self::TooLong => "an update of a room's presence has too many or too long users or states",
            Self::Time => "an update of a room's presence has a state of a far future",
            Self::TooMuch => {
                "the members of rooms on other nodes take more than 64 MiB, so those of a node are left out of a room's presence"
            }
        })
    }
}

impl Update {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, BadUpdate> {
        let (&kind, mut rest) = bytes.split_first().ok_or(BadUpdate::Truncated)?;
        let rest = &mut rest;
        match kind {
            ASK => {
                let node = u32::from_le_bytes(take(rest)?);
                let of = (node != 0).then_some(node);
                Ok(Self::Ask { of })
            }
            UPDATE => {
                let [flags] = take(rest)?;
                let version = take_number(rest)?;
                if flags & REPEAT != 0 {
                    return Ok(Self::Repeat { version });
                }
                let previous = take_number(rest)?;
                let mut facts = Vec::new();
                while !rest.is_empty() {
                    if facts.len() >= FACTS_MAX {
                        return Err(BadUpdate::TooLong);
                    }
                    facts.push(take_entry(rest)?);
                }
                Ok(match flags {
                    0 => Self::Changes {
                        version,
                        previous,
                        facts,
                    },
                    _ => Self::Part {
                        version,
                        previous,
                        is_first: flags & FIRST != 0,
                        is_last: flags & LAST != 0,
                        facts,
                    },
                })
            }
            _ => Err(BadUpdate::Kind),
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadUpdate> {
    let (value, behind) = rest.split_first_chunk().ok_or(BadUpdate::Truncated)?;
    *rest = behind;
    Ok(*value)
}

fn take_number(rest: &mut &[u8]) -> Result<u64, BadUpdate> {
    let (number, behind) = varint::read(rest).ok_or(match rest.len() < varint::BYTES_MAX {
        true => BadUpdate::Truncated,
        false => BadUpdate::TooLong,
    })?;
    *rest = behind;
    Ok(number)
}

fn take_bytes<'a>(rest: &mut &'a [u8], max: usize) -> Result<&'a [u8], BadUpdate> {
    let len = take_number(rest)?;
    let len = usize::try_from(len).map_err(|_| BadUpdate::TooLong)?;
    if len > max {
        return Err(BadUpdate::TooLong);
    }
    let (value, behind) = rest.split_at_checked(len).ok_or(BadUpdate::Truncated)?;
    *rest = behind;
    Ok(value)
}

fn take_entry(rest: &mut &[u8]) -> Result<(Member, Option<Fact>), BadUpdate> {
    let [kind] = take(rest)?;
    let member = match kind & !LEFT {
        USER => {
            let user = take_bytes(rest, USER_BYTES_MAX)?;
            Member::User(
                std::str::from_utf8(user)
                    .map_err(|_| BadUpdate::Utf8)?
                    .into(),
            )
        }
        CONNECTION => Member::Connection(ConnectionKey {
            node: u32::from_le_bytes(take(rest)?),
            shard: u16::from_le_bytes(take(rest)?),
            slot: u32::from_le_bytes(take(rest)?),
            generation: u32::from_le_bytes(take(rest)?),
        }),
        _ => return Err(BadUpdate::Kind),
    };
    if kind & LEFT != 0 {
        return Ok((member, None));
    }
    let connections = u32::try_from(take_number(rest)?).unwrap_or(u32::MAX);
    let set_at = take_number(rest)?;
    if set_at > SET_AT_MAX {
        return Err(BadUpdate::Time);
    }
    let state = Bytes::copy_from_slice(take_bytes(rest, STATE_BYTES_MAX)?);
    let fact = Fact {
        connections,
        state,
        set_at,
    };
    Ok((member, Some(fact)))
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::write(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Encodes a question for all facts, of all nodes or of one.
pub(super) fn ask(of: Option<u32>) -> Vec<u8> {
    let mut out = vec![ASK];
    out.extend_from_slice(&of.unwrap_or(0).to_le_bytes());
    out
}

/// Encodes a message that only repeats the version of the last one.
pub(super) fn repeat(version: u64) -> Vec<u8> {
    let mut out = vec![UPDATE, REPEAT];
    varint::write(&mut out, version);
    out
}

/// Encodes facts as one entry after the other.
#[derive(Default)]
pub(super) struct Entries {
    bytes: Vec<u8>,
    facts: usize,
}

impl Entries {
    /// Whether another fact fits into a message of about this length. One always does.
    pub(super) fn has_room(&self, bytes_max: usize) -> bool {
        self.facts < FACTS_MAX && (self.facts == 0 || self.bytes.len() < bytes_max)
    }

    pub(super) fn put(&mut self, member: &Member, fact: Option<&Fact>) {
        self.facts += 1;
        let out = &mut self.bytes;
        let left = if fact.is_some() { 0 } else { LEFT };
        match member {
            Member::User(user) => {
                out.push(USER | left);
                put_bytes(out, user.as_bytes());
            }
            Member::Connection(key) => {
                out.push(CONNECTION | left);
                out.extend_from_slice(&key.node.to_le_bytes());
                out.extend_from_slice(&key.shard.to_le_bytes());
                out.extend_from_slice(&key.slot.to_le_bytes());
                out.extend_from_slice(&key.generation.to_le_bytes());
            }
        }
        if let Some(fact) = fact {
            varint::write(out, fact.connections.into());
            varint::write(out, fact.set_at);
            put_bytes(out, &fact.state);
        }
    }
}

/// Which facts a message contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Changes,
    Part { is_first: bool, is_last: bool },
}

/// Encodes a message with these facts.
pub(super) fn update(extent: Extent, version: u64, previous: u64, entries: &Entries) -> Vec<u8> {
    let flags = match extent {
        Extent::Changes => 0,
        Extent::Part { is_first, is_last } => {
            let middle = if is_first || is_last { 0 } else { MIDDLE };
            middle | if is_first { FIRST } else { 0 } | if is_last { LAST } else { 0 }
        }
    };
    let mut out = vec![UPDATE, flags];
    varint::write(&mut out, version);
    varint::write(&mut out, previous);
    out.extend_from_slice(&entries.bytes);
    out
}

/// The user of an update, for tests.
#[cfg(test)]
pub(super) fn user(name: &str) -> Member {
    Member::User(Arc::from(name))
}
