//! Messages compressed and inflated.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::compress(data));
