//! Heartbeats.

use std::time::Duration;

/// How often a silent client is pinged, and when it is disconnected.
///
/// Anything that a client sends shows that it is alive: data, pings and pongs. A client that has been silent for
/// `interval` gets a ping (RFC 6455 §5.5.2); one that has been silent for `timeout` is disconnected. A client always
/// has a ping to answer first: if `timeout` is not longer than `interval`, it counts from the ping. Both stop while the
/// engine does not read from the client because its handlers are busy, or because it has sent more than its rate allows
/// ([`OverRate::Delay`](crate::OverRate::Delay)), and while the process or the machine is paused.
///
/// The default is an interval of 5 seconds and a timeout of 10 seconds. Without a heartbeat, a client that vanishes
/// without closing, such as a phone that leaves its network, stays connected until something is sent to it.
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
    /// Creates a heartbeat with this interval and timeout.
    pub fn new(interval: Duration, timeout: Duration) -> Self {
        Self { interval, timeout }
    }

    /// Returns how long a client may be silent before it is disconnected.
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
    fn client_is_kept_until_its_first_ping_is_due_for_an_answer() {
        let ms = Duration::from_millis;
        assert_eq!(Heartbeat::new(ms(200), ms(500)).silence_max(), ms(500));
        assert_eq!(Heartbeat::new(ms(1000), ms(300)).silence_max(), ms(1300));
        assert_eq!(
            Heartbeat::new(Duration::MAX, ms(300)).silence_max(),
            Duration::MAX
        );
    }
}
