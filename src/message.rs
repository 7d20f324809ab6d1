//! WebSocket messages.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

use crate::protocol::connection::MessagePayload;
use crate::protocol::encode::{self, HEADER_BYTES_MAX, Opcode};

/// A WebSocket message: text or binary.
///
/// The frame that carries it is written once, when the message is created. Clones, broadcasts and echoes share it, so a
/// clone costs a reference count, whatever the size.
///
/// Sending methods accept anything that converts into a message. A text (`&str`, `String`) becomes a text message.
/// Bytes (`&[u8]`, `Vec<u8>`) become a binary message, whatever they contain. The payload is copied once.
///
/// ```
/// use humphrey_ws::Message;
///
/// let text = Message::new("Grüezi");
/// assert!(text.is_text());
/// assert_eq!(text.text(), Some("Grüezi"));
///
/// let binary = Message::new([0xff, 0x00]);
/// assert!(!binary.is_text());
/// assert_eq!(binary.bytes(), [0xff, 0x00]);
///
/// assert!(Message::from("text").is_text());
/// assert!(!Message::from(b"bytes".to_vec()).is_text());
/// ```
#[derive(Clone)]
pub struct Message {
    /// An unmasked frame with FIN set: header, then payload.
    frame: Bytes,
    shape: Shape,
}

/// Properties of a message's frame.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    header_len: u8,
    text: bool,
    #[cfg(feature = "deflate")]
    uncompressed: bool,
}

impl Shape {
    fn new(header_len: usize, text: bool) -> Self {
        Self {
            header_len: header_len as u8,
            text,
            #[cfg(feature = "deflate")]
            uncompressed: false,
        }
    }

    /// The message is never compressed.
    #[cfg(feature = "deflate")]
    pub(crate) fn is_uncompressed(self) -> bool {
        self.uncompressed
    }
}

impl Message {
    /// Creates a message with a copy of the payload: text if it is valid UTF-8 (including an empty payload), else
    /// binary.
    ///
    /// Use [`Message::new_binary`] for a binary message whose bytes may happen to be UTF-8, and [`Message::new_text`]
    /// for a payload that is known to be text.
    pub fn new<T>(payload: T) -> Self
    where
        T: AsRef<[u8]>,
    {
        let payload = payload.as_ref();
        Self::from_slice(payload, std::str::from_utf8(payload).is_ok())
    }

    /// Creates a text message with a copy of the payload (RFC 6455 §5.6).
    ///
    /// It is not called `text`, since 0.5.1 has an [accessor](Self::text) of that name.
    ///
    /// ```
    /// # use humphrey_ws::Message;
    /// assert_eq!(Message::new_text("Grüezi").text(), Some("Grüezi"));
    /// ```
    pub fn new_text<T>(payload: T) -> Self
    where
        T: AsRef<str>,
    {
        Self::from_slice(payload.as_ref().as_bytes(), true)
    }

    /// Creates a binary message with a copy of the payload (RFC 6455 §5.6).
    pub fn new_binary<T>(payload: T) -> Self
    where
        T: AsRef<[u8]>,
    {
        Self::from_slice(payload.as_ref(), false)
    }

    /// Creates a text message from a payload that is known to be UTF-8.
    #[cfg(feature = "cluster")]
    pub(crate) fn new_checked_text(payload: &[u8]) -> Self {
        Self::from_slice(payload, true)
    }

    #[inline]
    fn from_slice(payload: &[u8], text: bool) -> Self {
        let mut header = [0; HEADER_BYTES_MAX];
        let header_len = encode::write_header(opcode(text), payload.len(), &mut header);
        // Exact capacity, so that `Bytes` takes the vector without copying.
        let mut frame = Vec::with_capacity(header_len + payload.len());
        frame.extend_from_slice(&header[HEADER_BYTES_MAX - header_len..]);
        frame.extend_from_slice(payload);
        Self {
            frame: frame.into(),
            shape: Shape::new(header_len, text),
        }
    }

    /// Creates a received message, whose text the protocol has validated already.
    #[inline]
    pub(crate) fn from_payload(payload: MessagePayload<'_>, text: bool) -> Self {
        match payload {
            MessagePayload::Whole(payload) => Self::from_slice(payload, text),
            MessagePayload::Assembled(mut buffer) => {
                let payload_len = buffer.len() - HEADER_BYTES_MAX;
                let mut header = [0; HEADER_BYTES_MAX];
                let header_len = encode::write_header(opcode(text), payload_len, &mut header);
                buffer[..HEADER_BYTES_MAX].copy_from_slice(&header);
                Self {
                    frame: Bytes::from(buffer).slice(HEADER_BYTES_MAX - header_len..),
                    shape: Shape::new(header_len, text),
                }
            }
        }
    }

    /// Marks the message as never compressed, also for clients that have negotiated compression. Use it for secrets, if
    /// an attacker who sees the lengths of encrypted messages could influence what is sent beside them (as in CRIME and
    /// BREACH), and for data that is compressed already.
    ///
    /// ```
    /// use humphrey_ws::Message;
    ///
    /// let message = Message::new(r#"{"token":"7f3a…"}"#).uncompressed();
    /// ```
    #[cfg(feature = "deflate")]
    #[must_use]
    pub fn uncompressed(mut self) -> Self {
        self.shape.uncompressed = true;
        self
    }

    #[cfg(feature = "deflate")]
    pub(crate) fn is_uncompressed(&self) -> bool {
        self.shape.uncompressed
    }

    #[cfg(not(feature = "deflate"))]
    pub(crate) fn is_uncompressed(&self) -> bool {
        false
    }

    /// Returns whether this is a text message.
    pub fn is_text(&self) -> bool {
        self.shape.text
    }

    /// Returns the payload of a text message, or `None` if the message is binary.
    pub fn text(&self) -> Option<&str> {
        if self.shape.text {
            std::str::from_utf8(self.bytes()).ok()
        } else {
            None
        }
    }

    /// Returns the payload.
    pub fn bytes(&self) -> &[u8] {
        &self.frame[usize::from(self.shape.header_len)..]
    }

    /// Returns the message as one unmasked frame, as a server sends it (RFC 6455 §5.2).
    ///
    /// ```
    /// # use humphrey_ws::Message;
    /// assert_eq!(Message::new("hi").to_frame(), [0x81, 2, b'h', b'i']);
    /// ```
    pub fn to_frame(self) -> Vec<u8> {
        self.frame.into()
    }

    /// Returns the shared frame.
    pub(crate) fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// Splits the message into its frame and shape, so that passing on an unshared message costs no reference count.
    #[inline]
    pub(crate) fn into_frame(self) -> (Bytes, Shape) {
        (self.frame, self.shape)
    }

    #[inline]
    pub(crate) fn of_frame(frame: Bytes, shape: Shape) -> Self {
        Self { frame, shape }
    }
}

fn opcode(text: bool) -> Opcode {
    if text { Opcode::Text } else { Opcode::Binary }
}

/// Implements `From` for types that hold a text, and for types that hold bytes.
macro_rules! message_from {
    ($($constructor:ident: $($payload:ty),+;)+) => { $($(
        impl From<$payload> for Message {
            fn from(payload: $payload) -> Self {
                Self::$constructor(payload)
            }
        }
    )+)+ };
}

message_from! {
    new_text: &str, &String, String, Cow<'_, str>;
    new_binary: &[u8], &Vec<u8>, Vec<u8>;
}

impl<const N: usize> From<&[u8; N]> for Message {
    fn from(payload: &[u8; N]) -> Self {
        Self::new_binary(payload)
    }
}

impl<const N: usize> From<[u8; N]> for Message {
    fn from(payload: [u8; N]) -> Self {
        Self::new_binary(payload)
    }
}

/// A message of a room with a history, and when it was sent.
#[derive(Debug, Clone)]
pub(crate) struct SentMessage {
    pub(crate) message: Message,
    /// In milliseconds since 1970; 0 if it is not known.
    pub(crate) sent_at: u64,
}

#[cfg(test)]
impl From<Message> for SentMessage {
    fn from(message: Message) -> Self {
        Self {
            message,
            sent_at: 0,
        }
    }
}

/// A clone that shares the frame.
impl From<&Message> for Message {
    fn from(message: &Message) -> Self {
        message.clone()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to recognise a message in a log without flooding it.
        const SHOWN_BYTES_MAX: usize = 64;
        let payload = self.bytes();
        let shown = &payload[..payload.len().min(SHOWN_BYTES_MAX)];
        let mut debug = f.debug_struct("Message");
        debug
            .field("text", &self.shape.text)
            .field("len", &payload.len());
        match self.text() {
            Some(_) => debug.field("payload", &String::from_utf8_lossy(shown)),
            None => debug.field("payload", &shown),
        };
        debug.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_in_pieces_makes_the_same_message_as_a_whole() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; len];
            let mut buffer = vec![0; HEADER_BYTES_MAX];
            buffer.extend_from_slice(&payload);
            let assembled = Message::from_payload(MessagePayload::Assembled(buffer), true);
            let whole = Message::from_payload(MessagePayload::Whole(&payload), true);
            assert_eq!(assembled.bytes(), payload);
            assert_eq!(assembled.to_frame(), whole.to_frame());
        }
    }

    #[test]
    fn conversion_from_text_is_text_and_from_bytes_is_binary() {
        let texts: [Message; 4] = [
            "é".into(),
            "é".to_owned().into(),
            (&"é".to_owned()).into(),
            Cow::Borrowed("é").into(),
        ];
        for message in texts {
            assert_eq!(message.text(), Some("é"));
        }
        let binary: [Message; 5] = [
            b"ok".into(),
            [b'o', b'k'].into(),
            b"ok"[..].into(),
            (&b"ok".to_vec()).into(),
            b"ok".to_vec().into(),
        ];
        for message in binary {
            assert!(!message.is_text());
            assert_eq!(message.bytes(), b"ok");
        }
    }

    #[test]
    fn conversion_from_a_message_shares_its_frame() {
        let message = Message::new("shared");
        let shared = Message::from(&message);
        assert_eq!(message.frame().as_ptr(), shared.frame().as_ptr());
    }

    #[test]
    fn clone_shares_the_frame() {
        let message = Message::new("shared");
        let clone = message.clone();
        assert_eq!(message.frame().as_ptr(), clone.frame().as_ptr());
    }

    #[test]
    fn debug_output_of_a_large_message_is_short() {
        let shown = format!("{:?}", Message::new("é".repeat(100_000)));
        assert!(shown.contains("200000"), "{shown}");
        assert!(shown.len() < 200, "{shown}");
    }
}
