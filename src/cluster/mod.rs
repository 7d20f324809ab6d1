//! One app on several nodes: rooms, and everyone, over a broker that the nodes share.
//!
//! Each node subscribes to the rooms that it has members of. A broadcast reaches local members at once, and the other
//! nodes through the broker. The engine knows nothing of it.
//!
//! - `wire`: the envelopes that nodes send to each other;
//! - `broker`: the seam to a broker server, a state machine without I/O; `redis` and `nats` implement it;
//! - `broker_urls`, `url`: which broker a URL asks for, and how to reach it;
//! - `node`: which rooms and nodes this node hears, with `peers`, `counts` and `parked`; also without I/O and clock;
//! - `replica`: a node's copy of a room's history;
//! - `outgoing`, `interest`, `handle`: what the app's threads share with the link;
//! - `link`: the thread with the sockets; `socket` and `tls`: one of them.

mod broker;
mod broker_urls;
mod counters;
mod counts;
#[cfg(all(any(test, fuzzing), not(loom)))]
pub(crate) mod fuzz;
mod handle;
mod interest;
mod link;
mod lost;
mod members;
mod nats;
mod node;
mod outgoing;
mod parked;
mod peers;
mod queries;
mod redis;
mod replica;
mod servers;
mod settings;
mod socket;
mod start;
#[cfg(feature = "__cluster-tls")]
mod tls;
mod unsent;
mod url;
mod wire;

pub use self::settings::Cluster;

pub(crate) use self::broker::Channel;
pub(crate) use self::handle::ClusterHandle;
pub(crate) use self::interest::{Interest, Waited};
pub(crate) use self::members::{CopyBeginning, Delivered, Members};
pub(crate) use self::outgoing::{AppendOutcome, AppendRequest, NotQueued, Outbound};
pub(crate) use self::queries::Answers;
pub(crate) use self::start::PreparedCluster;
pub(crate) use self::wire::{DirectAction, OVERHEAD_BYTES_MAX, Payload, RemoteConnection};

#[cfg(all(test, not(loom)))]
mod sim_tests;
