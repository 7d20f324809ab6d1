//! Compares one connection with a reference implementation of RFC 6455.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::protocol(data));
