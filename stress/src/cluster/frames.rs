//! Frames of procedures as a client of the newer subprotocol writes and reads them (docs/procedures.md).

use humphrey_ws::HistoryId;

use crate::check::{During, Failure, Outcome};

pub(crate) const SUBPROTOCOL: &str = "humphrey_ws.procedures.v1";

/// The error code of a join that is not possible for now.
pub(crate) const BUSY: u8 = 5;

/// Which messages of the past a client receives when it joins a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    New,
    /// All messages that the room keeps.
    All,
    After(HistoryId),
}

/// The frame of a call `$join`.
pub(crate) fn join(id: u32, room: &str, since: Since) -> Vec<u8> {
    let mut frame = vec![2];
    frame.extend(id.to_be_bytes());
    let name = b"$join";
    frame.push(name.len() as u8);
    frame.extend(name);
    frame.push(room.len() as u8);
    frame.extend(room.as_bytes());
    match since {
        Since::New => frame.extend(b"new"),
        Since::All => frame.extend(b"all"),
        Since::After(id) => frame.extend(id.to_string().as_bytes()),
    }
    frame
}

/// What a node sends to a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromNode<'a> {
    /// The end of a call; with the id of the room's last message, if the call has joined a room with a history.
    Response {
        call: u32,
        last: Option<HistoryId>,
    },
    Error {
        call: u32,
        code: u8,
        text: String,
    },
    /// The replay of this call does not reach back to the client's id.
    ReplayGap {
        call: u32,
    },
    Kept {
        room: &'a str,
        id: HistoryId,
        message: &'a [u8],
    },
    Gap {
        room: &'a str,
        position: HistoryId,
    },
    Silence {
        room: &'a str,
        is_silent: bool,
    },
    /// A message of a room without a history.
    Plain(&'a [u8]),
}

impl<'a> FromNode<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Outcome<Self> {
        let short = || Failure::new(format!("a frame is too short: {bytes:02x?}"));
        let (&kind, rest) = bytes.split_first().ok_or_else(short)?;
        if !(1..=7).contains(&kind) {
            return Ok(Self::Plain(bytes));
        }
        if kind == 7 {
            return Self::read_room_message(rest);
        }
        let (call, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let call = u32::from_be_bytes(*call);
        match (kind, rest) {
            (4, []) => Ok(Self::Response { call, last: None }),
            (4, last) => Ok(Self::Response {
                call,
                last: Some(history_id(last)?),
            }),
            (5, [code, text @ ..]) => Ok(Self::Error {
                call,
                code: *code,
                text: String::from_utf8_lossy(text).into_owned(),
            }),
            (6, b"gap") => Ok(Self::ReplayGap { call }),
            _ => Err(Failure::new(format!("an unexpected frame: {bytes:02x?}"))),
        }
    }

    fn read_room_message(rest: &'a [u8]) -> Outcome<Self> {
        let (room, rest) = prefixed(rest)?;
        let (id, rest) = prefixed(rest)?;
        let room = std::str::from_utf8(room).during("the name of a room")?;
        match rest {
            [1 | 2, message @ ..] => Ok(Self::Kept {
                room,
                id: history_id(id)?,
                message,
            }),
            [3] => Ok(Self::Gap {
                room,
                position: history_id(id)?,
            }),
            [4, is_silent @ (0 | 1)] if id.is_empty() => Ok(Self::Silence {
                room,
                is_silent: *is_silent == 1,
            }),
            other => Err(Failure::new(format!(
                "a room message of an unknown kind: {other:02x?}"
            ))),
        }
    }
}

/// Splits off what a byte with its length precedes.
fn prefixed(bytes: &[u8]) -> Outcome<(&[u8], &[u8])> {
    let split = bytes.split_first();
    let split = split.and_then(|(len, rest)| rest.split_at_checked(usize::from(*len)));
    split.ok_or_else(|| Failure::new("a room message is too short"))
}

fn history_id(bytes: &[u8]) -> Outcome<HistoryId> {
    let text = String::from_utf8_lossy(bytes);
    text.parse().during(format!("the id {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_the_guide_are_read() {
        let id: HistoryId = "a-1".parse().unwrap();
        let rain = b"\x07\x04news\x03a-1\x01rain";
        let kept = FromNode::Kept {
            room: "news",
            id,
            message: b"rain",
        };
        assert_eq!(FromNode::read(rain).unwrap(), kept);
        let gap = FromNode::Gap {
            room: "news",
            position: id,
        };
        assert_eq!(FromNode::read(b"\x07\x04news\x03a-1\x03").unwrap(), gap);
        let silent = FromNode::Silence {
            room: "news",
            is_silent: true,
        };
        assert_eq!(FromNode::read(b"\x07\x04news\x00\x04\x01").unwrap(), silent);
        let busy = FromNode::Error {
            call: 1,
            code: BUSY,
            text: "no".into(),
        };
        assert_eq!(FromNode::read(b"\x05\0\0\0\x01\x05no").unwrap(), busy);
        assert!(FromNode::read(b"\x07\x04ne").is_err());
    }
}
