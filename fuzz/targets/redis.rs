//! Replies of a Redis server, in any pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::redis(data));
