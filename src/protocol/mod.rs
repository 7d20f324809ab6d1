//! RFC 6455 (both roles), the HTTP/1.x head and body framing, and server-sent events, as bytes and rules without I/O.
//!
//! **Depends on** nothing in this crate; outside it on httparse, sha1 and base64.
//!
//! **Must not know** sockets, threads, clocks, rooms, metrics or `Message`. It never blocks, sleeps,
//! logs or asks for the time.
//!
//! **Contract.** Bytes go in exactly as they arrived, in any portions: where the network cuts them
//! changes neither the events nor the violation they end in. Network input never panics. No memory
//! is reserved because a peer announced something, only because bytes arrived. What was valid before
//! a violation has already been returned. Answers come out as bytes for the caller to write; a
//! [`Violation`](error::Violation) says with which close code a connection ends.
//!
//! | module | knows |
//! |---|---|
//! | [`http`] | request and response heads, body framing, whole responses (RFC 9112) |
//! | [`handshake`] | a server's side: what makes a request a WebSocket request, 101 and refusals (RFC 6455 §4.2); a client's side: the request, and the judgement of its answer (§4.1) |
//! | [`role`] | which side this is: who masks (§5.1) |
//! | [`connection`] | the receiving state machine: bytes → events (§5.2–§5.5) |
//! | [`assembler`] | one message growing from its parts (§5.4) |
//! | [`mask`], [`utf8`] | unmasking (§5.3), incremental validation (§8.1) |
//! | [`encode`] | frames to send (§5.2): a server's unmasked, a client's masked |
//! | [`cors`] | which pages may read a response (WHATWG Fetch §3.3) |
//! | [`percent`] | percent-decoding of paths, queries and zones (RFC 3986 §2.1) |
//! | [`json_string`] | strings of JSON (RFC 8259 §7) |
//! | [`event_stream`] | server-sent events to send (WHATWG HTML §9.2) |
//! | [`procedures`] | notifications, calls and their answers in binary messages |
//! | [`close`], [`close_frame`], [`error`] | close codes and reasons (§7.4), received close frames (§5.5.1), violations |

pub(crate) mod assembler;
pub(crate) mod close;
pub(crate) mod close_frame;
pub(crate) mod connection;
pub(crate) mod cors;
#[cfg(feature = "deflate")]
pub(crate) mod deflate;
#[cfg(test)]
mod differential_tests;
pub(crate) mod encode;
pub(crate) mod error;
pub(crate) mod event_stream;
#[cfg(any(test, fuzzing))]
#[cfg_attr(loom, allow(dead_code))] // Models do without.
pub(crate) mod fuzz;
pub(crate) mod handshake;
mod header;
pub(crate) mod http;
pub(crate) mod json_string;
pub(crate) mod mask;
pub(crate) mod percent;
pub(crate) mod procedures;
pub(crate) mod proxy_header;
#[cfg(test)]
mod regressions;
pub(crate) mod role;
pub(crate) mod utf8;
