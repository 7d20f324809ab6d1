//! What is to be done with a message for a client that reads too slowly: a pure function.

use crate::limits::SlowConsumer;

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Queue it.
    Queue,
    /// Do not send it to this client.
    DropNewest,
    /// Drop the oldest whole messages until it fits.
    DropOldest,
    /// Disconnect the client.
    Disconnect,
    /// Take no further message until the client has read on.
    Wait,
}

/// What is known of an outbox when another message comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fill {
    /// Bytes in it, but for those of replays.
    pub(crate) bytes: usize,
    /// Those of them that finish the frame in progress, and can't be dropped.
    pub(crate) in_progress: usize,
    /// Its bound.
    pub(crate) bytes_max: usize,
}

/// Judges a message of `len` bytes.
pub(crate) fn judge(policy: SlowConsumer, fill: Fill, len: usize) -> Verdict {
    let fits_behind = |bytes: usize| bytes == 0 || bytes.saturating_add(len) <= fill.bytes_max;
    if fits_behind(fill.bytes) {
        return Verdict::Queue;
    }
    match policy {
        SlowConsumer::Disconnect => Verdict::Disconnect,
        SlowConsumer::DropNewest => Verdict::DropNewest,
        SlowConsumer::DropOldest if fits_behind(fill.in_progress) => Verdict::DropOldest,
        // Nothing that may be dropped would make room.
        SlowConsumer::DropOldest => Verdict::DropNewest,
        SlowConsumer::Pace { .. } => Verdict::Wait,
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
    fn the_verdict_is_this_table() {
        use SlowConsumer as S;
        use Verdict as V;
        // policy, bytes in the outbox, of them in progress, message, verdict; the bound is 100
        let table = [
            (S::Disconnect, 0, 0, 1_000_000, V::Queue),
            (S::DropNewest, 0, 0, 1_000_000, V::Queue),
            (S::DropOldest, 0, 0, 1_000_000, V::Queue),
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
            (PACE, 90, 10, 10, V::Queue),
            (PACE, 90, 10, 11, V::Wait),
            (S::Disconnect, 1, 1, usize::MAX, V::Disconnect),
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
