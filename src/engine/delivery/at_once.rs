//! Writes to many connections at once, where the shard has a ring for that (`Transport::Ring`).
//!
//! Nothing happens between the writes and the look at what came of them: so each outcome meets the outbox that it belongs
//! to as the write found it.

use std::io;

use crate::engine::core::{Conn, Core, Role};
use crate::engine::runs::Closed;
use crate::transport::{Transport, WriteMany};

/// Of one write; `None` if none was made.
type Begun = Option<io::Result<usize>>;

/// What was written to those who got all of it, and who else is to be looked at.
pub(super) struct AtOnce {
    pub(super) bytes: u64,
    pub(super) messages: u64,
    pub(super) rest: Vec<(u32, Begun)>,
}

impl<T: Transport> Core<T> {
    /// Writes a run to all members for whom nothing else waits; `None` without a ring, or if they are few.
    pub(super) fn write_run_at_once(&mut self, members: &[u32], run: &Closed) -> Option<AtOnce> {
        let ring = self.ring.as_mut()?;
        if members.len() < T::Ring::MANY {
            return None;
        }
        let mut at_once = AtOnce {
            bytes: 0,
            messages: 0,
            rest: Vec::new(),
        };
        let mut shares = Vec::with_capacity(members.len());
        let mut writes = Vec::with_capacity(members.len());
        for &slot in members {
            let Some(Conn {
                role: Role::WebSocket(ws),
                transport: Some(transport),
                ..
            }) = self.conns.get(slot)
            else {
                continue;
            };
            let (from, messages) = run.share(ws.seen);
            if messages == 0 {
                continue;
            }
            if !ws.outbox.is_empty() {
                at_once.rest.push((slot, None));
                continue;
            }
            let piece = &run.bytes[from..];
            at_once.bytes += piece.len() as u64;
            at_once.messages += u64::from(messages);
            shares.push((slot, messages));
            writes.push((transport, piece));
        }
        for (index, outcome) in ring.write_many(&writes) {
            let (slot, messages) = shares[index];
            at_once.bytes -= writes[index].1.len() as u64;
            at_once.messages -= u64::from(messages);
            at_once.rest.push((slot, Some(outcome)));
        }
        Some(at_once)
    }

    /// Writes what waits for these, as far as it lies in one piece. Returns what came of it, for each in its place; without
    /// a ring nothing, nor if they are few.
    pub(in crate::engine) fn write_at_once(&mut self, slots: &[u32]) -> Vec<Begun> {
        let Some(ring) = &mut self.ring else {
            return Vec::new();
        };
        if slots.len() < T::Ring::MANY {
            return Vec::new();
        }
        let mut places = Vec::with_capacity(slots.len());
        for (place, &slot) in slots.iter().enumerate() {
            // A slot stands there twice where a connection has gone and another has come in its place.
            if let Some(conn) = self.conns.get_mut(slot)
                && std::mem::take(&mut conn.dirty)
            {
                places.push(place);
            }
        }
        let mut writes = Vec::with_capacity(places.len());
        places.retain(|&place| {
            let Some(Conn {
                role: Role::WebSocket(ws),
                transport: Some(transport),
                ..
            }) = self.conns.get(slots[place])
            else {
                return false;
            };
            let front = ws.outbox.front();
            writes.extend(front.map(|bytes| (transport, bytes)));
            front.is_some()
        });
        let mut begun: Vec<Begun> = Vec::new();
        begun.resize_with(slots.len(), || None);
        for (&place, (_, bytes)) in places.iter().zip(&writes) {
            begun[place] = Some(Ok(bytes.len()));
        }
        for (index, outcome) in ring.write_many(&writes) {
            begun[places[index]] = Some(outcome);
        }
        begun
    }
}
