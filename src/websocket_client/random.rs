//! Unpredictable random bytes.

use std::io;

/// Number of keys drawn per system call: one system call per frame would cost more than masking the frame.
const DRAWN_KEYS: usize = 64;

/// Fills `bytes` from the operating system's random source.
pub(super) fn fill(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes)
        .map_err(|error| io::Error::other(format!("the system has no random bytes: {error}")))
}

/// A source of masking keys: an unpredictable key for each frame (RFC 6455 §5.3, §10.3).
pub(super) struct MaskingKeys {
    keys: [[u8; 4]; DRAWN_KEYS],
    used: usize,
}

impl MaskingKeys {
    pub(super) const fn new() -> Self {
        Self {
            keys: [[0; 4]; DRAWN_KEYS],
            used: DRAWN_KEYS,
        }
    }

    pub(super) fn next(&mut self) -> io::Result<[u8; 4]> {
        if self.used == DRAWN_KEYS {
            fill(self.keys.as_flattened_mut())?;
            self.used = 0;
        }
        let key = self.keys[self.used];
        self.used += 1;
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn masking_keys_do_not_repeat() {
        let mut keys = MaskingKeys::new();
        let drawn: HashSet<[u8; 4]> = (0..1_000).map(|_| keys.next().unwrap()).collect();
        // Among 1,000 of 2^32 possible keys, even one collision is unlikely.
        assert!(drawn.len() >= 998, "{}", drawn.len());
    }
}
