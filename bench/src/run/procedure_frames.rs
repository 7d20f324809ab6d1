//! The frames of procedures that a client sends and receives. `docs/procedures.md` defines them.

use crate::wire;

pub(in crate::run) const SUBPROTOCOL: &str = "humphrey_ws.procedures.v1";

/// The id of the only request of a connection.
const REQUEST: u32 = 1;
const MASK: [u8; 4] = [0x35, 0x6A, 0x1C, 0xE9];

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::run) enum Frame<'a> {
    /// A message of a room.
    Room {
        room: &'a [u8],
        id: &'a [u8],
        message: &'a [u8],
    },
    /// The client has joined. The id is that of the room's latest message.
    Joined { id: &'a [u8] },
    /// The room no longer keeps all messages after the client's id.
    Gap,
    /// The server refused the call.
    Error { text: &'a [u8] },
}

/// Appends a WebSocket message with the call `$join`. The room and the starting point have at most 255 bytes.
pub(super) fn put_join(output: &mut Vec<u8>, room: &[u8], since: &[u8]) {
    const NAME: &[u8] = b"$join";
    let length = 1 + 4 + 1 + NAME.len() + 1 + room.len() + since.len();
    wire::put_client_head(output, wire::BINARY, length, MASK);
    let start = output.len();
    output.push(2);
    output.extend_from_slice(&REQUEST.to_be_bytes());
    output.push(NAME.len() as u8);
    output.extend_from_slice(NAME);
    output.push(room.len() as u8);
    output.extend_from_slice(room);
    output.extend_from_slice(since);
    wire::mask(&mut output[start..], MASK);
}

/// Parses a message of the server; `None` if it is none of the frames that a client of this bench can receive.
pub(in crate::run) fn parse(payload: &[u8]) -> Option<Frame<'_>> {
    let (&kind, rest) = payload.split_first()?;
    if kind == 7 {
        let (room, rest) = short(rest)?;
        let (id, rest) = short(rest)?;
        // The kind of the message, text or binary.
        let (_, message) = rest.split_first()?;
        return Some(Frame::Room { room, id, message });
    }
    let (request, rest) = rest.split_first_chunk()?;
    if u32::from_be_bytes(*request) != REQUEST {
        return None;
    }
    match kind {
        4 => Some(Frame::Joined { id: rest }),
        5 => Some(Frame::Error {
            text: rest.get(1..)?,
        }),
        6 if rest == b"gap" => Some(Frame::Gap),
        _ => None,
    }
}

/// Splits off a part whose length is in its first byte.
fn short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_the_documentation_are_parsed() {
        let room = b"\x07\x04news\x03a-1\x01rain";
        let expected = Frame::Room {
            room: b"news",
            id: b"a-1",
            message: b"rain",
        };
        assert_eq!(parse(room), Some(expected));
        assert_eq!(
            parse(b"\x04\0\0\0\x01a-1"),
            Some(Frame::Joined { id: b"a-1" })
        );
        assert_eq!(parse(b"\x06\0\0\0\x01gap"), Some(Frame::Gap));
        assert_eq!(
            parse(b"\x05\0\0\0\x01\x02no"),
            Some(Frame::Error { text: b"no" })
        );
        for other in [
            &b""[..],
            b"\x04\0\0\0\x02",
            b"\x07\x09news",
            b"\x06\0\0\0\x01half",
        ] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn join_names_room_and_starting_point() {
        let mut output = Vec::new();
        put_join(&mut output, b"news", b"a-1");
        let wire::Parsed::Frame(frame) = wire::client_frame(&output) else {
            panic!("no frame");
        };
        assert_eq!((frame.opcode, frame.end), (wire::BINARY, output.len()));
        wire::mask(&mut output[frame.start..frame.end], frame.mask);
        assert_eq!(
            &output[frame.start..],
            b"\x02\0\0\0\x01\x05$join\x04newsa-1"
        );
    }
}
