//! Ctrl-C, SIGTERM, and SIGHUP: the terminal has gone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
#[cfg(unix)]
use std::{sync::atomic::Ordering, thread, time::Duration};

/// Signals that come within this time of the first one are that one, delivered twice. A person takes longer.
#[cfg(unix)]
const TWICE: Duration = Duration::from_millis(100);

/// On the first of the signals, sets `stopping` and calls `stop`. A second Ctrl-C or SIGTERM ends the program at once, as if
/// it were not caught, so that nothing can make the program unstoppable; but not right after the first one, which programs
/// such as `timeout`, that signal both their child and their process group, send twice. A second SIGHUP never does: where a
/// terminal is closed, both the system and the shell send one. Where SIGHUP is ignored from the start, as under `nohup`, it
/// stays so.
#[cfg(unix)]
pub(crate) fn on_stop(
    stopping: Arc<AtomicBool>,
    stop: impl Fn() + Send + 'static,
) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    use signal_hook::iterator::Signals;

    let impatient = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, impatient.clone())?;
        flag::register(signal, stopping.clone())?;
    }
    let mut caught = vec![SIGINT, SIGTERM];
    if !is_ignored(SIGHUP) {
        flag::register(SIGHUP, stopping)?;
        caught.push(SIGHUP);
    }
    let (mut signals, mut first) = (Signals::new(&caught)?, Signals::new(caught)?);
    // A thread of its own, lest anything that `stop` does can keep it from its task.
    thread::Builder::new()
        .name("second signal".into())
        .spawn(move || {
            if first.forever().next().is_some() {
                thread::sleep(TWICE);
                impatient.store(true, Ordering::SeqCst);
            }
        })?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                stop();
            }
        })
        .map(drop)
}

/// Whether whoever has started the program wants it not to hear of a signal. The call that tells is not safe in Rust, so
/// Linux is asked by its `/proc`; on other systems the answer is no.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal))
}

/// Reads the mask of ignored signals, in which the lowest bit is signal 1.
#[cfg(unix)]
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Elsewhere the system ends the program, without a word to the clients.
#[cfg(not(unix))]
pub(crate) fn on_stop(_: Arc<AtomicBool>, _: impl Fn() + Send + 'static) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::ignores;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        let status =
            "Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\tff\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores("", 1));
    }
}
