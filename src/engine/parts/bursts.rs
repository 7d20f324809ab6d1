//! Whether the threads that wake a shard usually go on sending.
//!
//! Where both share a CPU, a shard often runs as soon as the first message of a burst has woken it, before its producer sends
//! the second. The shard then writes the burst to each recipient twice. After that has happened, it yields the CPU when it is
//! woken, as long as it finds several messages then. So it does not yield for lone messages.

#[derive(Debug, Default)]
pub(crate) struct Bursts {
    /// Whether to yield at the next wake-up.
    is_expected: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Awake,
    /// Woken by another thread, and has not looked into the mailbox.
    Woken,
    /// Woken for one message, which it delivers in this turn.
    TookOne,
}

impl Bursts {
    /// Records that another thread has woken the shard. Returns whether it should yield the CPU before it takes what there is.
    pub(crate) fn woken(&mut self) -> bool {
        self.stage = Stage::Woken;
        self.is_expected
    }

    /// Records how many messages the shard has taken from its mailbox.
    pub(crate) fn took(&mut self, messages: usize) {
        self.stage = match self.stage {
            // A control message has woken it.
            Stage::Woken if messages == 0 => Stage::Awake,
            // It has yielded, perhaps in vain.
            Stage::Woken if self.is_expected => {
                self.is_expected = messages > 1;
                Stage::Awake
            }
            Stage::Woken if messages == 1 => Stage::TookOne,
            Stage::TookOne => {
                self.is_expected = messages > 0;
                Stage::Awake
            }
            Stage::Woken => Stage::Awake,
            Stage::Awake => Stage::Awake,
        };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Takes these numbers of messages in the turns after a wake-up. Returns whether the shard yielded.
    fn wake(bursts: &mut Bursts, turns: &[usize]) -> bool {
        let yields = bursts.woken();
        turns.iter().for_each(|&messages| bursts.took(messages));
        yields
    }

    #[test]
    fn shard_yields_after_a_burst_was_split() {
        let mut bursts = Bursts::default();
        assert!(!wake(&mut bursts, &[1, 15, 0]));
        for _ in 0..3 {
            assert!(wake(&mut bursts, &[16, 0]));
        }
        assert!(wake(&mut bursts, &[0]), "a control message");
        assert!(wake(&mut bursts, &[1, 0]), "the burst is over");
        assert!(!wake(&mut bursts, &[1, 0]));
    }

    #[test]
    fn shard_does_not_yield_for_lone_messages() {
        let mut bursts = Bursts::default();
        for _ in 0..10 {
            assert!(!wake(&mut bursts, &[1, 0, 0]));
            assert!(!wake(&mut bursts, &[0, 0]));
        }
    }

    #[test]
    fn shard_does_not_yield_for_bursts_that_arrive_whole() {
        let mut bursts = Bursts::default();
        for _ in 0..10 {
            assert!(!wake(&mut bursts, &[16, 16, 1, 3]));
        }
    }

    #[test]
    fn useless_yields_are_at_most_every_second_wake_up() {
        // Each second message comes while the first is written.
        let mut bursts = Bursts::default();
        let yields: Vec<bool> = (0..4).map(|_| wake(&mut bursts, &[1, 1])).collect();
        assert_eq!(yields, [false, true, false, true]);
    }
}
