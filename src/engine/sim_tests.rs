//! A whole shard under simulation: the engine's promises, one test each.
//!
//! The shard is the real one; its sockets, its clock, its sleep and its handlers' threads are the test's ([`world`]).
//! So everything happens in the order that the test says, a second costs nothing, and a socket takes exactly as many
//! bytes as it is told. [`game`] lets chance play all parts at once and checks what must hold whatever happens, [`rooms`]
//! does so with who is in which room, and [`dialogue`] holds one connection to the letter of RFC 6455; their chances come
//! from seeds, or from a fuzzer. [`costs`] counts what everything takes: calls to sockets, turns, wake-ups, copies.

#![cfg_attr(not(test), allow(dead_code))] // A fuzzer uses a part of the world only.

#[cfg(test)]
mod budgets;
#[cfg(all(test, feature = "deflate"))]
pub(crate) mod compression;
#[cfg(test)]
mod costs;
pub(crate) mod dialogue;
pub(crate) mod game;
#[cfg(test)]
mod handshakes;
#[cfg(test)]
mod http;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod pacing;
#[cfg(test)]
mod pre_admission;
#[cfg(test)]
mod regressions;
#[cfg(test)]
mod replays;
#[cfg(test)]
mod request_budgets;
pub(crate) mod rooms;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod standstill;
#[cfg(test)]
mod stopping;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod time;
#[cfg(test)]
mod users;
mod wire;
mod world;
