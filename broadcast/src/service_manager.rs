//! What the server tells systemd (`sd_notify(3)`): that it is ready, reloads or stops, and that it is alive. Without a service
//! manager, nothing happens.

#[cfg(target_os = "linux")]
mod systemd {
    use std::io;
    use std::sync::{Mutex, PoisonError};
    use std::thread;
    use std::time::{Duration, Instant};

    use humphrey_ws::AsyncSender;
    use sd_notify::NotifyState;

    use crate::diagnostics::report;

    /// What a busy machine may take longer to stop than it should.
    const MARGIN: Duration = Duration::from_secs(5);

    /// From when on the shards may end, and so not answer any more.
    static ENDS_FROM: Mutex<Option<Instant>> = Mutex::new(None);

    fn may_have_ended() -> bool {
        let ends_from = *ENDS_FROM.lock().unwrap_or_else(PoisonError::into_inner);
        ends_from.is_some_and(|from| Instant::now() >= from)
    }

    fn notify(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            report!("the service manager can't be told the state: {error}");
        }
    }

    /// The server serves clients. From now on, as long as it does, the watchdog is told so.
    pub(crate) fn ready(sender: &AsyncSender) -> io::Result<()> {
        notify(&[NotifyState::Ready]);
        let Some(interval) = sd_notify::watchdog_enabled() else {
            return Ok(());
        };
        let sender = sender.clone();
        let thread = thread::Builder::new().name("watchdog".into());
        thread
            .spawn(move || tell_alive(&sender, interval / 2))
            .map(drop)
    }

    /// Tells the watchdog, in time, that the threads that serve clients take their turns. If one of them does not, the watchdog
    /// restarts the service.
    fn tell_alive(sender: &AsyncSender, interval: Duration) {
        loop {
            // The time of a stop is the service manager's to limit. During a drain, clients are served as before.
            // The drain may end while the threads are asked.
            if may_have_ended() || sender.responds_within(interval) || may_have_ended() {
                notify(&[NotifyState::Watchdog]);
            }
            thread::sleep(interval);
        }
    }

    /// The server drains for this time, and then stops within another one. Without being told, systemd kills it after its
    /// `TimeoutStopSec=`.
    pub(crate) fn draining(drain: Duration, stop: Duration) {
        end_from(drain);
        let within = drain.saturating_add(stop).saturating_add(MARGIN);
        let extended = u32::try_from(within.as_micros()).unwrap_or(u32::MAX);
        notify(&[
            NotifyState::Stopping,
            NotifyState::ExtendTimeoutUsec(extended),
        ]);
    }

    /// The server stops.
    pub(crate) fn stopping() {
        end_from(Duration::ZERO);
        notify(&[NotifyState::Stopping]);
    }

    fn end_from(wait: Duration) {
        let from = Instant::now().checked_add(wait);
        *ENDS_FROM.lock().unwrap_or_else(PoisonError::into_inner) = from;
    }

    /// Settings are loaded again.
    #[cfg(feature = "tls")]
    pub(crate) fn reloading(load: impl FnOnce()) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        load();
        notify(&[NotifyState::Ready]);
    }
}

#[cfg(all(target_os = "linux", feature = "tls"))]
pub(crate) use self::systemd::reloading;
#[cfg(target_os = "linux")]
pub(crate) use self::systemd::{draining, ready, stopping};

#[cfg(not(target_os = "linux"))]
mod none {
    use std::io;
    use std::time::Duration;

    use humphrey_ws::AsyncSender;

    #[allow(clippy::unnecessary_wraps)] // As on Linux.
    pub(crate) fn ready(_: &AsyncSender) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn draining(_: Duration, _: Duration) {}

    pub(crate) fn stopping() {}

    #[cfg(feature = "tls")]
    pub(crate) fn reloading(load: impl FnOnce()) {
        load();
    }
}

#[cfg(all(not(target_os = "linux"), feature = "tls"))]
pub(crate) use self::none::reloading;
#[cfg(not(target_os = "linux"))]
pub(crate) use self::none::{draining, ready, stopping};
