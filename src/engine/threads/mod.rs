//! Threads that poll or sleep: the shards, the first of which has the listener, and the watchdog.

pub(crate) mod listener;
pub(crate) mod shard;
pub(crate) mod watchdog;
