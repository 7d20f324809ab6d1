//! The broker servers of a cluster, as the app's threads and the node share them.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::broker::Channel;
use super::interest::ServerStatus;
use super::outgoing::Outgoing;

/// What other threads see of one broker server.
pub(crate) struct ServerShared {
    /// See [`server_key`].
    pub(crate) key: u64,
    pub(crate) outgoing: Outgoing,
    pub(crate) status: ServerStatus,
    /// The longest envelope that it takes; known once it is connected.
    pub(crate) message_bytes_max: AtomicUsize,
}

/// A number for a broker server, the same on every node.
pub(crate) fn server_key(identity: &str) -> u64 {
    hash(0, identity.as_bytes())
}

/// Returns the index of the server that a channel belongs to: the one with the highest number drawn from both
/// (rendezvous hashing). So if a server is added or removed, only its own channels move.
pub(crate) fn server_of(channel: &Channel, servers: &[Arc<ServerShared>]) -> usize {
    if servers.len() == 1 {
        return 0;
    }
    let number = |server: &ServerShared| match channel {
        Channel::Everyone => hash(server.key, b"everyone"),
        Channel::Nodes => hash(server.key, b"nodes"),
        Channel::Node(node) => hash(server.key ^ 1, &node.to_le_bytes()),
        Channel::Room(name) => hash(server.key ^ 2, name.as_bytes()),
    };
    let highest = servers
        .iter()
        .enumerate()
        .max_by_key(|(_, server)| number(server));
    highest.map_or(0, |(index, _)| index)
}

/// FNV-1a with a final mix. All nodes must agree, so it is none of the standard library's.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
    let hash = bytes.iter().fold(seed ^ 0xCBF2_9CE4_8422_2325, step);
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    mixed ^ (mixed >> 33)
}
