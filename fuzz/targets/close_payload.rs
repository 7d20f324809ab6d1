//! Parses and renders the payload of a close frame.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::close_payload(data));
