//! Tests of the engine's guarantees on a simulated shard.
//!
//! The shard is the real one. Its sockets, clock, poll and handler threads are simulated ([`world`]), so the test determines
//! the order of all events, time passes at once, and a socket accepts exactly as many bytes as the test allows. [`game`]
//! simulates clients, sockets, time and the program at random and checks invariants, [`rooms`] does so for room membership, `keyed` for keyed
//! rooms, and [`dialogue`] compares one connection with RFC 6455. Their random choices come from seeds or from a fuzzer. [`costs`] counts
//! socket calls, turns of the event loop, wake-ups and copies.

#![cfg_attr(not(test), allow(dead_code))] // Fuzzers use only a part of the simulation.

#[cfg(test)]
mod budgets;
#[cfg(all(test, feature = "deflate"))]
mod compression;
#[cfg(test)]
mod costs;
pub(crate) mod dialogue;
#[cfg(test)]
mod draining;
pub(crate) mod game;
#[cfg(test)]
mod handshakes;
#[cfg(test)]
mod http;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod inspecting;
#[cfg(test)]
mod keyed;
#[cfg(test)]
mod listeners;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod pacing;
#[cfg(test)]
mod pieces;
#[cfg(test)]
mod pre_admission;
#[cfg(test)]
mod proxied;
#[cfg(test)]
mod receive_rates;
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
mod tls;
#[cfg(test)]
mod users;
mod wire;
mod world;
