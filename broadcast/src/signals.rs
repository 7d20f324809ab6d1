//! Ctrl-C and SIGTERM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// On the first of the signals, sets `stopping` and calls `stop`. A second one ends the program at once, as if it were
/// not caught, so that nothing can make the program unstoppable.
#[cfg(unix)]
pub(crate) fn on_stop(
    stopping: Arc<AtomicBool>,
    stop: impl Fn() + Send + 'static,
) -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;
    use signal_hook::iterator::Signals;

    for signal in [SIGINT, SIGTERM] {
        // In this order: on the first signal the flag is looked at before it is set.
        flag::register_conditional_shutdown(signal, 128 + signal, stopping.clone())?;
        flag::register(signal, stopping.clone())?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                stop();
            }
        })
        .map(drop)
}

/// Elsewhere the system ends the program, without a word to the clients.
#[cfg(not(unix))]
pub(crate) fn on_stop(_: Arc<AtomicBool>, _: impl Fn() + Send + 'static) -> io::Result<()> {
    Ok(())
}
