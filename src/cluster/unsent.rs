//! The bytes of a connection that are not sent yet.

/// The memory of a burst beyond this is released.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// Bytes to send.
#[derive(Default)]
pub(super) struct Unsent {
    bytes: Vec<u8>,
    /// The first of them that is not sent.
    from: usize,
}

impl Unsent {
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.from
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    /// The buffer that further bytes are appended to.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The first bytes have been sent.
    pub(super) fn advance(&mut self, sent: usize) {
        self.from += sent;
        if self.is_empty() {
            self.from = 0;
            match self.bytes.capacity() > KEPT_BYTES_MAX {
                true => self.bytes = Vec::new(),
                false => self.bytes.clear(),
            }
        } else if self.from > self.len() {
            // The buffer may never be empty. Moving its rest costs less than sending what was sent did.
            self.bytes.drain(..std::mem::take(&mut self.from));
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn unsent_bytes_are_bounded_though_they_are_never_all_sent() {
        let mut unsent = Unsent::default();
        let mut numbers = (0..=u8::MAX).cycle();
        let mut sent = (0..=u8::MAX).cycle();
        for _ in 0..10_000 {
            unsent.end().extend(numbers.by_ref().take(1_000));
            let all_but_one = unsent.len() - 1;
            let expected: Vec<u8> = sent.by_ref().take(all_but_one).collect();
            assert_eq!(unsent.bytes()[..all_but_one], expected);
            unsent.advance(all_but_one);
            assert_eq!(unsent.len(), 1);
        }
        assert!(unsent.end().capacity() < 10_000);
    }
}
