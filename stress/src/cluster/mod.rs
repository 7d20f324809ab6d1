//! A cluster under test: a Redis server and three nodes, each a process of its own, and the clients of all nodes, which one
//! thread of this process serves.

pub(crate) mod accounts;
pub(crate) mod fleet;
pub(crate) mod frames;
mod member;
pub(crate) mod node;
pub(crate) mod redis;

/// The number of nodes.
pub(crate) const NODES: usize = 3;
/// Node processes of one scenario, counting those that are started anew.
pub(crate) const SENDERS_MAX: usize = 16;
