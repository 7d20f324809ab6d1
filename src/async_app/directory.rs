//! The open sessions, by id and by address.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, RwLock};

use crate::engine::{LocalId, Session};
use crate::sync::ignore_poison;

/// The number of stripes with their own lock. A shard that adds or removes a session waits for one stripe only, at most
/// while the stripe grows. With 1,000,000 connections, the growth of a stripe of addresses moves about 16,000 entries.
/// A stripe of slots is changed only by its shards, and its growth moves one pointer per connection of the shard.
const STRIPES: usize = 64;

/// All open sessions, by id and by address. Each stripe has its own lock.
pub(super) struct Directory {
    /// Shards `n`, `n + STRIPES` and so on are in stripe `n`.
    sessions: [RwLock<Shards>; STRIPES],
    /// The stripe of an address is determined by its hash.
    addresses: [RwLock<Addresses>; STRIPES],
    hasher: RandomState,
}

/// For each shard of a stripe, its sessions by slot.
type Shards = Vec<Vec<Option<Arc<Session>>>>;

/// The open sessions by address, by which 0.5.1 identified clients.
#[derive(Default)]
struct Addresses {
    ipv4: HashMap<(Ipv4Addr, u16), SessionIndex>,
    /// A separate map, because these addresses take twice the memory.
    others: HashMap<SocketAddr, SessionIndex>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            sessions: std::array::from_fn(|_| RwLock::default()),
            addresses: std::array::from_fn(|_| RwLock::default()),
            hasher: RandomState::new(),
        }
    }
}

/// Index of a session. Stored as bytes, so that an IPv4 address and its index take 12 bytes without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SessionIndex {
    slot: [u8; 4],
    shard: [u8; 2],
}

impl SessionIndex {
    fn of(id: LocalId) -> Self {
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

impl Addresses {
    fn get(&self, address: SocketAddr) -> Option<SessionIndex> {
        match address {
            SocketAddr::V4(v4) => self.ipv4.get(&ipv4(v4)).copied(),
            other @ SocketAddr::V6(_) => self.others.get(&other).copied(),
        }
    }

    fn insert(&mut self, address: SocketAddr, index: SessionIndex) {
        match address {
            SocketAddr::V4(v4) => self.ipv4.insert(ipv4(v4), index),
            other @ SocketAddr::V6(_) => self.others.insert(other, index),
        };
    }

    fn remove(&mut self, address: SocketAddr) {
        match address {
            SocketAddr::V4(v4) => self.ipv4.remove(&ipv4(v4)),
            other @ SocketAddr::V6(_) => self.others.remove(&other),
        };
        shrink(&mut self.ipv4);
        shrink(&mut self.others);
    }
}

fn ipv4(address: SocketAddrV4) -> (Ipv4Addr, u16) {
    (*address.ip(), address.port())
}

/// Releases the memory of a past burst of connections.
fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 8 {
        map.shrink_to_fit();
    }
}

impl Directory {
    fn shard(&self, shard: usize) -> &RwLock<Shards> {
        &self.sessions[shard % STRIPES]
    }

    fn addresses(&self, address: SocketAddr) -> &RwLock<Addresses> {
        &self.addresses[self.hasher.hash_one(address) as usize % STRIPES]
    }

    fn at(&self, index: SessionIndex) -> Option<Arc<Session>> {
        let shards = ignore_poison(self.shard(index.shard()).read());
        let slots = shards.get(index.shard() / STRIPES)?;
        slots.get(index.slot())?.clone()
    }

    /// Where an address is reused before its former session has left, it leads to the latest session.
    pub(super) fn enter(&self, session: &Arc<Session>) {
        let index = SessionIndex::of(session.id);
        let (shard, slot) = (index.shard() / STRIPES, index.slot());
        let mut shards = ignore_poison(self.shard(index.shard()).write());
        if shards.len() <= shard {
            shards.resize_with(shard + 1, Vec::new);
        }
        let slots = &mut shards[shard];
        if slots.len() <= slot {
            slots.resize_with(slot + 1, || None);
        }
        slots[slot] = Some(session.clone());
        drop(shards);
        // After the slot, so that an address that is found always leads to a session.
        let peer = session.peer();
        ignore_poison(self.addresses(peer).write()).insert(peer, index);
    }

    pub(super) fn leave(&self, session: &Session) {
        let index = SessionIndex::of(session.id);
        let peer = session.peer();
        let mut addresses = ignore_poison(self.addresses(peer).write());
        // By now, the address may lead to another slot, or the slot's next session may have the same address.
        let is_its_own = addresses.get(peer) == Some(index)
            && self
                .at(index)
                .is_none_or(|owner| owner.id == session.id || owner.peer() != peer);
        if is_its_own {
            addresses.remove(peer);
        }
        drop(addresses);
        let mut shards = ignore_poison(self.shard(index.shard()).write());
        let Some(slots) = shards.get_mut(index.shard() / STRIPES) else {
            return;
        };
        let owner = slots.get(index.slot()).and_then(Option::as_ref);
        if owner.is_some_and(|owner| owner.id == session.id) {
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
        let index = ignore_poison(self.addresses(address).read()).get(address)?;
        // The slot may have been reused by now.
        self.at(index).filter(|session| session.peer() == address)
    }

    pub(super) fn find_id(&self, id: LocalId) -> Option<Arc<Session>> {
        self.at(SessionIndex::of(id))
            .filter(|session| session.id == id)
    }

    /// Returns the ids of all sessions. It copies a few at a time, so that a connect or disconnect waits no longer than
    /// for one such batch.
    pub(super) fn ids(&self) -> Vec<LocalId> {
        let mut ids = Vec::new();
        for stripe in &self.sessions {
            let (mut shard, mut from) = (0, 0);
            loop {
                let shards = ignore_poison(stripe.read());
                let Some(slots) = shards.get(shard) else {
                    break;
                };
                let to = slots.len().min(from + COPIED_MAX);
                let copied = slots.get(from..to).into_iter().flatten().flatten();
                ids.extend(copied.map(|session| session.id));
                (shard, from) = match to < slots.len() {
                    true => (shard, to),
                    false => (shard + 1, 0),
                };
            }
        }
        ids
    }
}

/// Most slots that are copied while the lock is held.
const COPIED_MAX: usize = 256;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::{Encoding, HistoryForm};
    use crate::request::RequestHead;

    #[test]
    fn an_address_takes_little_memory() {
        // There is one entry for each connection, and the map's capacity can be twice that.
        assert_eq!(size_of::<((Ipv4Addr, u16), SessionIndex)>(), 12);
    }

    fn session(slot: u32, generation: u32, peer: &str) -> Arc<Session> {
        let mut id = LocalId::NOBODY;
        id.shard = 0;
        (id.key.slot, id.key.generation) = (slot, generation);
        let peer: SocketAddr = peer.parse().unwrap();
        let request = RequestHead::received(RequestHead::new("/").head().clone(), peer, peer.ip());
        Arc::new(Session::new(
            id,
            &request,
            None,
            HistoryForm::default(),
            Encoding::Frames,
            0,
        ))
    }

    #[test]
    fn address_of_a_reused_slot_is_removed() {
        let directory = Directory::default();
        let (first, second) = (session(0, 0, "10.0.0.1:1"), session(0, 1, "10.0.0.2:2"));
        directory.enter(&first);
        // The slot's next session may enter before the former one has left.
        directory.enter(&second);
        directory.leave(&first);
        assert!(directory.find(first.peer()).is_none());
        assert_eq!(directory.find(second.peer()).unwrap().id, second.id);
        directory.leave(&second);
        for addresses in &directory.addresses {
            assert!(ignore_poison(addresses.read()).ipv4.is_empty());
        }
    }

    #[test]
    fn address_used_again_leads_to_the_latest_session() {
        let directory = Directory::default();
        let (first, second) = (session(0, 0, "10.0.0.1:1"), session(1, 0, "10.0.0.1:1"));
        directory.enter(&first);
        directory.enter(&second);
        directory.leave(&first);
        assert_eq!(directory.find(first.peer()).unwrap().id, second.id);
        assert!(directory.find_id(first.id).is_none());
        assert_eq!(directory.ids(), [second.id]);
    }

    #[test]
    fn locked_stripe_keeps_only_its_own_addresses_waiting() {
        let directory = Directory::default();
        let peers: Vec<_> = (0..1_000)
            .map(|n| SocketAddr::from(([10, 0, (n / 256) as u8, n as u8], 1)))
            .collect();
        let locked = directory.addresses(peers[0]);
        let _locked = ignore_poison(locked.write());
        let free = peers.iter().filter(|&&peer| {
            let addresses = directory.addresses(peer);
            let waits = addresses.try_write().is_err();
            assert_eq!(waits, std::ptr::eq(addresses, locked));
            !waits
        });
        assert!(free.count() > 900);
    }
}
