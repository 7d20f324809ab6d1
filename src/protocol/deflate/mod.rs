//! permessage-deflate (RFC 7692): the negotiation in the handshake, and the compression and inflation of single
//! messages. The caller decides which messages share a history.
//!
//! | module | knows |
//! |---|---|
//! | [`negotiate`] | offers and the answer to them (§5, §7.1) |
//! | [`compress`] | messages to frames (§7.2.1) |
//! | [`inflate`] | payloads to messages (§7.2.2) |

pub(crate) mod compress;
pub(crate) mod inflate;
pub(crate) mod negotiate;
#[cfg(test)]
mod tests;

/// The last bytes of a sync flush. A sender removes them from each message, and a receiver appends them before it inflates
/// the message (RFC 7692 §7.2.1, §7.2.2).
const SYNC_FLUSH_END: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// The largest window, 32 KiB, as a power of two (RFC 7692 §7.1.2).
pub(crate) const WINDOW_BITS_MAX: u8 = 15;

/// Returns whether a client can inflate an independently compressed message of `len` bytes. A client with the largest
/// window can inflate any message. Others can inflate a message that fits into their window (RFC 7692 §7.1.2.1).
pub(crate) fn fits_window(window_bits: u8, len: usize) -> bool {
    window_bits >= WINDOW_BITS_MAX || len <= 1 << window_bits
}
