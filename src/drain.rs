//! How an app closes its connections before it stops.

use std::time::Duration;

/// How an app closes its connections before it stops, such as for a deploy: evenly over a time, and with a wait for each client
/// before it reconnects. See [`AsyncSender::shutdown_over`](crate::AsyncSender::shutdown_over).
///
/// A plain [`Duration`] converts into it.
///
/// ```
/// use humphrey_ws::Drain;
/// use std::time::Duration;
///
/// let drain = Drain::new(Duration::from_secs(20)).retry_after(Duration::from_millis(500));
/// assert_ne!(drain, Duration::from_secs(20).into());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    pub(crate) over: Duration,
    retry_after: Option<Duration>,
}

/// What a server that takes over needs to be found by a load balancer, or what one that replaces this needs to start.
const TAKEOVER: Duration = Duration::from_secs(1);

impl Drain {
    /// Creates a drain that closes the connections evenly over this time.
    pub const fn new(over: Duration) -> Self {
        Self {
            over,
            retry_after: None,
        }
    }

    /// Sets how long each client is told to wait before it reconnects, counted from the close of its connection.
    ///
    /// By default, it is a second for an app with `with_cluster`, whose other nodes take over. Otherwise it is a second more
    /// than the drain takes, so that this app has stopped and its successor has started when the first client comes back. If
    /// another server takes over without a cluster, a shorter wait is right. The wait is the same for each client, so
    /// that they come back as evenly as they were closed.
    #[must_use]
    pub const fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The wait that clients are told. `has_others`: other nodes take over.
    pub(crate) fn wait(self, has_others: bool) -> Duration {
        self.retry_after.unwrap_or(match has_others {
            true => TAKEOVER,
            false => self.over.saturating_add(TAKEOVER),
        })
    }
}

impl From<Duration> for Drain {
    fn from(over: Duration) -> Self {
        Self::new(over)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn wait_by_default_depends_on_who_takes_over() {
        let [over, wait] = [10, 3].map(Duration::from_secs);
        assert_eq!(Drain::from(over).wait(true), Duration::from_secs(1));
        assert_eq!(Drain::from(over).wait(false), Duration::from_secs(11));
        let chosen = Drain::new(over).retry_after(wait);
        assert_eq!([true, false].map(|others| chosen.wait(others)), [wait; 2]);
        assert_eq!(Drain::new(Duration::MAX).wait(false), Duration::MAX);
    }
}
