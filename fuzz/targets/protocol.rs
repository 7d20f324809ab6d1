//! One connection, against what RFC 6455 says of it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::protocol(data));
