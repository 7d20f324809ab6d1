//! What a client receives: WebSocket messages, with or without the ids of a history, or events.

use std::io;

use super::events::{self, Events};
use super::scenario::Receives;
use super::stream::{Frames, Part, Totals};
use crate::run::procedure_frames::{self, Frame};
use crate::wire;

/// Splits the stream of one client into messages.
pub(super) enum Input {
    Messages(Frames),
    /// Until the client has joined the room, messages have no ids.
    MessagesWithIds {
        frames: Frames,
        has_joined: bool,
    },
    Events(Events),
}

impl Input {
    /// `opcode` is that of the messages that clients send.
    pub(super) fn new(form: Receives, opcode: u8) -> Self {
        match form {
            Receives::Messages => Self::Messages(Frames::new(opcode)),
            Receives::MessagesWithIds => Self::MessagesWithIds {
                frames: Frames::new(opcode),
                has_joined: false,
            },
            Receives::Events => Self::Events(Events::default()),
        }
    }

    /// Expects messages of the room from now on. Those with ids are binary, whatever they contain.
    pub(super) fn has_joined(&mut self) {
        if let Self::MessagesWithIds { frames, has_joined } = self {
            frames.expect(wire::BINARY);
            *has_joined = true;
        }
    }

    /// Removes the next part of a message from `bytes` and adds it to `totals`.
    pub(super) fn next<'a>(
        &mut self,
        bytes: &mut &'a [u8],
        totals: &mut Totals,
        may_be_compressed: bool,
    ) -> io::Result<Part<'a>> {
        match self {
            Self::Messages(frames) | Self::MessagesWithIds { frames, .. } => {
                frames.next(bytes, totals, may_be_compressed)
            }
            Self::Events(events) => Ok(events.next(bytes, totals)),
        }
    }

    /// Whether the message that has just ended is compressed.
    pub(super) fn is_compressed(&self) -> bool {
        match self {
            Self::Messages(frames) | Self::MessagesWithIds { frames, .. } => frames.is_compressed(),
            Self::Events(_) => false,
        }
    }

    /// Returns the text in a message, without what the form of the client adds.
    pub(super) fn text<'a>(&self, message: &'a [u8]) -> io::Result<&'a [u8]> {
        let text = match self {
            Self::Messages(_)
            | Self::MessagesWithIds {
                has_joined: false, ..
            } => Some(message),
            Self::MessagesWithIds { .. } => match procedure_frames::parse(message) {
                Some(Frame::Room { id, message, .. }) if !id.is_empty() => Some(message),
                _ => None,
            },
            Self::Events(_) => events::data(message),
        };
        text.ok_or_else(|| {
            let message = String::from_utf8_lossy(message);
            io::Error::other(format!("an unexpected message: {message:?}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_contains_the_text_that_was_sent() {
        let cases: [(Receives, &[u8]); 3] = [
            (Receives::Messages, b"rain"),
            (Receives::MessagesWithIds, b"\x07\x04news\x03a-1\x01rain"),
            (Receives::Events, b"id: a-1\ndata: rain\n\n"),
        ];
        for (form, message) in cases {
            let mut input = Input::new(form, wire::TEXT);
            input.has_joined();
            assert_eq!(input.text(message).unwrap(), b"rain", "{form:?}");
        }
    }

    #[test]
    fn message_in_another_form_is_an_error() {
        let events = Input::new(Receives::Events, wire::TEXT);
        assert!(events.text(b"rain").is_err());
        let mut with_ids = Input::new(Receives::MessagesWithIds, wire::TEXT);
        assert_eq!(with_ids.text(b"hello").unwrap(), b"hello");
        with_ids.has_joined();
        for message in [&b"rain"[..], b"\x07\x04news\x00\x01rain"] {
            assert!(with_ids.text(message).is_err(), "{message:?}");
        }
    }
}
