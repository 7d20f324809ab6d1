//! A reference parser of RFC 6455 §5 frames that reads all bytes at once. It shares no code with the code under test.

/// A complete message, ping or pong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    Message { text: bool, payload: Vec<u8> },
    Ping(Vec<u8>),
    Pong(Vec<u8>),
}

/// The state at the end of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TranscriptEnd {
    /// The connection is open. `mid_message` is true if a frame or message is incomplete.
    Open { mid_message: bool },
    /// A close frame with this code and reason was received.
    Closed(Option<u16>, String),
    /// The peer violated the protocol, which fails the connection with this close code.
    Broken(u16),
}

/// Everything that a peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transcript {
    pub(crate) heard: Vec<Heard>,
    pub(crate) end: TranscriptEnd,
}

const PROTOCOL_ERROR: u16 = 1002;
const INVALID_PAYLOAD: u16 = 1007;
const TOO_BIG: u16 = 1009;

/// Parses what a client sent to a server that accepts messages of up to `message_bytes_max` bytes.
pub(crate) fn read(bytes: &[u8], message_bytes_max: usize) -> Transcript {
    read_from(bytes, message_bytes_max, Sender::Client)
}

/// Parses what a server sent to a client that accepts messages of up to `message_bytes_max` bytes.
pub(crate) fn read_of_server(bytes: &[u8], message_bytes_max: usize) -> Transcript {
    read_from(bytes, message_bytes_max, Sender::Server)
}

/// The side that sent the frames. A client must mask them, and a server must not (RFC 6455 §5.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

fn read_from(bytes: &[u8], message_bytes_max: usize, sender: Sender) -> Transcript {
    let mut heard = Vec::new();
    let end = match read_frames(bytes, message_bytes_max as u64, sender, &mut heard) {
        Ok(end) => end,
        Err(code) => TranscriptEnd::Broken(code),
    };
    Transcript { heard, end }
}

fn read_frames(
    mut bytes: &[u8],
    bytes_max: u64,
    sender: Sender,
    heard: &mut Vec<Heard>,
) -> Result<TranscriptEnd, u16> {
    let mut message: Option<(bool, Vec<u8>)> = None;
    loop {
        let so_far = message.as_ref().map(|(_, payload)| payload.len() as u64);
        let Some(header) = ReferenceHeader::read(bytes, so_far, bytes_max, sender)? else {
            let mid_message = message.is_some() || !bytes.is_empty();
            return Ok(TranscriptEnd::Open { mid_message });
        };
        let masked = &bytes[header.len..];
        let arrived = masked.len().min(header.payload_len);
        let payload: Vec<u8> = masked[..arrived]
            .iter()
            .zip(header.key.iter().cycle())
            .map(|(byte, key)| byte ^ key)
            .collect();
        let is_whole = arrived == header.payload_len;
        bytes = &masked[arrived..];
        if header.opcode < 8 {
            let (text, whole) = message.get_or_insert_with(|| (header.opcode == 1, Vec::new()));
            whole.extend(payload);
            let is_last = is_whole && header.fin;
            if *text
                && let Err(error) = std::str::from_utf8(whole)
                && (is_last || error.error_len().is_some())
            {
                return Err(INVALID_PAYLOAD);
            }
            if is_last && let Some((text, payload)) = message.take() {
                heard.push(Heard::Message { text, payload });
            }
        } else if is_whole {
            match header.opcode {
                8 => return read_close(&payload),
                9 => heard.push(Heard::Ping(payload)),
                _ => heard.push(Heard::Pong(payload)),
            }
        }
        if !is_whole {
            return Ok(TranscriptEnd::Open { mid_message: true });
        }
    }
}

struct ReferenceHeader {
    fin: bool,
    opcode: u8,
    payload_len: usize,
    key: [u8; 4],
    len: usize,
}

impl ReferenceHeader {
    /// Parses a header and rejects it at the first invalid byte. `so_far` is the number of payload bytes of an unfinished
    /// message.
    fn read(
        bytes: &[u8],
        so_far: Option<u64>,
        bytes_max: u64,
        sender: Sender,
    ) -> Result<Option<Self>, u16> {
        let Some(&first) = bytes.first() else {
            return Ok(None);
        };
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0F);
        let in_order = match opcode {
            0 => so_far.is_some(),
            1 | 2 => so_far.is_none(),
            8..=10 => fin,
            _ => false,
        };
        if first & 0x70 != 0 || !in_order {
            return Err(PROTOCOL_ERROR);
        }
        let Some(&second) = bytes.get(1) else {
            return Ok(None);
        };
        if (second & 0x80 != 0) != (sender == Sender::Client)
            || (opcode >= 8 && second & 0x7F > 125)
        {
            return Err(PROTOCOL_ERROR);
        }
        let (length_bytes, least) = match second & 0x7F {
            126 => (2, 126),
            127 => (8, 1 << 16),
            _ => (0, 0),
        };
        if length_bytes == 8 && bytes.get(2).is_some_and(|&top| top & 0x80 != 0) {
            return Err(PROTOCOL_ERROR);
        }
        let Some(length) = bytes.get(2..2 + length_bytes) else {
            return Ok(None);
        };
        let length = match length_bytes {
            0 => u64::from(second & 0x7F),
            _ => length.iter().fold(0, |sum, &b| sum << 8 | u64::from(b)),
        };
        if length < least {
            return Err(PROTOCOL_ERROR);
        }
        if opcode < 8 && so_far.unwrap_or(0) + length > bytes_max {
            return Err(TOO_BIG);
        }
        let key_at = 2 + length_bytes;
        let key = match (sender, bytes[key_at..].first_chunk()) {
            (Sender::Client, Some(&key)) => key,
            (Sender::Client, None) => return Ok(None),
            (Sender::Server, _) => [0; 4],
        };
        Ok(Some(Self {
            fin,
            opcode,
            payload_len: length as usize,
            key,
            len: key_at + if sender == Sender::Client { 4 } else { 0 },
        }))
    }
}

/// Parses a close payload (RFC 6455 §5.5.1, §7.4, and the IANA registry).
fn read_close(payload: &[u8]) -> Result<TranscriptEnd, u16> {
    if payload.is_empty() {
        return Ok(TranscriptEnd::Closed(None, String::new()));
    }
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return Err(PROTOCOL_ERROR);
    };
    let code = u16::from_be_bytes(*code);
    if !may_travel(code) {
        return Err(PROTOCOL_ERROR);
    }
    match String::from_utf8(reason.to_vec()) {
        Ok(reason) => Ok(TranscriptEnd::Closed(Some(code), reason)),
        Err(_) => Err(INVALID_PAYLOAD),
    }
}

/// Whether a close frame may have this code.
pub(crate) fn may_travel(code: u16) -> bool {
    (1000..5000).contains(&code)
        && !(1015..3000).contains(&code)
        && ![1004, 1005, 1006].contains(&code)
}
