//! Messages between the nodes of a cluster.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| humphrey_ws::fuzzing::envelope(data));
