//! A connection, and the way its events run: it is looked up once, and passed on together with the rest of its shard
//! ([`ConnCx`]).

use std::io;
use std::time::Duration;

use crate::engine::parts::id::Key;
use crate::engine::parts::timers::Tick;
use crate::engine::reactor::conn_cx::{After, ConnCx, Reader, Socket};
use crate::engine::reactor::http::Http;
use crate::engine::reactor::opening::Upgrade;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{Core, ShardCx};
use crate::transport::ShardTransport;

/// One connection.
pub(crate) struct Conn<T> {
    pub(crate) socket: Socket<T>,
    pub(crate) stage: Stage,
}

#[allow(clippy::large_enum_variant)] // Most are WebSockets, where a box would cost a cache miss.
pub(crate) enum Stage {
    /// Reads a request head, or is answered.
    Http(Box<Http>),
    WebSocket(WebSocket),
    /// Everything is written. The peer's end of stream is awaited until this tick, so that a reset does not destroy
    /// bytes in transit.
    Lingering(Tick),
}

impl<T: ShardTransport> Conn<T> {
    /// Runs an event on the connection, and then applies the change of stage that the event has requested. Returns
    /// whether the connection must be removed.
    #[inline]
    fn act<R>(
        &mut self,
        key: Key,
        shard: &mut ShardCx<T>,
        event: impl FnOnce(&mut Stage, &mut ConnCx<'_, T>) -> R,
    ) -> (R, bool) {
        let mut cx = ConnCx {
            key,
            socket: &mut self.socket,
            shard,
            after: After::Stay,
        };
        let result = event(&mut self.stage, &mut cx);
        let is_over = match cx.after {
            After::Stay => false,
            _ => cx.settle(&mut self.stage),
        };
        if !is_over {
            cx.arm(&self.stage);
        }
        (result, is_over)
    }
}

impl<T: ShardTransport> Core<T> {
    /// Looks a connection up and runs an event on it. `None` if it has ended, since a key may outlive its connection.
    #[inline]
    pub(crate) fn with<R>(
        &mut self,
        key: Key,
        event: impl FnOnce(&mut Stage, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        let conn = self.conns.get_mut(key)?;
        let (result, is_over) = conn.act(key, &mut self.cx, event);
        if is_over {
            self.remove(key);
        }
        Some(result)
    }

    /// Runs an event on the connection in a slot, which must be occupied: a connection leaves the lists that hold its
    /// slot before it ends.
    #[inline]
    pub(crate) fn with_slot<R>(
        &mut self,
        slot: u32,
        event: impl FnOnce(&mut Stage, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        let Some((key, conn)) = self.conns.at_mut(slot) else {
            debug_assert!(
                false,
                "a list holds slot {slot}, whose connection ended without leaving the list"
            );
            return None;
        };
        let (result, is_over) = conn.act(key, &mut self.cx, event);
        if is_over {
            self.remove(key);
        }
        Some(result)
    }

    /// Runs an event on the WebSocket in a slot, which must hold one.
    #[inline]
    pub(crate) fn with_member<R>(
        &mut self,
        slot: u32,
        event: impl FnOnce(&mut WebSocket, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        self.with_slot(slot, |stage, cx| match stage {
            Stage::WebSocket(ws) => Some(event(ws, cx)),
            Stage::Http(_) | Stage::Lingering(_) => {
                debug_assert!(
                    false,
                    "a list of WebSockets holds slot {slot}, which has none"
                );
                None
            }
        })?
    }

    /// Runs an event on a WebSocket. `None` if it has ended.
    #[inline]
    pub(crate) fn with_ws<R>(
        &mut self,
        key: Key,
        event: impl FnOnce(&mut WebSocket, &mut ConnCx<'_, T>) -> R,
    ) -> Option<R> {
        self.with(key, |stage, cx| match stage {
            Stage::WebSocket(ws) => Some(event(ws, cx)),
            Stage::Http(_) | Stage::Lingering(_) => None,
        })?
    }

    /// Removes a connection.
    fn remove(&mut self, key: Key) {
        let Some(conn) = self.conns.remove(key) else {
            debug_assert!(
                false,
                "the connection {key:?} was found, and then not removed"
            );
            return;
        };
        let Conn { mut socket, stage } = conn;
        self.cx.timers.cancel(key.slot, &mut socket.timer);
        self.cx.handle().expiries.forget(key);
        // The descriptor is closed before other threads learn that accepting may work again.
        drop(socket.transport);
        self.cx.release(key.slot, stage);
        self.cx.forget_connection();
    }
}

impl<T: ShardTransport> ConnCx<'_, T> {
    /// Applies the change of stage that an event has requested. Returns whether the connection must be removed.
    #[cold]
    fn settle(&mut self, stage: &mut Stage) -> bool {
        loop {
            match std::mem::replace(&mut self.after, After::Stay) {
                After::Stay => return false,
                After::Free => return true,
                After::Upgrade(upgrade) => self.begin_websocket(stage, upgrade),
                After::Linger => return self.begin_lingering(stage),
            }
        }
    }

    fn begin_websocket(&mut self, stage: &mut Stage, upgrade: Upgrade) {
        let Upgrade {
            opening,
            handed_over,
            early,
        } = upgrade;
        let ws = WebSocket::open(opening, self);
        let http = std::mem::replace(stage, Stage::WebSocket(ws));
        self.shard.release(self.key.slot, http);
        if let Stage::WebSocket(ws) = stage {
            ws.begin(self, handed_over, early);
        }
    }

    /// Ends the outgoing stream. Returns whether the connection must be removed at once.
    fn begin_lingering(&mut self, stage: &mut Stage) -> bool {
        let until = self
            .shard
            .tick
            .after(self.shard.hub.settings.limits.close_timeout);
        let Some(transport) = &mut self.socket.transport else {
            return true;
        };
        transport.finish();
        let before = std::mem::replace(stage, Stage::Lingering(until));
        self.shard.release(self.key.slot, before);
        // Unread bytes must be read, or closing would reset the connection; also if reading was paused.
        self.socket.readable = true;
        self.socket.queued = false;
        self.want_read();
        false
    }

    /// Schedules the connection's timer for its next deadline.
    #[inline]
    fn arm(&mut self, stage: &Stage) {
        let next = match stage {
            Stage::Http(http) => Some(http.deadline()),
            Stage::WebSocket(ws) => ws.deadline(&self.shard.hub.settings),
            Stage::Lingering(until) => Some(*until),
        };
        // In the next tick at the earliest, so that a limit of zero does not make turns loop. This comes before the
        // comparison: further events must not put off a timer that is already due.
        let next = next.map(|next| next.max(self.shard.tick.after(Duration::from_nanos(1))));
        if let Some(next) = next
            && self.socket.timer.is_none_or(|timer| next < timer)
        {
            let (slot, timer) = (self.key.slot, &mut self.socket.timer);
            self.shard.timers.schedule(slot, timer, next);
        }
    }
}

/// The stage of a lingering connection, whose input is discarded.
struct Lingering;

impl<T: ShardTransport> Reader<T> for Lingering {
    fn input(&mut self, _: &mut ConnCx<'_, T>, _: &mut [u8]) {}

    fn input_ended(&mut self, cx: &mut ConnCx<'_, T>) {
        cx.free();
    }

    fn broken(&mut self, cx: &mut ConnCx<'_, T>) {
        cx.free();
    }
}

impl Stage {
    /// Reads once, if the stage accepts input.
    #[inline]
    pub(crate) fn read<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
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

    /// Writes what waits. `begun` is the outcome of the first write, if the caller has made it.
    #[inline]
    pub(crate) fn write<T: ShardTransport>(
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

    /// Handles a deadline that may have passed.
    pub(crate) fn expire<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => ws.expire(cx),
            Self::Http(http) => http.expire(cx),
            Self::Lingering(until) if *until <= cx.shard.tick => cx.free(),
            Self::Lingering(_) => {}
        }
    }

    /// Stops the connection, since the engine stops.
    pub(crate) fn stop<T: ShardTransport>(&mut self, cx: &mut ConnCx<'_, T>) {
        match self {
            Self::WebSocket(ws) => ws.stop(cx),
            Self::Http(http) => http.stop(cx),
            Self::Lingering(_) => {}
        }
    }
}
