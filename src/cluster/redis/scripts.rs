//! The scripts that a server executes for histories.
//!
//! They are executed by their digest (`EVALSHA`), and loaded before the first execution on each connection.

use std::fmt::Write as _;

use sha1::{Digest as _, Sha1};

use super::resp::{put_argument, put_command};

pub(super) const APPEND: &str = include_str!("append.lua");
pub(super) const READ: &str = include_str!("read.lua");

/// A script, and the start of the command that executes it.
#[derive(Debug)]
pub(super) struct RedisScript {
    text: &'static str,
    start: Vec<u8>,
}

impl RedisScript {
    /// Creates a script that has so many keys and other arguments.
    pub(super) fn new(text: &'static str, keys: u8, arguments: u8) -> Self {
        let mut digest = String::new();
        for byte in Sha1::digest(text) {
            // Writing to a string does not fail.
            let _ = write!(digest, "{byte:02x}");
        }
        let mut start = Vec::new();
        put_command(&mut start, 3 + usize::from(keys) + usize::from(arguments));
        put_argument(&mut start, &[b"EVALSHA"]);
        put_argument(&mut start, &[digest.as_bytes()]);
        put_argument(&mut start, &[&[b'0' + keys]]);
        Self { text, start }
    }

    /// Appends the command that loads the script.
    pub(super) fn put_load(&self, out: &mut Vec<u8>) {
        put_command(out, 3);
        put_argument(out, &[b"SCRIPT"]);
        put_argument(out, &[b"LOAD"]);
        put_argument(out, &[self.text.as_bytes()]);
    }

    /// Appends the start of the command that executes the script. The keys and the other arguments have to follow.
    pub(super) fn put_start(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.start);
    }
}
