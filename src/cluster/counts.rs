//! The numbers of messages: each node counts its messages to each channel, so that receivers know what they have missed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::broker::Channel;

/// After this time without a message of this node to a channel, its count may begin anew.
pub(super) const COUNTS_KEPT: Duration = Duration::from_secs(120);
/// The maximum number of other nodes. Any program that may publish to the broker can pretend to be a node.
pub(super) const NODES_MAX: usize = 1_024;
/// The maximum number of channels in each generation of counts. Clients may choose the rooms that handlers broadcast to, so the number of
/// channels in [`COUNTS_KEPT`] has no other bound.
const CHANNELS_MAX: usize = 1 << 17;

/// The number of the last message of each node on a channel.
#[derive(Default)]
pub(super) struct Counts(Vec<(u32, u64)>);

impl Counts {
    /// Records the count of a message. Returns how many messages were missed before it.
    pub(super) fn missed_before(&mut self, node: u32, count: u64) -> u64 {
        if count == 0 {
            return 0;
        }
        match self.0.iter_mut().find(|(of, _)| *of == node) {
            // A lower count begins a new series.
            Some((_, last)) => count
                .saturating_sub(1)
                .saturating_sub(std::mem::replace(last, count)),
            None => {
                // Any program that may publish to the broker can pretend to be a node.
                if self.0.len() < NODES_MAX {
                    self.0.push((node, count));
                }
                0
            }
        }
    }

    pub(super) fn forget(&mut self, node: u32) {
        self.retain(|of| of != node);
    }

    pub(super) fn retain(&mut self, is_kept: impl Fn(u32) -> bool) {
        self.0.retain(|&(of, _)| is_kept(of));
    }
}

/// The number of messages that this node has sent to each channel.
///
/// They are kept in two generations, of which the older one is dropped when the recent one is full or has reached
/// [`COUNTS_KEPT`]. So a channel keeps its count while it is used, and memory is bounded.
pub(super) struct SentCounts {
    recent: HashMap<Channel, u64>,
    older: HashMap<Channel, u64>,
    /// When the recent generation began.
    began: Instant,
}

impl SentCounts {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            recent: HashMap::new(),
            older: HashMap::new(),
            began: now,
        }
    }

    /// Counts a message. Returns its number.
    pub(super) fn next(&mut self, channel: &Channel, now: Instant) -> u64 {
        if let Some(count) = self.recent.get_mut(channel) {
            *count += 1;
            return *count;
        }
        let count = self.older.remove(channel).unwrap_or(0) + 1;
        if self.recent.len() >= CHANNELS_MAX {
            self.begin_generation(now);
        }
        self.recent.insert(channel.clone(), count);
        count
    }

    /// Drops the counts of channels that were not used for some time. Returns whether that time has passed.
    pub(super) fn on_time(&mut self, now: Instant) -> bool {
        let is_due = now.saturating_duration_since(self.began) >= COUNTS_KEPT;
        if is_due {
            self.begin_generation(now);
        }
        is_due
    }

    fn begin_generation(&mut self, now: Instant) {
        self.began = now;
        self.older = std::mem::take(&mut self.recent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_made_up_nodes_are_bounded() {
        let mut counts = Counts::default();
        assert_eq!(counts.missed_before(7, 1), 0);
        for node in 0..100_000 {
            assert_eq!(counts.missed_before(1_000 + node, 5), 0);
        }
        assert_eq!(counts.0.len(), NODES_MAX);
        assert_eq!(counts.missed_before(7, 4), 2);
    }

    #[test]
    fn sent_counts_of_many_channels_are_bounded() {
        let now = Instant::now();
        let mut sent = SentCounts::new(now);
        for n in 0..3 * CHANNELS_MAX as u64 {
            // A channel that is used keeps its count.
            assert_eq!(sent.next(&Channel::Everyone, now), n + 1);
            assert_eq!(sent.next(&Channel::Room(n.to_string().into()), now), 1);
            assert!(sent.recent.len() + sent.older.len() <= 2 * CHANNELS_MAX);
        }
    }

    #[test]
    fn sent_count_begins_anew_after_a_long_time_without_use() {
        let mut now = Instant::now();
        let mut sent = SentCounts::new(now);
        let room = Channel::Room("a".into());
        for n in 1..10 {
            assert_eq!(sent.next(&room, now), n);
            now += COUNTS_KEPT;
            assert!(sent.on_time(now));
        }
        now += COUNTS_KEPT;
        sent.on_time(now);
        assert_eq!(sent.next(&room, now), 1);
    }
}
