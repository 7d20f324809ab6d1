//! A TLS client's bytes, changed and in any pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::tls(data));
