//! permessage-deflate (RFC 7692): what is agreed in the handshake, and single messages packed and inflated. Which messages
//! share a history is not decided here.
//!
//! | module | knows |
//! |---|---|
//! | [`negotiate`] | offers and the answer to them (§5, §7.1) |
//! | [`pack`] | messages to frames (§7.2.1) |
//! | [`inflate`] | payloads to messages (§7.2.2) |

pub(crate) mod inflate;
pub(crate) mod negotiate;
pub(crate) mod pack;
#[cfg(test)]
mod tests;

/// What a sync flush ends with. It is cut off before a message is sent, and put back before it is inflated
/// (RFC 7692 §7.2.1, §7.2.2).
const SYNC_FLUSH_END: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];

/// Bits of the largest window: 32 KiB (RFC 7692 §7.1.2).
pub(crate) const WINDOW_BITS_MAX: u8 = 15;
