//! Checks room membership and the delivery of room broadcasts.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::rooms(data));
