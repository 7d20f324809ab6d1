//! Who is connected: by id, and by address.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, RwLock};

use crate::engine::{ConnectionId, Session};
use crate::sync::ignore_poison;

/// All sessions that are open.
#[derive(Default)]
pub(super) struct Directory(RwLock<Sessions>);

#[derive(Default)]
struct Sessions {
    /// For each shard, by slot.
    sessions: Vec<Vec<Option<Arc<Session>>>>,
    /// Addresses are what 0.5.1 named its clients by.
    of_ipv4: HashMap<(Ipv4Addr, u16), SessionIndex>,
    /// Apart, since they take twice the memory.
    of_others: HashMap<SocketAddr, SessionIndex>,
}

/// Where a session stands. As bytes, so that an address of IPv4 and its index are 12 of them, without gaps.
#[derive(Clone, Copy)]
struct SessionIndex {
    slot: [u8; 4],
    shard: [u8; 2],
}

impl SessionIndex {
    fn of(id: ConnectionId) -> Self {
        Self {
            slot: id.key().slot.to_ne_bytes(),
            shard: id.shard.to_ne_bytes(),
        }
    }

    fn slot(self) -> usize {
        u32::from_ne_bytes(self.slot) as usize
    }

    fn shard(self) -> usize {
        usize::from(u16::from_ne_bytes(self.shard))
    }
}

impl Sessions {
    fn at(&self, index: SessionIndex) -> Option<&Arc<Session>> {
        let slots = self.sessions.get(index.shard())?;
        slots.get(index.slot())?.as_ref()
    }

    fn index_of(&self, address: SocketAddr) -> Option<SessionIndex> {
        match address {
            SocketAddr::V4(v4) => self.of_ipv4.get(&ipv4(v4)).copied(),
            other @ SocketAddr::V6(_) => self.of_others.get(&other).copied(),
        }
    }
}

fn ipv4(address: SocketAddrV4) -> (Ipv4Addr, u16) {
    (*address.ip(), address.port())
}

/// After a rush, gives back what it took.
fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 1024 && map.len() < map.capacity() / 8 {
        map.shrink_to_fit();
    }
}

impl Directory {
    /// Where an address is used again before its former owner has left, it means the latest.
    pub(super) fn enter(&self, session: &Arc<Session>) {
        let mut sessions = ignore_poison(self.0.write());
        let index = SessionIndex::of(session.id);
        match session.peer() {
            SocketAddr::V4(v4) => sessions.of_ipv4.insert(ipv4(v4), index),
            other @ SocketAddr::V6(_) => sessions.of_others.insert(other, index),
        };
        let (shard, slot) = (index.shard(), index.slot());
        if sessions.sessions.len() <= shard {
            sessions.sessions.resize_with(shard + 1, Vec::new);
        }
        let slots = &mut sessions.sessions[shard];
        if slots.len() <= slot {
            slots.resize_with(slot + 1, || None);
        }
        slots[slot] = Some(session.clone());
    }

    pub(super) fn leave(&self, session: &Session) {
        let mut sessions = ignore_poison(self.0.write());
        let sessions = &mut *sessions;
        let is_its_index = |index: Option<SessionIndex>, sessions: &Sessions| {
            let owner = index.and_then(|index| sessions.at(index));
            owner.is_some_and(|owner| owner.id == session.id)
        };
        if is_its_index(sessions.index_of(session.peer()), sessions) {
            match session.peer() {
                SocketAddr::V4(v4) => drop(sessions.of_ipv4.remove(&ipv4(v4))),
                other @ SocketAddr::V6(_) => drop(sessions.of_others.remove(&other)),
            }
            shrink(&mut sessions.of_ipv4);
            shrink(&mut sessions.of_others);
        }
        let index = SessionIndex::of(session.id);
        if is_its_index(Some(index), sessions) {
            let slots = &mut sessions.sessions[index.shard()];
            slots[index.slot()] = None;
            while slots.last().is_some_and(Option::is_none) {
                slots.pop();
            }
            if slots.capacity() > 1024 && slots.len() < slots.capacity() / 8 {
                slots.shrink_to_fit();
            }
        }
    }

    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<Session>> {
        let sessions = ignore_poison(self.0.read());
        let session = sessions.at(sessions.index_of(address)?)?;
        // Its index may be another's by now.
        (session.peer() == address).then(|| session.clone())
    }

    pub(super) fn find_id(&self, id: ConnectionId) -> Option<Arc<Session>> {
        let sessions = ignore_poison(self.0.read());
        let session = sessions.at(SessionIndex::of(id))?;
        (session.id == id).then(|| session.clone())
    }

    /// The ids of all sessions. Copied a few at a time, so that a shard on which a client connects or leaves waits no longer
    /// for that than for a look-up of so many.
    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        let mut ids = Vec::new();
        let (mut shard, mut from) = (0, 0);
        loop {
            let sessions = ignore_poison(self.0.read());
            let Some(slots) = sessions.sessions.get(shard) else {
                return ids;
            };
            let to = slots.len().min(from + COPIED_MAX);
            let copied = slots.get(from..to).into_iter().flatten().flatten();
            let before = ids.len();
            ids.extend(copied.map(|session| session.id));
            debug_assert!(ids.len() - before <= COPIED_MAX);
            (shard, from) = match to < slots.len() {
                true => (shard, to),
                false => (shard + 1, 0),
            };
        }
    }
}

/// How many slots are copied at most while the lock is held.
const COPIED_MAX: usize = 256;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_address_takes_little_memory() {
        // There is one for each connection, and the map has room for up to twice as many.
        assert_eq!(size_of::<((Ipv4Addr, u16), SessionIndex)>(), 12);
    }
}
