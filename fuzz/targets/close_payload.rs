//! Payloads of close frames, both ways.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::close_payload(data));
