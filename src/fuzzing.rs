//! The entry points of the fuzz targets (`fuzz/`), each of which runs one case, and their seeds as tests.
//!
//! A case fails with a panic. Any input is a valid case. The called modules document how they interpret it.

/// Frames from a client that arrive in arbitrary pieces.
pub fn frames(data: &[u8]) {
    crate::protocol::fuzz::frames::run(data);
}

/// Frames from a server that arrive in arbitrary pieces.
pub fn client_frames(data: &[u8]) {
    crate::protocol::fuzz::frames::run_as_client(data);
}

/// Responses to a client's handshake that arrive in arbitrary pieces.
pub fn reply(data: &[u8]) {
    crate::protocol::fuzz::reply::run(data);
}

/// Requests that arrive in arbitrary pieces.
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

/// One connection, compared with RFC 6455.
pub fn protocol(data: &[u8]) {
    crate::engine::sim_tests::dialogue::run(data);
}

/// A whole shard with its clients and its program.
pub fn shard(data: &[u8]) {
    crate::engine::sim_tests::game::run(data);
}

/// The members of rooms, and the messages that they receive.
pub fn rooms(data: &[u8]) {
    crate::engine::sim_tests::rooms::run(data);
}

/// The bytes of a TLS client, changed, and in arbitrary pieces.
#[cfg(feature = "__tls")]
pub fn tls(data: &[u8]) {
    crate::transport::tls::fuzz::run(data);
}

/// Replies of a Redis server that arrive in arbitrary pieces.
#[cfg(feature = "cluster")]
pub fn redis(data: &[u8]) {
    crate::cluster::fuzz::replies(data);
}

/// What a NATS server says, in arbitrary pieces.
#[cfg(feature = "cluster")]
pub fn nats(data: &[u8]) {
    crate::cluster::fuzz::nats_replies(data);
}

/// Messages between the nodes of a cluster.
#[cfg(feature = "cluster")]
pub fn envelope(data: &[u8]) {
    crate::cluster::fuzz::envelope(data);
}

#[cfg(test)]
mod tests;
