//! Standard input, output and error. Other processes have them open, too, and may have made them non-blocking: where there is
//! nothing to read, or no room to write, the descriptor is waited for with `poll`. Its flags are never changed.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

/// How long a message waits for room on a standard error that is non-blocking and full.
const SAY_WAIT: Duration = Duration::from_secs(1);

/// Standard input, unbuffered.
#[derive(Debug)]
pub(crate) struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        system::read_input(buffer)
    }
}

/// How much later than the error of a closed terminal its SIGHUP may be heard of.
const HANG_UP_WAIT: Duration = Duration::from_secs(1);

/// Whether an error of standard input belongs to the end of the program. A terminal that is closed can't be read any more (EIO),
/// and sends SIGHUP, which another thread may hear of a moment later: that is waited for.
pub(crate) fn hangs_up(error: &io::Error, is_stopping: impl Fn() -> bool) -> bool {
    let by = Instant::now() + HANG_UP_WAIT;
    while !is_stopping() {
        if !system::is_of_terminal(error) || Instant::now() >= by {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Standard output, unbuffered. Writes take what there is room for, and wait while there is none.
#[derive(Debug)]
pub(crate) struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        system::write_output(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to standard error, which nobody may read: an error is not worth mentioning, nor to whom.
pub(crate) fn write_error(bytes: &[u8]) {
    let _ = system::write_error(bytes, SAY_WAIT);
}

#[cfg(unix)]
mod system {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;

    /// Does something to a descriptor; where that would block, waits until it would not, at most until then.
    pub(super) fn patiently(
        descriptor: BorrowedFd<'_>,
        events: PollFlags,
        by: Option<Instant>,
        mut act: impl FnMut() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match act() {
                Err(Errno::INTR) => {}
                Err(error) if [Errno::AGAIN, Errno::WOULDBLOCK].contains(&error) => {
                    let left = by.map(|by| by.saturating_duration_since(Instant::now()));
                    if left.is_some_and(|left| left.is_zero()) {
                        return Err(error.into());
                    }
                    let left = left.and_then(|left| Timespec::try_from(left).ok());
                    match poll(&mut [PollFd::new(&descriptor, events)], left.as_ref()) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                result => return Ok(result?),
            }
        }
    }

    pub(super) fn is_of_terminal(error: &io::Error) -> bool {
        error.raw_os_error() == Some(Errno::IO.raw_os_error())
    }

    pub(super) fn read_input(buffer: &mut [u8]) -> io::Result<usize> {
        let input = io::stdin();
        let input = input.as_fd();
        patiently(input, PollFlags::IN, None, || {
            rustix::io::read(input, &mut *buffer)
        })
    }

    pub(super) fn write_output(bytes: &[u8]) -> io::Result<usize> {
        let output = io::stdout();
        let output = output.as_fd();
        patiently(output, PollFlags::OUT, None, || {
            rustix::io::write(output, bytes)
        })
    }

    pub(super) fn write_error(mut bytes: &[u8], wait: Duration) -> io::Result<()> {
        // One line at a time, also where it takes several writes.
        let error = io::stderr().lock();
        let error = error.as_fd();
        let by = Some(Instant::now() + wait);
        while !bytes.is_empty() {
            let written = patiently(error, PollFlags::OUT, by, || {
                rustix::io::write(error, bytes)
            })?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(not(unix))]
mod system {
    use std::io::{self, Read, Write};
    use std::time::Duration;

    pub(super) fn is_of_terminal(_: &io::Error) -> bool {
        false
    }

    pub(super) fn read_input(buffer: &mut [u8]) -> io::Result<usize> {
        io::stdin().lock().read(buffer)
    }

    pub(super) fn write_output(bytes: &[u8]) -> io::Result<usize> {
        let mut output = io::stdout().lock();
        let written = output.write(bytes)?;
        output.flush()?;
        Ok(written)
    }

    pub(super) fn write_error(bytes: &[u8], _: Duration) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::hangs_up;
    use super::system::patiently;
    use rustix::event::PollFlags;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    /// Two ends of which the first is non-blocking.
    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn error_of_a_closed_terminal_waits_for_its_signal() {
        let of_terminal = std::io::Error::from(rustix::io::Errno::IO);
        let of_others = std::io::Error::from(rustix::io::Errno::ISDIR);
        let asked = std::cell::Cell::new(0);
        let heard_at_last = || asked.replace(asked.get() + 1) >= 3;
        assert!(hangs_up(&of_terminal, heard_at_last));
        assert!(!hangs_up(&of_terminal, || false));
        assert!(!hangs_up(&of_others, || asked.replace(0) == 0));
        assert!(hangs_up(&of_others, || true));
    }

    #[test]
    fn empty_non_blocking_descriptor_is_waited_for() {
        let (ours, mut theirs) = pair();
        let writer = thread::spawn(move || {
            theirs.write_all(b"late").unwrap();
            theirs
        });
        let mut buffer = [0; 9];
        let read = patiently(ours.as_fd(), PollFlags::IN, None, || {
            rustix::io::read(&ours, &mut buffer)
        });
        assert_eq!((read.unwrap(), &buffer[..4]), (4, &b"late"[..]));
        drop(writer.join().unwrap());
        let read = patiently(ours.as_fd(), PollFlags::IN, None, || {
            rustix::io::read(&ours, &mut buffer)
        });
        assert_eq!(read.unwrap(), 0, "the end");
    }

    #[test]
    fn full_non_blocking_descriptor_is_waited_for_or_given_up() {
        let (ours, mut theirs) = pair();
        let write = |by| {
            patiently(ours.as_fd(), PollFlags::OUT, by, || {
                rustix::io::write(&ours, &[b'x'; 4096])
            })
        };
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        let mut written = 0;
        while let Ok(n) = write(soon()) {
            written += n;
        }
        let reader = thread::spawn(move || {
            let mut all = vec![0; written];
            theirs.read_exact(&mut all).unwrap();
            theirs
        });
        assert!(write(None).unwrap() > 0);
        drop(reader.join().unwrap());
        let error = write(None).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }
}
