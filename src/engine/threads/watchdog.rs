//! The watchdog: supervises handlers that take long.
//!
//! Each millisecond while handlers run, it wakes shards for messages that handlers have sent before they blocked, wakes
//! handler threads for jobs that no thread has taken, hands shards whose own thread is blocked to their spare thread,
//! and counts blocked handlers. When no handler runs, it parks and costs nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::handlers::pool;
use crate::engine::hub::Hub;
use crate::engine::parts::lease::Look;
use crate::engine::threads::shard::Leases;
use crate::report::limited;
use crate::user_threads::while_nonblocking;

const TICK: Duration = Duration::from_millis(1);

/// After this many ticks in which shards have run all handlers themselves, and none was long, the watchdog backs off:
/// for a quick program, a tick costs more than all other measures that keep handlers from blocking it.
const CALM_TICKS: u32 = 500;

const CALM_TICK: Duration = Duration::from_millis(4);

/// After this many ticks without a handler on a shard, the watchdog parks. Waking it costs more than a few ticks.
const QUIET_TICKS: u32 = 16;

/// Runs until the job queue is closed.
pub(crate) fn run(hub: &Arc<Hub>, leases: &Leases) {
    let port = &hub.jobs;
    let mut seen = Vec::new();
    let mut turns = vec![0; leases.len()];
    let mut taken = 0;
    let mut quiet = true;
    let mut quiet_ticks = QUIET_TICKS;
    let mut calm_ticks = 0;
    let mut exhausted = false;
    loop {
        // A tick interrupts the thread that has the processor, so there are none without need. A push wakes the
        // watchdog again.
        let is_busy = || leases.iter().any(|lease| lease.is_busy());
        if quiet && quiet_ticks >= QUIET_TICKS && !port.queue.park_watchdog(is_busy) {
            return;
        }
        let is_calm = calm_ticks >= CALM_TICKS;
        std::thread::sleep(if is_calm { CALM_TICK } else { TICK });
        hub.wake_deferred();
        let load = port.queue.load();
        let blocked_in_pool = port.blocked(&mut seen);
        let mut blocked = blocked_in_pool;
        quiet_ticks = quiet_ticks.saturating_add(1);
        for (lease, turn) in leases.iter().zip(&mut turns) {
            match lease.look(turn) {
                Look::Quiet => {}
                Look::Busy => quiet_ticks = 0,
                Look::Blocked => {
                    quiet_ticks = 0;
                    blocked += 1;
                }
            }
        }
        calm_ticks = if blocked == 0 && load.taken == taken {
            calm_ticks.saturating_add(1)
        } else {
            0
        };
        hub.common.handlers_blocked.set(blocked as u64);
        if load.waiting > 0 && load.taken == taken {
            pool::wake_for_all(hub);
        }
        let threads = port.queue.threads_max();
        if load.waiting > 0 && blocked_in_pool >= threads {
            if !exhausted {
                exhausted = true;
                hub.common.handlers_exhausted.add(1);
                // A logger that blocks must not stop the watchdog.
                while_nonblocking(|| {
                    limited!(
                        hub.logged.blocked,
                        warning,
                        "all {threads} handler threads are blocked, and connections wait for one: \
                         make the handlers quicker, or raise the number of handler threads"
                    );
                });
            }
        } else {
            exhausted = false;
        }
        taken = load.taken;
        quiet = !load.busy;
    }
}
