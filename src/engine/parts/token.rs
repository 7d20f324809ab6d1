//! Tokens, under which a poll reports readiness (`mio::Token`). They are as wide as an address of the machine.

use mio::Token;

use crate::engine::parts::id::Key;

/// The token of the waker.
pub(crate) const WAKER: Token = Token(usize::MAX);

/// The maximum number of listeners.
pub(crate) const LISTENERS_MAX: usize = 62;

/// Slots that no connection gets, so that no connection's token equals [`WAKER`] or that of a listener.
const RESERVED_SLOTS: u64 = LISTENERS_MAX as u64 + 2;

/// The token of a listener.
pub(crate) const fn of_listener(index: usize) -> Token {
    assert!(index < LISTENERS_MAX, "the number of listeners was checked");
    Token(usize::MAX - 1 - index)
}

/// The listener that has a token, if it is that of a listener.
pub(crate) fn as_listener(token: Token) -> Option<usize> {
    // For the waker's token, it wraps around.
    let index = (usize::MAX - 1).wrapping_sub(token.0);
    (index < LISTENERS_MAX).then_some(index)
}

/// The layout of a token of `WIDTH` bits: the connection's slot in the low bits, and above it as many of the low bits
/// of its generation as fit.
///
/// With 64 bits, both fit in full. With 32 bits, a shard has 2^22 - 2 slots (4.2 million), which is more than the
/// sockets that fit into the memory of such a machine, and a token repeats after its slot was reused 1,024 times.
/// Readiness that is reported that late reaches the wrong connection, which then reads or writes once without effect.
/// That is harmless. Losing readiness would not be, because it is reported only once.
pub(crate) struct Layout<const WIDTH: u32>;

/// The layout on this machine.
pub(crate) type Native = Layout<{ usize::BITS }>;

impl<const WIDTH: u32> Layout<WIDTH> {
    const SLOT_BITS: u32 = match WIDTH {
        64 => 32,
        32 => 22,
        _ => panic!("only 32-bit and 64-bit machines are supported"),
    };
    const SLOT_MASK: u64 = (1 << Self::SLOT_BITS) - 1;
    const TOKEN_MASK: u64 = u64::MAX >> (64 - WIDTH);

    /// The token of a connection. `None` if its slot does not fit.
    pub(crate) fn pack(key: Key) -> Option<u64> {
        let slot = u64::from(key.slot);
        let token = u64::from(key.generation) << Self::SLOT_BITS | slot;
        (slot <= Self::SLOT_MASK - RESERVED_SLOTS).then_some(token & Self::TOKEN_MASK)
    }

    /// The slot in a token.
    pub(crate) fn slot(token: u64) -> u32 {
        // The mask leaves at most 32 bits.
        (token & Self::SLOT_MASK) as u32
    }
}

impl Key {
    /// The token of this connection. `None` if its slot does not fit.
    pub(crate) fn token(self) -> Option<usize> {
        Native::pack(self).and_then(|token| usize::try_from(token).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(slot: u32, generation: u32) -> Key {
        Key { slot, generation }
    }

    fn packed<const WIDTH: u32>(slot: u32, generation: u32) -> u64 {
        Layout::<WIDTH>::pack(key(slot, generation)).unwrap()
    }

    /// Slots and generations around each bit, in all combinations.
    fn edges(bits: u32) -> impl Iterator<Item = u32> {
        (0..bits)
            .flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])
            .filter(move |&edge| u64::from(edge) < (1 << bits) - RESERVED_SLOTS)
    }

    fn token_tells_slot_and_next_generation<const WIDTH: u32>(slot_bits: u32) {
        for slot in edges(slot_bits) {
            for generation in edges(32) {
                let token = packed::<WIDTH>(slot, generation);
                assert!(u128::from(token) < 1 << WIDTH);
                assert_eq!(Layout::<WIDTH>::slot(token), slot);
                let next = packed::<WIDTH>(slot, generation + 1);
                assert_ne!(token, next, "{slot} {generation}");
            }
        }
    }

    #[test]
    fn token_of_64_bits_differs_by_slot_and_generation() {
        token_tells_slot_and_next_generation::<64>(32);
    }

    #[test]
    fn token_of_32_bits_differs_by_slot_and_generation() {
        token_tells_slot_and_next_generation::<32>(22);
    }

    #[test]
    fn token_of_64_bits_holds_the_whole_generation() {
        assert_eq!(packed::<64>(7, u32::MAX), 0xFFFF_FFFF_0000_0007);
    }

    #[test]
    fn token_of_32_bits_repeats_after_1024_generations() {
        let tokens: std::collections::HashSet<u64> =
            (0..1024).map(|n| packed::<32>(7, n)).collect();
        assert_eq!(tokens.len(), 1024);
        assert_eq!(packed::<32>(7, 1024), packed::<32>(7, 0));
    }

    #[test]
    fn slot_beyond_the_layout_has_no_token() {
        let pack = |slot| Layout::<32>::pack(key(slot, u32::MAX));
        let reserved = RESERVED_SLOTS as u32;
        assert!(pack((1 << 22) - 1 - reserved).is_some());
        for slot in [(1 << 22) - reserved, (1 << 22) - 1, 1 << 22, u32::MAX] {
            assert_eq!(pack(slot), None, "{slot}");
        }
        let pack = |slot| Layout::<64>::pack(key(slot, u32::MAX));
        assert!(pack(u32::MAX - reserved).is_some());
        assert_eq!(
            (pack(u32::MAX - reserved + 1), pack(u32::MAX)),
            (None, None)
        );
    }

    #[test]
    fn no_connection_has_the_token_of_waker_or_listener() {
        let first_listener = |width: u32| (u64::MAX >> (64 - width)) - LISTENERS_MAX as u64;
        let reserved = RESERVED_SLOTS as u32;
        let largest = Layout::<32>::pack(key((1 << 22) - 1 - reserved, u32::MAX)).unwrap();
        assert!(largest < first_listener(32));
        let largest = Layout::<64>::pack(key(u32::MAX - reserved, u32::MAX)).unwrap();
        assert!(largest < first_listener(64));
        for index in 0..LISTENERS_MAX {
            assert_eq!(as_listener(of_listener(index)), Some(index));
        }
        let last = of_listener(LISTENERS_MAX - 1).0;
        for other in [WAKER, Token(last - 1), Token(0)] {
            assert_eq!(as_listener(other), None, "{other:?}");
        }
    }
}
