//! One case of each fuzz target (`fuzz/`), and their seeds as tests.
//!
//! A case fails by a panic. Each input is a case, whatever its bytes; the modules that are called say how it is read.

/// Frames from a client, cut in any way.
pub fn frames(data: &[u8]) {
    crate::protocol::fuzz::frames::run(data);
}

/// Frames from a server, cut in any way.
pub fn client_frames(data: &[u8]) {
    crate::protocol::fuzz::frames::run_as_client(data);
}

/// Answers to a client's handshake, cut in any way.
pub fn reply(data: &[u8]) {
    crate::protocol::fuzz::reply::run(data);
}

/// Requests, cut in any way.
pub fn handshake(data: &[u8]) {
    crate::protocol::fuzz::handshake::run(data);
}

/// Offers of compression.
#[cfg(feature = "deflate")]
pub fn offers(data: &[u8]) {
    crate::protocol::fuzz::deflate::run_offers(data);
}

/// Compressed payloads, inflated in any portions.
#[cfg(feature = "deflate")]
pub fn inflate(data: &[u8]) {
    crate::protocol::fuzz::deflate::run_inflate(data);
}

/// Messages compressed and inflated.
#[cfg(feature = "deflate")]
pub fn compress(data: &[u8]) {
    crate::protocol::fuzz::deflate::run_compress(data);
}

/// Payloads of close frames.
pub fn close_payload(data: &[u8]) {
    crate::protocol::fuzz::close_payload::run(data);
}

/// One connection, against what RFC 6455 says of it.
pub fn protocol(data: &[u8]) {
    crate::engine::sim_tests::dialogue::run(data);
}

/// A whole shard, its clients and its program.
pub fn shard(data: &[u8]) {
    crate::engine::sim_tests::game::run(data);
}

/// Who is in which room, and what they are sent.
pub fn rooms(data: &[u8]) {
    crate::engine::sim_tests::rooms::run(data);
}

#[cfg(test)]
mod tests;
