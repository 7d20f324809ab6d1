//! Simulates a whole shard with its clients and its program.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::shard(data));
