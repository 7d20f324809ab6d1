//! Threads that poll or sleep: the shards, the listener on the first of them, and the watchdog.

pub(crate) mod listener;
pub(crate) mod shard;
pub(crate) mod watchdog;
