//! The progress line of the server: lines, bytes and rate of the input, and the numbers of clients and of messages that slow
//! clients have skipped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use humphrey_ws::AsyncSender;

use crate::progress::{Progress, push_count};

/// How often the numbers are looked at while lines arrive, and while none do.
const BUSY_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Shows the progress on a thread of its own until it is dropped.
pub(crate) struct ServerProgress {
    pub(crate) progress: Arc<Progress>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ServerProgress {
    /// `None` where no progress is shown: if it is `unwanted`, as with `--quiet` or where lines are typed, or if standard error is
    /// not a terminal.
    pub(crate) fn start(unwanted: bool, sender: AsyncSender) -> io::Result<Option<Self>> {
        let Some(progress) = Progress::on_stderr(unwanted).map(Arc::new) else {
            return Ok(None);
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let (shown, ends) = (progress.clone(), is_over.clone());
        let thread = thread::Builder::new()
            .name("progress".into())
            .spawn(move || {
                while !ends.load(Ordering::SeqCst) {
                    let due = shown.update(Instant::now(), |text| add_details(text, &sender));
                    thread::park_timeout(due.map_or(IDLE_INTERVAL, |_| BUSY_INTERVAL));
                }
            })?;
        Ok(Some(Self {
            progress,
            is_over,
            thread: Some(thread),
        }))
    }
}

impl Drop for ServerProgress {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

fn add_details(text: &mut String, sender: &AsyncSender) {
    let metrics = sender.metrics();
    let clients = metrics.connections + metrics.event_streams;
    text.push_str(", ");
    push_count(text, clients);
    text.push_str(if clients == 1 { " client" } else { " clients" });
    let skipped = metrics.dropped.slow_consumer;
    if skipped > 0 {
        text.push_str(", ");
        push_count(text, skipped);
        text.push_str(" skipped by slow clients");
    }
}
