//! Ctrl-C, SIGTERM and SIGHUP.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
#[cfg(unix)]
use std::{sync::atomic::Ordering, thread, time::Duration};

/// A signal within this time of the first one counts as a duplicate of it. A person takes longer.
#[cfg(unix)]
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// Loads settings again on SIGHUP, after which the program continues.
pub(crate) type Reload = Box<dyn Fn() + Send>;

/// Handles signals. The first one sets `stopping` and calls `stop`. With `reload`, SIGHUP calls that instead, unless the
/// program's terminal was closed.
///
/// A second Ctrl-C or SIGTERM ends the program at once with the default exit code, so that it can always be stopped. A
/// duplicate within [`DUPLICATE_WINDOW`] does not: programs such as `timeout` signal both their child and its process
/// group. A second SIGHUP never does: when a terminal closes, both the system and the shell send one. SIGHUP stays
/// ignored if it was ignored at the start, as under `nohup`.
#[cfg(unix)]
pub(crate) fn handle(
    stopping: Arc<AtomicBool>,
    stop: impl Fn() + Send + 'static,
    reload: Option<Reload>,
) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    use signal_hook::iterator::Signals;

    let exit_at_once = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, exit_at_once.clone())?;
        flag::register(signal, stopping.clone())?;
    }
    let mut caught = vec![SIGINT, SIGTERM];
    let mut ending = caught.clone();
    if !is_ignored(SIGHUP) {
        if reload.is_none() {
            flag::register(SIGHUP, stopping.clone())?;
            ending.push(SIGHUP);
        }
        caught.push(SIGHUP);
    }
    let had_terminal = has_terminal();
    let (mut signals, mut first) = (Signals::new(caught)?, Signals::new(ending)?);
    // A separate thread, since `stop` may block.
    thread::Builder::new()
        .name("second signal".into())
        .spawn(move || {
            if first.forever().next().is_some() {
                thread::sleep(DUPLICATE_WINDOW);
                exit_at_once.store(true, Ordering::SeqCst);
            }
        })?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let closed_terminal = had_terminal && !has_terminal();
                match &reload {
                    Some(reload) if signal == SIGHUP && !closed_terminal => reload(),
                    _ => {
                        stopping.store(true, Ordering::SeqCst);
                        stop();
                    }
                }
            }
        })
        .map(drop)
}

/// Whether the program has a controlling terminal. One that was closed can't be opened.
#[cfg(unix)]
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether the parent process has set a signal to be ignored. The system call for it is unsafe in Rust, so this reads
/// `/proc`; other systems than Linux report no.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, signal))
}

/// Parses the mask of ignored signals, whose lowest bit is signal 1.
#[cfg(unix)]
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// On other systems a signal ends the program without closing handshakes.
#[cfg(not(unix))]
pub(crate) fn handle(
    _: Arc<AtomicBool>,
    _: impl Fn() + Send + 'static,
    _: Option<Reload>,
) -> io::Result<()> {
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
