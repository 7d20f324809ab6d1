//! Data structures of the engine. They do not depend on the rest of it, take time as an argument and do no I/O of their
//! own.

pub(crate) mod batch;
pub(crate) mod bursts;
pub(crate) mod clock;
pub(crate) mod compression;
pub(crate) mod encoding;
pub(crate) mod expiry;
pub(crate) mod id;
pub(crate) mod inline_policy;
pub(crate) mod job_queue;
pub(crate) mod lease;
pub(crate) mod mailbox;
pub(crate) mod outbox;
pub(crate) mod pace;
pub(crate) mod peer_limits;
pub(crate) mod slab;
pub(crate) mod slot_set;
pub(crate) mod slow_consumer;
pub(crate) mod small_set;
pub(crate) mod sync;
pub(crate) mod timers;
pub(crate) mod token;
pub(crate) mod token_bucket;
pub(crate) mod unwind;
pub(crate) mod usage_index;
pub(crate) mod users;
pub(crate) mod write_progress;
