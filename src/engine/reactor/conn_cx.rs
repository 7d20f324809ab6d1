//! The context of a connection's event: the connection's socket and the rest of its shard.

use std::io;

use crate::engine::model::job::{Job, Work};
use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::ShardCx;
use crate::engine::reactor::opening::Upgrade;
use crate::transport::ShardTransport;

/// A connection's transport, and its state in the event loop, which does not depend on the stage.
pub(crate) struct Socket<T> {
    /// `None` once it broke.
    pub(crate) transport: Option<T>,
    /// Counts the connection for its address.
    pub(crate) peer_slot: Option<Box<PeerSlot>>,
    /// There may be something to read. Readiness is reported only once, so this keeps it.
    pub(crate) readable: bool,
    /// The peer will send nothing more: read until the end of the stream.
    pub(crate) hangup: bool,
    /// Whether the connection is queued for reading (`ShardCx::readable`), or its reading is paused (`ReceiveBudget`).
    pub(crate) queued: bool,
    /// Whether the connection is queued for writing (`ShardCx::dirty`, `ShardCx::evicted`).
    pub(crate) dirty: bool,
    /// When its entry in `Timers` fires, if it has one.
    pub(crate) timer: Option<Tick>,
}

/// Readiness of a socket, as reported by the poll.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    /// The peer has ended its stream, or the connection broke.
    pub(crate) hangup: bool,
    pub(crate) writable: bool,
}

/// The change to make to a connection after the event at hand.
#[allow(clippy::large_enum_variant)] // Moved once per handshake, so its size does not matter.
pub(crate) enum After {
    Stay,
    /// It becomes a WebSocket or an event stream.
    Upgrade(Upgrade),
    /// Nothing more is written, and the peer's end of stream is awaited.
    Linger,
    /// The connection is removed.
    Free,
}

/// The outcome of a read.
enum Input {
    Bytes(usize),
    /// Bytes have arrived, but none that the stage gets: a part of a TLS record, or a message of TLS itself.
    Incomplete,
    /// The peer has ended its stream.
    Ended,
    Broken,
    /// There is nothing to read at present.
    None,
}

/// The context of an event: the connection's socket, and the rest of its shard.
pub(crate) struct ConnCx<'a, T: ShardTransport> {
    pub(crate) key: Key,
    pub(crate) socket: &'a mut Socket<T>,
    pub(crate) shard: &'a mut ShardCx<T>,
    /// The change to make to the connection after the event.
    pub(super) after: After,
}

impl<T: ShardTransport> ConnCx<'_, T> {
    /// Queues the connection for reading in this turn, or in the next if this turn's reads are over.
    #[inline]
    pub(crate) fn want_read(&mut self) {
        if self.socket.readable && !self.socket.queued {
            self.socket.queued = true;
            self.shard.readable.push(self.key);
        }
    }

    /// Queues the connection for writing at the end of this turn.
    #[inline]
    pub(crate) fn want_write(&mut self) {
        if !self.socket.dirty {
            self.socket.dirty = true;
            self.shard.dirty.push(self.key);
        }
    }

    /// Queues the evicted connection for writing in one of the next turns, each of which writes to a few evicted
    /// connections.
    pub(crate) fn want_write_evicted(&mut self) {
        if !self.socket.dirty {
            self.socket.dirty = true;
            self.shard.evicted.push_back(self.key);
        }
    }

    /// Removes the connection after this event.
    pub(crate) fn free(&mut self) {
        self.after = After::Free;
    }

    /// Removes the connection after this event, at the end of everything that the peer was to get. With TLS, the peer
    /// learns that nothing is missing (RFC 8446 §6.1).
    pub(crate) fn end(&mut self) {
        if let Some(transport) = &mut self.socket.transport {
            transport.close_notify();
        }
        self.free();
    }

    /// Writes nothing more, and waits for the peer's end of stream.
    pub(crate) fn linger(&mut self) {
        if matches!(self.after, After::Stay) {
            self.after = After::Linger;
        }
    }

    /// Ends HTTP: a WebSocket or an event stream begins.
    pub(crate) fn upgrade(&mut self, upgrade: Upgrade) {
        debug_assert!(
            matches!(self.after, After::Stay),
            "the connection stays in the HTTP stage"
        );
        self.after = After::Upgrade(upgrade);
    }

    /// Returns whether the connection leaves its stage. The stage then does nothing more.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.after, After::Stay)
    }

    /// Queues a job for the handlers of this connection.
    pub(crate) fn job(&mut self, work: Work) {
        self.shard.jobs.push_back(Job {
            to: Some((self.shard.index, self.key)),
            work,
        });
    }

    /// Reads into a buffer once.
    fn receive(&mut self, buffer: &mut [u8]) -> Input {
        let socket = &mut *self.socket;
        let Some(transport) = &mut socket.transport else {
            return Input::None;
        };
        #[cfg(feature = "__tls")]
        let was_handshake = transport.read_cost() > 0;
        let result = transport.read(buffer);
        #[cfg(feature = "__tls")]
        if was_handshake || result.is_err() {
            let handshake = transport.handshake();
            self.shard.count_tls(was_handshake, handshake, &result);
        }
        match result {
            Ok(0) => {
                socket.readable = false;
                Input::Ended
            }
            Ok(n) => {
                // A short read means an empty socket, unless the end of the stream is still to be read.
                if socket.hangup || transport.may_have_more(n, buffer.len()) {
                    self.want_read();
                } else {
                    socket.readable = false;
                }
                Input::Bytes(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable = false;
                Input::None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.want_read();
                Input::Incomplete
            }
            Err(_) => Input::Broken,
        }
    }

    /// Reads once, and passes the bytes to `stage`. Returns whether there was anything to read.
    #[inline]
    pub(crate) fn read_for<R: Reader<T>>(&mut self, stage: &mut R) -> bool {
        let mut buffer = std::mem::take(&mut self.shard.read_buffer);
        let input = self.receive(&mut buffer);
        match input {
            Input::Bytes(n) => stage.input(self, &mut buffer[..n]),
            Input::Ended => stage.input_ended(self),
            Input::Broken => stage.broken(self),
            Input::Incomplete => stage.input_incomplete(self),
            Input::None => {}
        }
        self.shard.read_buffer = buffer;
        matches!(input, Input::Bytes(_) | Input::Incomplete)
    }

    /// Reads once, at most this many bytes or as few as the transport can read, and passes them to `stage`. Returns
    /// whether there was anything to read.
    pub(crate) fn read_part_for<R: Reader<T>>(&mut self, stage: &mut R, bytes_max: usize) -> bool {
        let bytes_min = self.socket.transport.as_ref().map_or(1, T::read_bytes_min);
        let mut whole = std::mem::take(&mut self.shard.read_buffer);
        let len = bytes_max.max(bytes_min).min(whole.len());
        let buffer = whole.get_mut(..len).unwrap_or_default();
        let input = self.receive(buffer);
        match input {
            Input::Bytes(n) => stage.input(self, buffer.get_mut(..n).unwrap_or_default()),
            Input::Ended => stage.input_ended(self),
            Input::Broken => stage.broken(self),
            Input::Incomplete => stage.input_incomplete(self),
            Input::None => {}
        }
        self.shard.read_buffer = whole;
        matches!(input, Input::Bytes(_) | Input::Incomplete)
    }

    /// Whether to read the socket before its client is judged for silence: bytes may have arrived after the poll, or
    /// their readiness may be among the events that one poll did not return. A socket that is queued for reading is
    /// known to have some, which only a full budget of the shard has kept it from reading.
    pub(crate) fn may_read_before_verdict(&mut self) -> bool {
        if self.socket.queued {
            return false;
        }
        self.socket.readable = true;
        true
    }
}

/// A stage that processes the bytes that its client sends.
pub(crate) trait Reader<T: ShardTransport> {
    fn input(&mut self, cx: &mut ConnCx<'_, T>, bytes: &mut [u8]);

    /// Called when bytes have arrived, but none that the stage gets. The transport may hold a part of a TLS record, or
    /// may have just dropped one that was a message of TLS itself.
    fn input_incomplete(&mut self, _: &mut ConnCx<'_, T>) {}

    /// Called when the client has ended its stream.
    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>);

    /// Called when the connection broke: nothing more can be received or sent.
    fn broken(&mut self, cx: &mut ConnCx<'_, T>);
}
