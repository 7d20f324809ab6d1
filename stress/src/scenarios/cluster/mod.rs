//! Faults of a cluster under load, with exact accounts: three nodes over a real Redis server, and thousands of clients, each
//! of which receives every message of its room once and in the order of ids, or is told of a gap.

mod account;
mod faults;
mod run;

pub(crate) use faults::{
    client_kill, evict, freeze_node, freeze_redis, kill_node, kill_redis, kill_redis_aof,
    outage_joins, plain_beside, redis_loads, rolling_restart,
};
