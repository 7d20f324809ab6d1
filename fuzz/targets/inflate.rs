//! Compressed payloads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::inflate(data));
