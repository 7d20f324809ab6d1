//! Heartbeats.

use std::time::Duration;

/// How often a silent client is pinged, and when it counts as gone.
///
/// Anything that a client sends shows that it lives: data, pings and pongs alike. A client that has been silent for
/// `interval` is sent a ping (RFC 6455 §5.5.2); one that has been silent for `timeout` is disconnected. It always has
/// a ping to answer first: where `timeout` is not longer than `interval`, it counts from the ping. While the engine
/// itself does not read from a client (its handlers are busy), both stand still, and so they do while the process is stopped or
/// its machine is paused.
///
/// The default is an interval of 5 seconds and a timeout of 10 seconds. Without a heartbeat a client that vanishes
/// without a word, as a phone does that leaves its network, stays connected until something is sent to it.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, ping::Heartbeat};
/// use std::time::Duration;
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_heartbeat(Heartbeat::new(Duration::from_secs(20), Duration::from_secs(30)));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Heartbeat {
    /// Creates a heartbeat.
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Self { interval, timeout }
    }

    /// How long a client may be silent before it counts as gone.
    pub(crate) fn silence_max(&self) -> Duration {
        if self.timeout > self.interval {
            self.timeout
        } else {
            self.interval.saturating_add(self.timeout)
        }
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new(Duration::from_secs(5), Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_dropped_before_the_first_ping_could_be_answered() {
        let ms = Duration::from_millis;
        assert_eq!(Heartbeat::new(ms(200), ms(500)).silence_max(), ms(500));
        assert_eq!(Heartbeat::new(ms(1000), ms(300)).silence_max(), ms(1300));
        assert_eq!(
            Heartbeat::new(Duration::MAX, ms(300)).silence_max(),
            Duration::MAX
        );
    }
}
