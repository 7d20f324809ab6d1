//! The slow-consumer policy, as a pure function: what to do with a message for a client that reads too slowly.

use crate::limits::SlowConsumer;

/// The decision about a message for one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeliveryVerdict {
    /// Queue the message.
    Queue,
    /// Do not send the message to this client.
    DropNewest,
    /// Drop the oldest whole messages until the message fits.
    DropOldest,
    /// Drop all whole messages that are queued, and queue the message.
    SkipAhead,
    /// Disconnect the client.
    Disconnect,
    /// Take no further message until the client has read on.
    Wait,
}

/// The fill level of an outbox when a message arrives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    /// Bytes in the outbox, without those of replays.
    pub(crate) bytes: usize,
    /// Bytes of the frame in progress, which can't be dropped.
    pub(crate) in_progress: usize,
    /// The bound of the outbox.
    pub(crate) bytes_max: usize,
}

/// Decides about a message of `len` bytes.
pub(crate) fn judge(policy: SlowConsumer, fill: Fill, len: usize) -> DeliveryVerdict {
    let fits_behind = |bytes: usize| bytes == 0 || bytes.saturating_add(len) <= fill.bytes_max;
    if fits_behind(fill.bytes) {
        return DeliveryVerdict::Queue;
    }
    match policy {
        SlowConsumer::Disconnect => DeliveryVerdict::Disconnect,
        SlowConsumer::DropNewest => DeliveryVerdict::DropNewest,
        SlowConsumer::DropOldest if fits_behind(fill.in_progress) => DeliveryVerdict::DropOldest,
        SlowConsumer::SkipAhead if fits_behind(fill.in_progress) => DeliveryVerdict::SkipAhead,
        // Dropping all that may be dropped would not make enough room.
        SlowConsumer::DropOldest | SlowConsumer::SkipAhead => DeliveryVerdict::DropNewest,
        SlowConsumer::Pace { .. } => DeliveryVerdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const PACE: SlowConsumer = SlowConsumer::Pace {
        bytes_per_second_min: 1,
        patience: Duration::from_secs(1),
    };

    #[test]
    fn policy_decides_as_in_the_table() {
        use DeliveryVerdict as V;
        use SlowConsumer as S;
        // policy, bytes in the outbox, bytes in progress, message length, decision; the bound is 100
        let table = [
            (S::Disconnect, 0, 0, 1_000_000, V::Queue),
            (S::DropNewest, 0, 0, 1_000_000, V::Queue),
            (S::DropOldest, 0, 0, 1_000_000, V::Queue),
            (S::SkipAhead, 0, 0, 1_000_000, V::Queue),
            (PACE, 0, 0, 1_000_000, V::Queue),
            (S::Disconnect, 90, 10, 10, V::Queue),
            (S::Disconnect, 90, 10, 11, V::Disconnect),
            (S::Disconnect, 1, 1, 100, V::Disconnect),
            (S::DropNewest, 90, 10, 10, V::Queue),
            (S::DropNewest, 90, 10, 11, V::DropNewest),
            (S::DropOldest, 90, 10, 11, V::DropOldest),
            (S::DropOldest, 90, 10, 90, V::DropOldest),
            (S::DropOldest, 90, 10, 91, V::DropNewest),
            (S::DropOldest, 90, 0, 1_000, V::DropOldest),
            (S::SkipAhead, 90, 10, 10, V::Queue),
            (S::SkipAhead, 90, 10, 11, V::SkipAhead),
            (S::SkipAhead, 90, 10, 90, V::SkipAhead),
            (S::SkipAhead, 90, 10, 91, V::DropNewest),
            (S::SkipAhead, 90, 0, 1_000, V::SkipAhead),
            (S::SkipAhead, 90, 90, 11, V::DropNewest),
            (PACE, 90, 10, 10, V::Queue),
            (PACE, 90, 10, 11, V::Wait),
            (S::Disconnect, 1, 1, usize::MAX, V::Disconnect),
            (S::SkipAhead, 1, 1, usize::MAX, V::DropNewest),
        ];
        for (policy, bytes, in_progress, len, verdict) in table {
            let fill = Fill {
                bytes,
                in_progress,
                bytes_max: 100,
            };
            assert_eq!(
                judge(policy, fill, len),
                verdict,
                "{policy:?} {fill:?} {len}"
            );
        }
    }
}
