//! What a NATS server says, in any pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::nats(data));
