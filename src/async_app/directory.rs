//! Who is connected: by address, and by id.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use crate::engine::{ConnectionId, Session};

/// All sessions that are open.
#[derive(Default)]
pub(super) struct Directory(RwLock<Sessions>);

#[derive(Default)]
struct Sessions {
    /// Addresses are what 0.5.1 named its clients by.
    by_address: HashMap<SocketAddr, Arc<Session>>,
    /// For each shard, by slot.
    by_id: Vec<Vec<Option<Arc<Session>>>>,
}

impl Directory {
    /// Where an address is used again before its former owner has left, it means the latest.
    pub(super) fn enter(&self, session: &Arc<Session>) {
        let mut sessions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sessions.by_address.insert(session.peer, session.clone());
        let (shard, slot) = place(session.id);
        if sessions.by_id.len() <= shard {
            sessions.by_id.resize_with(shard + 1, Vec::new);
        }
        let slots = &mut sessions.by_id[shard];
        if slots.len() <= slot {
            slots.resize_with(slot + 1, || None);
        }
        slots[slot] = Some(session.clone());
    }

    pub(super) fn leave(&self, session: &Session) {
        let mut sessions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (shard, slot) = place(session.id);
        if let Some(slots) = sessions.by_id.get_mut(shard) {
            if let Some(place) = slots.get_mut(slot)
                && place.as_ref().is_some_and(|other| other.id == session.id)
            {
                *place = None;
            }
            // After a rush, give back what it took.
            while slots.last().is_some_and(Option::is_none) {
                slots.pop();
            }
            if slots.capacity() > 1024 && slots.len() < slots.capacity() / 8 {
                slots.shrink_to_fit();
            }
        }
        let by_address = &mut sessions.by_address;
        if by_address
            .get(&session.peer)
            .is_some_and(|other| other.id == session.id)
        {
            by_address.remove(&session.peer);
            if by_address.capacity() > 1024 && by_address.len() < by_address.capacity() / 8 {
                by_address.shrink_to_fit();
            }
        }
    }

    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<Session>> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sessions.by_address.get(&address).cloned()
    }

    pub(super) fn find_id(&self, id: ConnectionId) -> Option<Arc<Session>> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (shard, slot) = place(id);
        let session = sessions.by_id.get(shard)?.get(slot)?.as_ref()?;
        (session.id == id).then(|| session.clone())
    }

    /// Everyone.
    pub(super) fn ids(&self) -> Vec<ConnectionId> {
        let sessions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let sessions = sessions.by_id.iter().flatten().flatten();
        sessions.map(|session| session.id).collect()
    }
}

fn place(id: ConnectionId) -> (usize, usize) {
    (usize::from(id.shard), id.key().slot as usize)
}
