//! One connection, and what an event of it works with: it is looked up once, and handed on together with the rest of its
//! shard ([`ConnCx`]).

use std::io;
use std::time::Duration;

use crate::engine::model::job::{Job, Work};
use crate::engine::parts::id::Key;
use crate::engine::parts::peer_limits::PeerSlot;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::http::Http;
use crate::engine::reactor::http::handshake::Upgrade;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{Core, ShardCx};
use crate::transport::Transport;

/// One connection.
pub(crate) struct Conn<T> {
    pub(crate) socket: Socket<T>,
    pub(crate) role: Role,
}

/// A connection's transport, and what the event loop notes of it. The same for every role.
pub(crate) struct Socket<T> {
    /// None once it broke.
    pub(crate) transport: Option<T>,
    /// What it counts as for its address.
    pub(crate) place: Option<Box<PeerSlot>>,
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

#[allow(clippy::large_enum_variant)] // Most connections are WebSockets, which a box would cost a cache miss each.
pub(crate) enum Role {
    /// Reads a request head or is answered.
    Http(Box<Http>),
    WebSocket(WebSocket),
    /// Everything is logged. The other side's end is waited for until then, so that what was sent is not lost by a reset.
    Lingering(Tick),
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
    after: After,
}

impl<T: Transport> Conn<T> {
    /// Lets an event act on the connection, then does what has become of it. Returns whether the connection is to be
    /// removed, too.
    #[inline]
    fn act<R>(
        &mut self,
        key: Key,
        shard: &mut ShardCx<T>,
        event: impl FnOnce(&mut Role, &mut ConnCx<'_, T>) -> R,
    ) -> (R, bool) {
        let mut cx = ConnCx {
            key,
            socket: &mut self.socket,
            shard,
            after: After::Stay,
        };
        let result = event(&mut self.role, &mut cx);
        let is_over = match cx.after {
            After::Stay => false,
            _ => cx.settle(&mut self.role),
        };
        if !is_over {
            cx.arm(&self.role);
        }
        (result, is_over)
    }
}

impl<T: Transport> Core<T> {
    /// The one look-up: lets an event act on a connection. `None` if the connection has gone, which a key outlives.
    #[inline]
    pub(crate) fn with<R>(
        &mut self,
        key: Key,
        event: impl FnOnce(&mut Role, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        let conn = self.conns.get_mut(key)?;
        let (result, is_over) = conn.act(key, &mut self.cx, event);
        if is_over {
            self.remove(key);
        }
        Some(result)
    }

    /// The same for lists that name a slot: a connection leaves them before it goes.
    #[inline]
    pub(crate) fn with_slot<R>(
        &mut self,
        slot: u32,
        event: impl FnOnce(&mut Role, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        let Some((key, conn)) = self.conns.at_mut(slot) else {
            debug_assert!(
                false,
                "a list names slot {slot}, whose connection has gone without leaving the list"
            );
            return None;
        };
        let (result, is_over) = conn.act(key, &mut self.cx, event);
        if is_over {
            self.remove(key);
        }
        Some(result)
    }

    /// The same for a WebSocket, which it must be.
    #[inline]
    pub(crate) fn with_member<R>(
        &mut self,
        slot: u32,
        event: impl FnOnce(&mut WebSocket, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        self.with_slot(slot, |role, cx| match role {
            Role::WebSocket(ws) => Some(event(ws, cx)),
            Role::Http(_) | Role::Lingering(_) => {
                debug_assert!(
                    false,
                    "a list of WebSockets names slot {slot}, which holds none"
                );
                None
            }
        })?
    }

    /// The same for a key whose WebSocket may have gone.
    #[inline]
    pub(crate) fn with_ws<R>(
        &mut self,
        key: Key,
        event: impl FnOnce(&mut WebSocket, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        self.with(key, |role, cx| match role {
            Role::WebSocket(ws) => Some(event(ws, cx)),
            Role::Http(_) | Role::Lingering(_) => None,
        })?
    }

    /// A connection is no more.
    fn remove(&mut self, key: Key) {
        let Some(conn) = self.conns.remove(key) else {
            debug_assert!(
                false,
                "the connection {key:?} was at hand and is to be removed"
            );
            return;
        };
        let Conn { mut socket, role } = conn;
        self.cx.timers.cancel(key.slot, &mut socket.timer);
        // Before others are told that accepting may work again.
        drop(socket.transport);
        self.cx.release(key.slot, role);
        self.cx.forget_connection();
    }
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

    /// The same for one that is evicted: evicted connections are written to a few in each turn.
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

    /// Does what is to become of the connection. Returns whether it is to be removed.
    #[cold]
    fn settle(&mut self, role: &mut Role) -> bool {
        loop {
            match std::mem::replace(&mut self.after, After::Stay) {
                After::Stay => return false,
                After::Free => return true,
                After::Upgrade(upgrade) => self.begin_websocket(role, upgrade),
                After::Linger => return self.begin_lingering(role),
            }
        }
    }

    fn begin_websocket(&mut self, role: &mut Role, upgrade: Upgrade) {
        let Upgrade {
            opening,
            handed_over,
            early,
        } = upgrade;
        let ws = WebSocket::open(opening, self);
        let http = std::mem::replace(role, Role::WebSocket(ws));
        self.shard.release(self.key.slot, http);
        if let Role::WebSocket(ws) = role {
            ws.begin(self, handed_over, early);
        }
    }

    /// Says that nothing more will be written. Returns whether the connection is to be removed at once.
    fn begin_lingering(&mut self, role: &mut Role) -> bool {
        let until = self
            .shard
            .tick
            .after(self.shard.hub.settings.limits.close_timeout);
        let Some(transport) = &mut self.socket.transport else {
            return true;
        };
        transport.finish();
        let before = std::mem::replace(role, Role::Lingering(until));
        self.shard.release(self.key.slot, before);
        // What is unread must be read, or closing would reset; also where reading was paused.
        self.socket.readable = true;
        self.socket.queued = false;
        self.want_read();
        false
    }

    /// Sees to it that the connection is looked at when its next deadline comes.
    #[inline]
    fn arm(&mut self, role: &Role) {
        let next = match role {
            Role::Http(http) => Some(http.deadline()),
            Role::WebSocket(ws) => ws.deadline(&self.shard.hub.settings),
            Role::Lingering(until) => Some(*until),
        };
        // In the next step at the earliest, so that limits of no time at all do not make a turn go round in circles.
        if let Some(next) = next
            && self.socket.timer.is_none_or(|timer| next < timer)
        {
            let next = next.max(self.shard.tick.after(Duration::from_nanos(1)));
            if self.socket.timer != Some(next) {
                let (slot, timer) = (self.key.slot, &mut self.socket.timer);
                self.shard.timers.schedule(slot, timer, next);
            }
        }
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

/// Lingering: what comes is of no interest.
struct Lingering;

impl<T: Transport> Reader<T> for Lingering {
    fn input(&mut self, _: &mut ConnCx<'_, T>, _: &mut [u8]) {}

    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>) {
        cx.free();
    }

    fn broken(&mut self, cx: &mut ConnCx<'_, T>) {
        cx.free();
    }
}

impl Role {
    /// Reads once, if the role wants input.
    #[inline]
    pub(crate) fn read<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => {
                ws.read(cx);
            }
            Self::Http(http) => {
                http.read(cx);
            }
            Self::Lingering(_) => {
                cx.read_for(&mut Lingering);
            }
        }
    }

    /// Writes what waits. The first write may have been made already.
    #[inline]
    pub(crate) fn write<T: Transport>(
        &mut self,
        cx: &mut ConnCx<'_, T>,
        begun: Option<io::Result<usize>>,
    ) {
        match self {
            Self::WebSocket(ws) => ws.write_on(cx, begun),
            Self::Http(http) => http.write(cx),
            Self::Lingering(_) => {}
        }
    }

    /// A deadline of the connection may have come.
    pub(crate) fn expire<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => ws.expire(cx),
            Self::Http(http) => http.expire(cx),
            Self::Lingering(until) if *until <= cx.shard.tick => cx.free(),
            Self::Lingering(_) => {}
        }
    }

    /// The engine stops.
    pub(crate) fn stop<T: Transport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => ws.stop(cx),
            Self::Http(http) => http.stop(cx),
            Self::Lingering(_) => {}
        }
    }
}
