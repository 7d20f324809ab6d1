//! Who is in which room, and what they are sent.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::rooms(data));
