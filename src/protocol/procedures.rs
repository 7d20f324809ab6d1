//! The frames of the procedures' subprotocols. Each is the payload of a binary message. Numbers are big-endian.
//!
//! The newer subprotocol extends the older one without changing its frames, so a broadcast is encoded once for both.

use std::fmt;

pub(crate) use super::encode::MessageKind;

/// The older subprotocol, with notifications and calls from the client.
pub(crate) const OLD: &str = "websocket.io-rpc-v0.1";
/// The newer subprotocol, which adds errors, streamed responses, calls from the server, and message ids of rooms with history.
pub(crate) const V1: &str = "humphrey_ws.procedures.v1";

/// The notification that tells a client in how many seconds its session expires. Empty: never.
pub(crate) const EXPIRES: &str = "$expires";

/// The version of the procedures' subprotocol that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Old,
    V1,
}

impl Version {
    /// Returns the version with this subprotocol name, or `None` for another subprotocol.
    pub(crate) fn of_subprotocol(name: &str) -> Option<Self> {
        match name {
            V1 => Some(Self::V1),
            OLD => Some(Self::Old),
            _ => None,
        }
    }
}

const NOTIFICATION: u8 = 1;
const REQUEST: u8 = 2;
const RESET: u8 = 3;
const RESPONSE: u8 = 4;
const ERROR: u8 = 5;
const ITEM: u8 = 6;
const OF_ROOM: u8 = 7;

/// The maximum length of a name in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// A frame that a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcedureFrame<'a> {
    Notification {
        name: &'a str,
        payload: &'a [u8],
    },
    Request {
        id: u32,
        name: &'a str,
        payload: &'a [u8],
    },
    /// The caller cancels its call.
    Reset {
        id: u32,
    },
    /// The final response of a call.
    Response {
        id: u32,
        payload: &'a [u8],
    },
    /// The final error of a call.
    Error {
        id: u32,
        code: u8,
        text: &'a str,
    },
}

/// The reason why a frame is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    Empty,
    /// The form is unknown, or a client may not send it.
    Form(u8),
    /// The frame is truncated.
    Short,
    /// There are bytes after the end of the frame.
    Long,
    /// A name or a text is not UTF-8.
    Utf8,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an empty frame"),
            Self::Form(form) => write!(f, "a frame of the unknown form {form}"),
            Self::Short => f.write_str("a truncated frame"),
            Self::Long => f.write_str("a frame with bytes after its end"),
            Self::Utf8 => f.write_str("a frame with a name or text that is not UTF-8"),
        }
    }
}

impl<'a> ProcedureFrame<'a> {
    /// Parses a frame that a client has sent. The older subprotocol has only the first three forms.
    pub(crate) fn parse(bytes: &'a [u8], version: Version) -> Result<Self, Malformed> {
        let (&form, mut rest) = bytes.split_first().ok_or(Malformed::Empty)?;
        match form {
            NOTIFICATION => Ok(Self::Notification {
                name: take_name(&mut rest)?,
                payload: rest,
            }),
            REQUEST => Ok(Self::Request {
                id: take_id(&mut rest)?,
                name: take_name(&mut rest)?,
                payload: rest,
            }),
            RESET => match (take_id(&mut rest)?, rest) {
                (id, []) => Ok(Self::Reset { id }),
                _ => Err(Malformed::Long),
            },
            RESPONSE if version == Version::V1 => Ok(Self::Response {
                id: take_id(&mut rest)?,
                payload: rest,
            }),
            ERROR if version == Version::V1 => {
                let id = take_id(&mut rest)?;
                let (&code, text) = rest.split_first().ok_or(Malformed::Short)?;
                let text = std::str::from_utf8(text).map_err(|_| Malformed::Utf8)?;
                Ok(Self::Error { id, code, text })
            }
            form => Err(Malformed::Form(form)),
        }
    }
}

fn take_id(rest: &mut &[u8]) -> Result<u32, Malformed> {
    let (id, behind) = rest.split_first_chunk().ok_or(Malformed::Short)?;
    *rest = behind;
    Ok(u32::from_be_bytes(*id))
}

/// Takes a text with its length in one byte before it off the start of `rest`.
pub(crate) fn take_name<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let (&len, behind) = rest.split_first().ok_or(Malformed::Short)?;
    let (name, behind) = behind
        .split_at_checked(len.into())
        .ok_or(Malformed::Short)?;
    *rest = behind;
    std::str::from_utf8(name).map_err(|_| Malformed::Utf8)
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    // Callers check the length. A longer name is truncated so that the frame stays well-formed.
    debug_assert!(name.len() <= NAME_BYTES_MAX);
    out.push(name.len().min(NAME_BYTES_MAX) as u8);
    out.extend_from_slice(&name.as_bytes()[..name.len().min(NAME_BYTES_MAX)]);
}

fn with_id(form: u8, id: u32, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + len);
    out.push(form);
    out.extend_from_slice(&id.to_be_bytes());
    out
}

pub(crate) fn notification(name: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + name.len() + payload.len());
    out.push(NOTIFICATION);
    push_name(&mut out, name);
    out.extend_from_slice(payload);
    out
}

pub(crate) fn request(id: u32, name: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = with_id(REQUEST, id, 1 + name.len() + payload.len());
    push_name(&mut out, name);
    out.extend_from_slice(payload);
    out
}

pub(crate) fn reset(id: u32) -> Vec<u8> {
    with_id(RESET, id, 0)
}

pub(crate) fn response(id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = with_id(RESPONSE, id, payload.len());
    out.extend_from_slice(payload);
    out
}

pub(crate) fn error(id: u32, code: u8, text: &str) -> Vec<u8> {
    let mut out = with_id(ERROR, id, 1 + text.len());
    out.push(code);
    out.extend_from_slice(text.as_bytes());
    out
}

pub(crate) fn item(id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = with_id(ITEM, id, payload.len());
    out.extend_from_slice(payload);
    out
}

/// Encodes a message of a room with history, with the message's id in that history.
pub(crate) fn of_room(room: &str, id: &str, kind: MessageKind, message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + room.len() + id.len() + message.len());
    push_of_room(&mut out, room, id, kind.opcode() as u8);
    out.extend_from_slice(message);
    out
}

fn push_of_room(out: &mut Vec<u8>, room: &str, id: &str, kind: u8) {
    out.push(OF_ROOM);
    push_name(out, room);
    push_name(out, id);
    out.push(kind);
}

/// What a server of a cluster tells the members of a room, in the place of a message.
#[cfg(feature = "cluster")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RoomState<'a> {
    /// Messages are missing. The client resumes from this id.
    Gap(&'a str),
    /// Messages can't be delivered for now, or can again.
    Silence { is_silent: bool },
}

/// Encodes what there is to know of a room.
#[cfg(feature = "cluster")]
pub(crate) fn room_state(room: &str, state: RoomState<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match state {
        RoomState::Gap(id) => push_of_room(&mut out, room, id, 3),
        RoomState::Silence { is_silent } => {
            push_of_room(&mut out, room, "", 4);
            out.push(is_silent.into());
        }
    }
    out
}

/// What a message about the members of a room contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PresenceFrame {
    /// All members.
    All,
    /// Those members that have changed since the last message.
    Changes,
}

/// Encodes members of a room, which are given as JSON.
pub(crate) fn presence(room: &str, of: PresenceFrame, json: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + room.len() + json.len());
    let kind = match of {
        PresenceFrame::All => 5,
        PresenceFrame::Changes => 6,
    };
    push_of_room(&mut out, room, "", kind);
    out.extend_from_slice(json.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_documented_bytes() {
        assert_eq!(notification("tick", b"7"), b"\x01\x04tick7");
        assert_eq!(request(258, "myip", b""), b"\x02\x00\x00\x01\x02\x04myip");
        assert_eq!(reset(u32::MAX), b"\x03\xff\xff\xff\xff");
        assert_eq!(response(1, b"ok"), b"\x04\x00\x00\x00\x01ok");
        assert_eq!(error(1, 2, "no"), b"\x05\x00\x00\x00\x01\x02no");
        assert_eq!(item(1, b"half"), b"\x06\x00\x00\x00\x01half");
        assert_eq!(
            of_room("news", "a-1", MessageKind::Text, b"rain"),
            b"\x07\x04news\x03a-1\x01rain"
        );
        assert_eq!(
            of_room("", "a-1", MessageKind::Binary, b"\0"),
            b"\x07\x00\x03a-1\x02\0"
        );
        assert_eq!(
            presence("news", PresenceFrame::All, "[]"),
            b"\x07\x04news\x00\x05[]"
        );
        assert_eq!(
            presence("", PresenceFrame::Changes, "[]"),
            b"\x07\x00\x00\x06[]"
        );
        #[cfg(feature = "cluster")]
        {
            let gap = room_state("news", RoomState::Gap("b-0"));
            assert_eq!(gap, b"\x07\x04news\x03b-0\x03");
            let silent = room_state("news", RoomState::Silence { is_silent: true });
            assert_eq!(silent, b"\x07\x04news\x00\x04\x01");
            let live = room_state("", RoomState::Silence { is_silent: false });
            assert_eq!(live, b"\x07\x00\x00\x04\x00");
        }
    }

    #[test]
    fn encoded_frame_is_parsed_back() {
        let name = "n".repeat(NAME_BYTES_MAX);
        let payload = b"\x00\xff";
        let same = |bytes: &[u8], frame: ProcedureFrame<'_>| {
            assert_eq!(ProcedureFrame::parse(bytes, Version::V1), Ok(frame))
        };
        same(
            &notification(&name, payload),
            ProcedureFrame::Notification {
                name: &name,
                payload,
            },
        );
        same(
            &request(7, "", payload),
            ProcedureFrame::Request {
                id: 7,
                name: "",
                payload,
            },
        );
        same(&reset(7), ProcedureFrame::Reset { id: 7 });
        same(
            &response(7, payload),
            ProcedureFrame::Response { id: 7, payload },
        );
        same(
            &error(7, 3, "ü"),
            ProcedureFrame::Error {
                id: 7,
                code: 3,
                text: "ü",
            },
        );
    }

    #[test]
    fn malformed_frame_is_refused_with_its_reason() {
        for (bytes, version, expected) in [
            (&b""[..], Version::V1, Malformed::Empty),
            (b"\x00", Version::V1, Malformed::Form(0)),
            (b"\x06\x00\x00\x00\x01", Version::V1, Malformed::Form(6)),
            (b"\x07\x00\x00\x01", Version::V1, Malformed::Form(7)),
            (b"\x04\x00\x00\x00\x01", Version::Old, Malformed::Form(4)),
            (
                b"\x05\x00\x00\x00\x01\x02",
                Version::Old,
                Malformed::Form(5),
            ),
            (b"\x01", Version::V1, Malformed::Short),
            (b"\x01\x02a", Version::Old, Malformed::Short),
            (b"\x02\x00\x00\x00", Version::V1, Malformed::Short),
            (b"\x02\x00\x00\x00\x01", Version::V1, Malformed::Short),
            (b"\x03\x00\x00\x00", Version::V1, Malformed::Short),
            (b"\x03\x00\x00\x00\x01\x00", Version::V1, Malformed::Long),
            (b"\x05\x00\x00\x00\x01", Version::V1, Malformed::Short),
            (
                b"\x05\x00\x00\x00\x01\x02\xff",
                Version::V1,
                Malformed::Utf8,
            ),
            (b"\x01\x01\xff", Version::Old, Malformed::Utf8),
        ] {
            assert_eq!(
                ProcedureFrame::parse(bytes, version),
                Err(expected),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn arbitrary_bytes_round_trip_or_are_malformed() {
        let mut dice = crate::protocol::fuzz::dice::Dice::from_seed(1);
        let mut whole = [0; 6];
        for round in 0..100_000 {
            // Most rounds use a known form and a plausible length.
            let len = dice.below(25);
            let mut bytes: Vec<u8> = (0..len).map(|_| dice.below(256) as u8).collect();
            if round % 4 != 0 && !bytes.is_empty() {
                bytes[0] = dice.below(8) as u8;
                for at in [1, 5] {
                    if bytes.len() > at && dice.one_in(2) {
                        bytes[at] = dice.below(9) as u8;
                    }
                }
            }
            for version in [Version::V1, Version::Old] {
                let Ok(frame) = ProcedureFrame::parse(&bytes, version) else {
                    continue;
                };
                let written = match frame {
                    ProcedureFrame::Notification { name, payload } => notification(name, payload),
                    ProcedureFrame::Request { id, name, payload } => request(id, name, payload),
                    ProcedureFrame::Reset { id } => reset(id),
                    ProcedureFrame::Response { id, payload } => response(id, payload),
                    ProcedureFrame::Error { id, code, text } => error(id, code, text),
                };
                assert_eq!(written, bytes);
                whole[usize::from(bytes[0])] += 1;
                assert!(version == Version::V1 || bytes[0] <= RESET);
            }
        }
        assert!(whole[1..].iter().all(|&frames| frames > 100), "{whole:?}");
    }

    #[test]
    fn truncated_request_is_refused() {
        let whole = request(1, "name", b"");
        for len in 0..whole.len() {
            assert!(ProcedureFrame::parse(&whole[..len], Version::V1).is_err());
        }
        assert!(ProcedureFrame::parse(&whole, Version::V1).is_ok());
    }
}
