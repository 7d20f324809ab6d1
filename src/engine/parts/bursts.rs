//! Whether the threads that wake a shard usually go on sending.
//!
//! Where both share a CPU, a shard often runs as soon as the first message of a burst has woken it, before its producer sends
//! the second. The shard then writes the burst to each recipient twice. After that has happened, it yields the CPU when it is
//! woken, until a few yields in a row have found no burst, or one has taken long. So it does not yield for lone messages.

use std::time::{Duration, Instant};

/// How many yields in a row may find no burst.
const VAIN_YIELDS_MAX: u8 = 4;

/// A yield that takes longer gave the CPU to other work than the rest of a burst.
const LONG_YIELD: Duration = Duration::from_millis(1);

/// The shortest and the longest pause without yields after a long one. A pause that follows soon is twice as long.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Bursts {
    /// How many more yields may be in vain. 0: no bursts are expected.
    yields_left: u8,
    stage: Stage,
    /// The end of the last pause, and its length.
    paused_until: Option<Instant>,
    pause: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Awake,
    /// Woken by another thread, and has not looked into the mailbox.
    Woken,
    /// Has yielded, and has not looked into the mailbox.
    Yielded,
    /// Woken for one message, which it delivers in this turn.
    TookOne,
}

impl Bursts {
    /// Records that another thread has woken the shard. Returns whether it should yield the CPU before it takes what there is.
    pub(crate) fn woken(&mut self) -> bool {
        self.stage = match self.yields_left {
            0 => Stage::Woken,
            _ => Stage::Yielded,
        };
        self.yields_left > 0
    }

    /// Records a yield.
    pub(crate) fn yielded(&mut self, from: Instant, until: Instant) {
        if until.saturating_duration_since(from) < LONG_YIELD {
            return;
        }
        let is_soon = |end: Instant| from.saturating_duration_since(end) < self.pause;
        self.pause = match self.paused_until {
            Some(end) if is_soon(end) => (self.pause * 2).min(PAUSE_MAX),
            _ => PAUSE_MIN,
        };
        self.paused_until = Some(until + self.pause);
        (self.yields_left, self.stage) = (0, Stage::Awake);
    }

    /// Records how many messages the shard has taken from its mailbox.
    pub(crate) fn took(&mut self, messages: usize, now: Instant) {
        let was = std::mem::replace(&mut self.stage, Stage::Awake);
        match was {
            Stage::Woken if messages == 1 => self.stage = Stage::TookOne,
            Stage::Yielded if messages > 1 => self.yields_left = VAIN_YIELDS_MAX,
            Stage::Yielded => self.yields_left -= 1,
            // The rest of the burst.
            Stage::TookOne if messages > 0 && self.paused_until.is_none_or(|end| now >= end) => {
                self.yields_left = VAIN_YIELDS_MAX;
            }
            Stage::Woken | Stage::TookOne | Stage::Awake => {}
        }
    }

    /// Records that handlers have run on the shard's thread: what comes now may be theirs, and says nothing about producers.
    pub(crate) fn ran_handlers(&mut self) {
        self.stage = Stage::Awake;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Takes these numbers of messages in the turns after a wake-up. Returns whether the shard yielded.
    fn wake(bursts: &mut Bursts, turns: &[usize]) -> bool {
        let now = Instant::now();
        let yields = bursts.woken();
        turns
            .iter()
            .for_each(|&messages| bursts.took(messages, now));
        yields
    }

    #[test]
    fn shard_yields_after_a_burst_was_split() {
        let mut bursts = Bursts::default();
        assert!(!wake(&mut bursts, &[1, 15, 0]));
        for _ in 0..10 {
            assert!(wake(&mut bursts, &[16, 0]));
        }
        assert!(wake(&mut bursts, &[0]), "a control message");
        assert!(wake(&mut bursts, &[16, 0]));
    }

    #[test]
    fn shard_stops_to_yield_after_a_few_yields_in_vain() {
        for messages in [0, 1] {
            let mut bursts = Bursts::default();
            wake(&mut bursts, &[1, 15, 0]);
            let yields = (0..10).filter(|_| wake(&mut bursts, &[messages, 0]));
            assert_eq!(yields.count(), 4, "{messages} messages");
        }
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
    fn replies_of_handlers_are_no_rest_of_a_burst() {
        let (mut bursts, now) = (Bursts::default(), Instant::now());
        for _ in 0..10 {
            assert!(!bursts.woken());
            bursts.took(1, now);
            bursts.ran_handlers();
            bursts.took(1, now);
        }
    }

    #[test]
    fn yield_that_others_use_pauses_yields() {
        let (mut bursts, ms) = (Bursts::default(), Duration::from_millis);
        let mut now = Instant::now();
        let split = |bursts: &mut Bursts, now| {
            bursts.woken();
            bursts.took(1, now);
            bursts.took(15, now);
        };
        for pause in [1_000, 2_000, 4_000] {
            split(&mut bursts, now);
            assert!(bursts.woken());
            bursts.yielded(now, now + ms(5));
            bursts.took(16, now + ms(5));
            split(&mut bursts, now + ms(4 + pause));
            assert!(!bursts.woken(), "paused for {pause} ms");
            now += ms(5 + pause);
        }
        split(&mut bursts, now);
        assert!(bursts.woken());
        bursts.yielded(now, now + Duration::from_micros(999));
        bursts.took(16, now);
        assert!(bursts.woken());
    }
}
