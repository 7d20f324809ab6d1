//! The watch: looks after handlers that take long.
//!
//! Each millisecond while handlers run, it wakes shards for what handlers have sent and then blocked on, calls
//! threads for jobs that nobody comes to, and counts the blocked. When nothing runs, it parks and costs nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::hub::Hub;
use super::pool::Pool;
use crate::report::warning;

const TICK: Duration = Duration::from_millis(1);
/// The warning about blocked handlers is not repeated more often.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Runs until the pool is closed.
pub(super) fn run(hub: &Arc<Hub>) {
    let pool = &hub.pool;
    let mut seen = Vec::new();
    let mut taken = 0;
    let mut quiet = true;
    let mut exhausted = false;
    let mut warned: Option<Instant> = None;
    loop {
        // A tick interrupts whoever has the processor, so there are none without need: a push wakes the watch again.
        if quiet && !pool.handover.park_watch() {
            return;
        }
        std::thread::sleep(TICK);
        hub.wake_deferred();
        let load = pool.handover.load();
        let blocked = pool.blocked(&mut seen);
        hub.common.handlers_blocked.set(blocked as u64);
        if load.waiting > 0 && load.taken == taken {
            Pool::call_all(hub);
        }
        let threads = pool.handover.threads_max();
        if load.waiting > 0 && blocked >= threads {
            if !exhausted {
                exhausted = true;
                hub.common.handlers_exhausted.add(1);
                if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
                    warned = Some(Instant::now());
                    warning!(
                        "all {threads} handler threads are blocked: connections with something to handle wait; \
                         make handlers quicker, or the number of handler threads larger"
                    );
                }
            }
        } else {
            exhausted = false;
        }
        taken = load.taken;
        quiet = !load.busy;
    }
}
