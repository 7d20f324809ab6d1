//! A whole shard under simulation: the engine's promises, one test each.
//!
//! The shard is the real one; its sockets, its clock, its sleep and its handlers' threads are the test's ([`world`]).
//! So everything happens in the order that the test says, a second costs nothing, and a socket takes exactly as many
//! bytes as it is told. `random` lets chance play all parts at once and checks what must hold whatever happens.

mod http;
mod memory;
mod random;
mod regressions;
mod sessions;
mod slow;
mod stopping;
mod time;
mod wire;
mod world;
