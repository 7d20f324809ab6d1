//! Which rooms there are, by name.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::engine::{Hub, Room};
use crate::error::JoinErrorReason;

/// Longest name of a room, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 255;

/// From names to rooms. A room is here while anybody is in it, or while it keeps messages.
#[derive(Default)]
pub(super) struct Rooms {
    named: RwLock<HashMap<Arc<str>, Arc<Room>>>,
    rooms_max: OnceLock<usize>,
}

impl Rooms {
    pub(super) fn set_rooms_max(&self, rooms_max: usize) {
        // Told once, by the app that starts.
        let _ = self.rooms_max.set(rooms_max);
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<Room>> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.get(name).cloned()
    }

    /// The room of that name, which is made if there is none.
    pub(super) fn find_or_make(&self, hub: &Hub, name: &str) -> Result<Arc<Room>, JoinErrorReason> {
        if name.len() > NAME_BYTES_MAX {
            return Err(JoinErrorReason::NameTooLong);
        }
        if let Some(room) = self.find(name).filter(|room| !room.is_retired()) {
            return Ok(room);
        }
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(room) = named.get(name).filter(|room| !room.is_retired()) {
            return Ok(room.clone());
        }
        if !named.contains_key(name)
            && named.len() >= self.rooms_max.get().copied().unwrap_or(usize::MAX)
        {
            return Err(JoinErrorReason::Rooms);
        }
        let name: Arc<str> = name.into();
        let room = hub.new_room(name.clone(), false);
        named.insert(name, room.clone());
        Ok(room)
    }

    /// A room is no more: its name is free, unless another has it already.
    pub(super) fn forget(&self, room: &Room) {
        let mut named = self.named.write().unwrap_or_else(PoisonError::into_inner);
        if named
            .get(&room.name)
            .is_some_and(|other| std::ptr::eq(&**other, room))
        {
            named.remove(&room.name);
            // After a rush, give back what it took.
            if named.capacity() > 1024 && named.len() < named.capacity() / 8 {
                named.shrink_to_fit();
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.len()
    }
}
