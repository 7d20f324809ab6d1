//! What an event of a connection works with: the connection's socket and the rest of its shard.

use std::io;

use crate::engine::model::job::{Job, Work};
use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::ShardCx;
use crate::engine::reactor::opening::Upgrade;
use crate::transport::Transport;

/// A connection's transport, and what the event loop notes of it. The same for every role.
pub(crate) struct Socket<T> {
    /// None once it broke.
    pub(crate) transport: Option<T>,
    /// What it counts as for its address.
    pub(crate) peer_slot: Option<Box<PeerSlot>>,
    /// There may be something to read: readiness is reported only once.
    pub(crate) readable: bool,
    /// The other side will send nothing more: read until the end shows.
    pub(crate) hangup: bool,
    /// It is queued for reading (`ShardCx::readable`), or its reading is paused (`ReceiveBudget`).
    pub(crate) queued: bool,
    /// It is queued for writing (`ShardCx::dirty`, `ShardCx::evicted`).
    pub(crate) dirty: bool,
    /// When its one entry in `Timers` fires.
    pub(crate) timer: Option<Tick>,
}

/// Readiness of a socket, as the poll reports it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    /// The other side has ended its stream, or the connection broke.
    pub(crate) hangup: bool,
    pub(crate) writable: bool,
}

/// What is to become of a connection when the event at hand is over.
#[allow(clippy::large_enum_variant)] // One is moved for each handshake.
pub(crate) enum After {
    Stay,
    /// It becomes a WebSocket or an event stream.
    Upgrade(Upgrade),
    /// Nothing more is written. The other side is to do the same.
    Linger,
    /// It ends here and now.
    Free,
}

/// What came of a read.
enum Input {
    Bytes(usize),
    /// The other side has ended its stream.
    Ended,
    Broken,
    /// There is nothing at present.
    None,
}

/// A connection at hand, beside its role, and the rest of its shard.
pub(crate) struct ConnCx<'a, T: Transport> {
    pub(crate) key: Key,
    pub(crate) socket: &'a mut Socket<T>,
    pub(crate) shard: &'a mut ShardCx<T>,
    /// What is to become of the connection.
    pub(super) after: After,
}

impl<T: Transport> ConnCx<'_, T> {
    /// Has the connection read in this turn, or the next if this one's reading is over.
    #[inline]
    pub(crate) fn want_read(&mut self) {
        if self.socket.readable && !self.socket.queued {
            self.socket.queued = true;
            self.shard.readable.push(self.key);
        }
    }

    /// Has the connection written at the end of this turn.
    #[inline]
    pub(crate) fn want_write(&mut self) {
        if !self.socket.dirty {
            self.socket.dirty = true;
            self.shard.dirty.push(self.key);
        }
    }

    /// Has the evicted connection written in one of the next turns, which take a few evicted connections each.
    pub(crate) fn want_write_evicted(&mut self) {
        if !self.socket.dirty {
            self.socket.dirty = true;
            self.shard.evicted.push_back(self.key);
        }
    }

    /// The connection ends here and now.
    pub(crate) fn free(&mut self) {
        self.after = After::Free;
    }

    /// Nothing more is written, and the other side is waited for to do the same.
    pub(crate) fn linger(&mut self) {
        if matches!(self.after, After::Stay) {
            self.after = After::Linger;
        }
    }

    /// HTTP is over: a WebSocket or an event stream begins.
    pub(crate) fn upgrade(&mut self, upgrade: Upgrade) {
        debug_assert!(matches!(self.after, After::Stay), "its HTTP role goes on");
        self.after = After::Upgrade(upgrade);
    }

    /// It is settled what becomes of the connection: its role has nothing to do any more.
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self.after, After::Stay)
    }

    /// A job for the handlers of this connection.
    pub(crate) fn job(&mut self, work: Work) {
        self.shard.jobs.push_back(Job {
            to: Some((self.shard.index, self.key)),
            work,
        });
    }

    /// Reads once into a buffer.
    fn receive(&mut self, buffer: &mut [u8]) -> Input {
        let socket = &mut *self.socket;
        let Some(transport) = &mut socket.transport else {
            return Input::None;
        };
        match transport.read(buffer) {
            Ok(0) => {
                socket.readable = false;
                Input::Ended
            }
            Ok(n) => {
                // A short read means an empty socket, unless its end is still to be seen.
                if T::SHORT_MEANS_NOT_READY && n < buffer.len() && !socket.hangup {
                    socket.readable = false;
                } else {
                    self.want_read();
                }
                Input::Bytes(n)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.readable = false;
                Input::None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.want_read();
                Input::None
            }
            Err(_) => Input::Broken,
        }
    }

    /// Reads once, and has `role` use what has come. Returns whether there was anything.
    #[inline]
    pub(crate) fn read_for<R: Reader<T>>(&mut self, role: &mut R) -> bool {
        let mut buffer = std::mem::take(&mut self.shard.read_buffer);
        let input = self.receive(&mut buffer);
        match input {
            Input::Bytes(n) => role.input(self, &mut buffer[..n]),
            Input::Ended => role.input_ended(self),
            Input::Broken => role.broken(self),
            Input::None => {}
        }
        self.shard.read_buffer = buffer;
        matches!(input, Input::Bytes(_))
    }

    /// Whether the socket may be read before its client is judged for its silence: something may have come after the poll,
    /// or be among more readiness than one poll returns. One that is queued is known to have something.
    pub(crate) fn may_read_before_verdict(&mut self) -> bool {
        if self.socket.queued {
            return false;
        }
        self.socket.readable = true;
        true
    }
}

/// A role that uses what its client sends.
pub(crate) trait Reader<T: Transport> {
    fn input(&mut self, cx: &mut ConnCx<'_, T>, bytes: &mut [u8]);

    /// The client has ended its stream.
    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>);

    /// The connection broke: nothing more comes, and nothing more gets through.
    fn broken(&mut self, cx: &mut ConnCx<'_, T>);
}
