//! Who is connected from which address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use crate::engine::Session;

/// From addresses to sessions: addresses are what 0.5.1 named its clients by.
#[derive(Default)]
pub(super) struct Directory(RwLock<HashMap<SocketAddr, Arc<Session>>>);

impl Directory {
    /// Where an address is used again before its former owner has left, it means the latest.
    pub(super) fn enter(&self, session: &Arc<Session>) {
        let mut sessions = self
            .0
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        sessions.insert(session.peer, session.clone());
    }

    pub(super) fn leave(&self, session: &Session) {
        let mut sessions = self
            .0
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if sessions
            .get(&session.peer)
            .is_some_and(|other| other.id == session.id)
        {
            sessions.remove(&session.peer);
            // After a rush, give back what it took.
            if sessions.capacity() > 1024 && sessions.len() < sessions.capacity() / 8 {
                sessions.shrink_to_fit();
            }
        }
    }

    pub(super) fn find(&self, address: SocketAddr) -> Option<Arc<Session>> {
        let sessions = self
            .0
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        sessions.get(&address).cloned()
    }
}
