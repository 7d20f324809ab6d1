//! The scripts that a server executes for histories.
//!
//! They are executed by their digest (`EVALSHA`), and loaded before the first execution on each connection.

use std::fmt::Write as _;

use sha1::{Digest as _, Sha1};

use super::resp::{Decimal, put_argument, put_command};

pub(super) const APPEND: &str = include_str!("append.lua");
pub(super) const READ: &str = include_str!("read.lua");

/// A script, and the digest that names it.
#[derive(Debug)]
pub(super) struct RedisScript {
    text: &'static str,
    digest: String,
}

impl RedisScript {
    pub(super) fn new(text: &'static str) -> Self {
        let mut digest = String::new();
        for byte in Sha1::digest(text) {
            // Writing to a string does not fail.
            let _ = write!(digest, "{byte:02x}");
        }
        Self { text, digest }
    }

    /// Appends the command that loads the script.
    pub(super) fn put_load(&self, out: &mut Vec<u8>) {
        put_command(out, 3);
        put_argument(out, &[b"SCRIPT"]);
        put_argument(out, &[b"LOAD"]);
        put_argument(out, &[self.text.as_bytes()]);
    }

    /// Appends the start of the command that executes the script. So many keys and other arguments have to follow.
    pub(super) fn put_start(&self, keys: usize, arguments: usize, out: &mut Vec<u8>) {
        put_command(out, 3 + keys + arguments);
        put_argument(out, &[b"EVALSHA"]);
        put_argument(out, &[self.digest.as_bytes()]);
        put_argument(out, &[Decimal::new(keys as u64).bytes()]);
    }
}
