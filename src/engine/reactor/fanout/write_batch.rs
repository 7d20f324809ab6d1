//! Writes to many connections: with one system call, where the shard has a ring for that (`Transport::Ring`), or one by one.
//!
//! Nothing happens between the writes and the look at what came of them: so each outcome meets the outbox that it belongs
//! to as the write found it.

use std::io;

use crate::engine::parts::batch::Closed;
use crate::engine::parts::slab::Slots;
use crate::engine::reactor::{Conn, Core, Role};
use crate::transport::{Transport, WriteMany};

/// So many members are looked up before the first of them is written to.
const LOOKED_UP: usize = 16;

/// Of one write; `None` if none was made.
type Begun = Option<io::Result<usize>>;

/// What was written to those who got all of it, and who else is to be looked at.
#[derive(Default)]
pub(super) struct AtOnce {
    pub(super) bytes: u64,
    pub(super) messages: u64,
    pub(super) rest: Vec<(u32, Begun)>,
}

/// What a member is to be written.
struct Share<'a, T> {
    slot: u32,
    messages: u32,
    transport: &'a T,
    piece: &'a [u8],
}

/// What a member has still to get of a run, unless something else waits for it: then it is of the `rest`.
#[inline]
fn share<'a, T>(
    conns: &'a Slots<Conn<T>>,
    slot: u32,
    run: &'a Closed,
    rest: &mut Vec<(u32, Begun)>,
) -> Option<Share<'a, T>> {
    let Some(Conn {
        role: Role::WebSocket(ws),
        transport: Some(transport),
        ..
    }) = conns.get(slot)
    else {
        return None;
    };
    let (from, messages) = run.share(ws.seen);
    if messages == 0 {
        return None;
    }
    if !ws.outbox.is_empty() {
        rest.push((slot, None));
        return None;
    }
    Some(Share {
        slot,
        messages,
        transport,
        piece: &run.bytes[from..],
    })
}

/// As a ring does, without one.
fn write_each<T: Transport>(writes: &[(&T, &[u8])]) -> Vec<(usize, io::Result<usize>)> {
    let outcomes = writes
        .iter()
        .map(|(transport, bytes)| transport.write(bytes));
    let unfinished = outcomes.zip(writes).enumerate();
    unfinished
        .filter(|(_, (outcome, (_, bytes)))| !matches!(outcome, Ok(n) if *n == bytes.len()))
        .map(|(index, (outcome, _))| (index, outcome))
        .collect()
}

impl<T: Transport> Core<T> {
    /// Writes a run to all members for whom nothing else waits.
    pub(super) fn write_run(&mut self, members: &[u32], run: &Closed) -> AtOnce {
        let mut at_once = AtOnce::default();
        let conns = &self.conns;
        if members.len() >= T::Ring::MANY
            && let Some(ring) = &mut self.ring
        {
            let mut shares = Vec::with_capacity(members.len());
            let mut writes = Vec::with_capacity(members.len());
            for &slot in members {
                if let Some(share) = share(conns, slot, run, &mut at_once.rest) {
                    at_once.bytes += share.piece.len() as u64;
                    at_once.messages += u64::from(share.messages);
                    shares.push((slot, share.messages));
                    writes.push((share.transport, share.piece));
                }
            }
            for (index, outcome) in ring.write_many(&writes) {
                let (slot, messages) = shares[index];
                at_once.bytes -= writes[index].1.len() as u64;
                at_once.messages -= u64::from(messages);
                at_once.rest.push((slot, Some(outcome)));
            }
            return at_once;
        }
        for members in members.chunks(LOOKED_UP) {
            // A write leaves little of the processor's cache: so memory is waited for once for some, not for each anew.
            let mut shares = [const { None }; LOOKED_UP];
            for (found, &slot) in shares.iter_mut().zip(members) {
                *found = share(conns, slot, run, &mut at_once.rest);
            }
            for share in shares.iter().flatten() {
                match share.transport.write(share.piece) {
                    Ok(n) if n == share.piece.len() => {
                        at_once.bytes += n as u64;
                        at_once.messages += u64::from(share.messages);
                    }
                    outcome => at_once.rest.push((share.slot, Some(outcome))),
                }
            }
        }
        at_once
    }

    /// Writes what waits for these, as far as it lies in one piece: what is to be done about it is done for all afterwards,
    /// when no write comes between any more. Returns what came of it, for each in its place; nothing if they are few.
    pub(crate) fn write_at_once(&mut self, slots: &[u32]) -> Vec<Begun> {
        let few = self.ring.as_ref().map_or(LOOKED_UP, |_| T::Ring::MANY);
        if slots.len() < few {
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
        let unfinished = match &mut self.ring {
            Some(ring) => ring.write_many(&writes),
            None => write_each(&writes),
        };
        for (index, outcome) in unfinished {
            begun[places[index]] = Some(outcome);
        }
        begun
    }
}
