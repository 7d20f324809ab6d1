//! Answers to a client's handshake, cut by the network in any way.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::reply(data));
