//! The negotiated compression of a connection, and the epoch whose history it shares.

#[cfg(feature = "deflate")]
use crate::protocol::deflate::{fits_window, negotiate::Agreement};

/// The state of a connection's compression. Without the feature, its size is zero and compression is never negotiated.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ConnCompression {
    /// The epoch that the connection follows, above the eight bits of its [`Ability`].
    #[cfg(feature = "deflate")]
    bits: u64,
}

/// The messages that a client can inflate, as negotiated in its handshake. By default it can inflate none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ability {
    /// The size of the client's window as a power of two, and [`Self::STATELESS`]. 0 if nothing was negotiated.
    #[cfg(feature = "deflate")]
    bits: u8,
}

/// The number of an epoch, a series of compressed messages of which the first refers to no other. A shard never reuses
/// a number.
#[cfg(feature = "deflate")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

/// The window size, as a power of two, of the compressor whose history the members of an audience share. It is the
/// largest one: short messages take a tenth fewer bytes than with 13, and few clients ask for less.
#[cfg(feature = "deflate")]
pub(crate) const SHARED_WINDOW_BITS: u8 = 15;

#[cfg(not(feature = "deflate"))]
impl ConnCompression {
    pub(crate) fn new(_: Ability) -> Self {
        Self {}
    }

    #[inline(always)]
    pub(crate) fn is_agreed(self) -> bool {
        false
    }
}

#[cfg(feature = "deflate")]
impl Ability {
    /// Set if the client requires that each message be compressed independently (`server_no_context_takeover`).
    const STATELESS: u8 = 0x80;

    pub(crate) fn new(agreement: Agreement) -> Self {
        let stateless = match agreement.server_no_context_takeover {
            true => Self::STATELESS,
            false => 0,
        };
        Self {
            bits: agreement.window_bits() | stateless,
        }
    }

    fn window_bits(self) -> u8 {
        self.bits & !Self::STATELESS
    }

    pub(crate) fn is_agreed(self) -> bool {
        self.bits != 0
    }

    /// Whether the client can share the history of an audience.
    fn can_follow(self) -> bool {
        self.bits & Self::STATELESS == 0 && self.bits >= SHARED_WINDOW_BITS
    }

    /// Returns whether the client can inflate an independently compressed message of `len` bytes.
    pub(crate) fn can_inflate(self, len: usize) -> bool {
        self.is_agreed() && fits_window(self.window_bits(), len)
    }
}

#[cfg(feature = "deflate")]
impl Epoch {
    /// An epoch that no connection follows.
    pub(crate) const NONE: Self = Self(u64::MAX);

    pub(crate) const FIRST: Self = Self(1);

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

#[cfg(feature = "deflate")]
impl ConnCompression {
    pub(crate) fn new(ability: Ability) -> Self {
        Self {
            bits: ability.bits.into(),
        }
    }

    #[inline]
    pub(crate) fn ability(self) -> Ability {
        Ability {
            bits: self.bits as u8,
        }
    }

    #[inline]
    pub(crate) fn is_agreed(self) -> bool {
        self.ability().is_agreed()
    }

    #[inline]
    pub(crate) fn can_follow(self) -> bool {
        self.ability().can_follow()
    }

    /// The epoch that the connection follows.
    #[inline]
    pub(crate) fn epoch(self) -> Option<Epoch> {
        match self.bits >> 8 {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    #[inline]
    pub(crate) fn follows(self, epoch: Epoch) -> bool {
        self.bits >> 8 == epoch.0
    }

    pub(crate) fn follow(&mut self, epoch: Epoch) {
        debug_assert!(self.can_follow());
        self.bits = epoch.0 << 8 | u64::from(self.ability().bits);
    }

    /// Stops following, because the client's window no longer contains the audience's history. The client receives
    /// uncompressed frames until it follows again.
    #[inline]
    pub(crate) fn leave_epoch(&mut self) {
        self.bits = self.ability().bits.into();
    }
}

#[cfg(all(test, feature = "deflate"))]
mod tests {
    use super::*;
    use crate::protocol::deflate::negotiate::accept;

    fn ability(parameters: &str) -> Ability {
        Ability::new(accept([format!("permessage-deflate{parameters}").as_str()]).unwrap())
    }

    #[test]
    fn small_window_inflates_short_messages_and_never_follows() {
        let small = ability("; server_max_window_bits=8");
        assert!(small.can_inflate(256) && !small.can_inflate(257));
        assert!(!ConnCompression::new(small).can_follow());
        let medium = ability("; server_max_window_bits=14");
        assert!(medium.can_inflate(16384) && !medium.can_inflate(16385));
        assert!(!ConnCompression::new(medium).can_follow());
        assert!(ConnCompression::new(ability("; server_max_window_bits=15")).can_follow());
        let stateless = ability("; server_no_context_takeover");
        assert!(stateless.can_inflate(1 << 30));
        assert!(!ConnCompression::new(stateless).can_follow());
        assert!(!Ability::default().can_inflate(0));
    }

    #[test]
    fn connection_follows_one_epoch_at_a_time() {
        let mut conn = ConnCompression::new(ability(""));
        assert_eq!(conn.epoch(), None);
        let (first, second) = (Epoch::FIRST, Epoch::FIRST.next());
        conn.follow(first);
        assert!(conn.follows(first) && !conn.follows(second));
        conn.follow(second);
        assert_eq!(conn.epoch(), Some(second));
        conn.leave_epoch();
        assert!(conn.is_agreed() && conn.can_follow() && conn.epoch().is_none());
    }
}
