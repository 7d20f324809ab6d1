//! Standard input, output and error. Other processes may share them and may have made them non-blocking: reads and
//! writes that would block wait with `poll`, and the flags of the descriptors are never changed.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

/// How long a diagnostic waits for room on a non-blocking standard error that is full.
const STDERR_WAIT: Duration = Duration::from_secs(1);

/// Standard input, unbuffered.
#[derive(Debug)]
pub(crate) struct StandardInput;

impl Read for StandardInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        system::read_input(buffer)
    }
}

/// How long after the read error of a closed terminal its SIGHUP may arrive.
const SIGHUP_WAIT: Duration = Duration::from_secs(1);

/// Whether a read error of standard input is part of the end of the program. Reading a closed terminal fails with EIO,
/// and its SIGHUP may reach another thread a moment later: this waits for it.
pub(crate) fn is_hangup(error: &io::Error, is_stopping: impl Fn() -> bool) -> bool {
    let by = Instant::now() + SIGHUP_WAIT;
    while !is_stopping() {
        if !system::is_terminal_error(error) || Instant::now() >= by {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Standard output, unbuffered. Writes are partial, and block while there is no room.
#[derive(Debug)]
pub(crate) struct StandardOutput;

impl Write for StandardOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        system::write_output(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether standard output is a pipe or a socket, so that another program reads it.
pub(crate) fn is_output_piped() -> bool {
    system::is_output_piped()
}

/// Writes to standard error. Errors are ignored: there is nowhere to report them.
pub(crate) fn write_error(bytes: &[u8]) {
    let _ = system::write_error(bytes, STDERR_WAIT);
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::fs::FileTypeExt;
    use std::time::{Duration, Instant};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;

    /// Calls `act`; while that would block, waits for the descriptor, at most until `by`.
    pub(super) fn retry_when_ready(
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

    pub(super) fn is_terminal_error(error: &io::Error) -> bool {
        error.raw_os_error() == Some(Errno::IO.raw_os_error())
    }

    pub(super) fn is_output_piped() -> bool {
        let output = io::stdout().as_fd().try_clone_to_owned();
        let metadata = output.and_then(|output| File::from(output).metadata());
        metadata.is_ok_and(|metadata| {
            let file_type = metadata.file_type();
            file_type.is_fifo() || file_type.is_socket()
        })
    }

    pub(super) fn read_input(buffer: &mut [u8]) -> io::Result<usize> {
        let input = io::stdin();
        let input = input.as_fd();
        retry_when_ready(input, PollFlags::IN, None, || {
            rustix::io::read(input, &mut *buffer)
        })
    }

    pub(super) fn write_output(bytes: &[u8]) -> io::Result<usize> {
        let output = io::stdout();
        let output = output.as_fd();
        retry_when_ready(output, PollFlags::OUT, None, || {
            rustix::io::write(output, bytes)
        })
    }

    pub(super) fn write_error(mut bytes: &[u8], wait: Duration) -> io::Result<()> {
        // Holds the lock, so that lines are not mixed even if one takes several writes.
        let error = io::stderr().lock();
        let error = error.as_fd();
        let by = Some(Instant::now() + wait);
        while !bytes.is_empty() {
            let written = retry_when_ready(error, PollFlags::OUT, by, || {
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

    pub(super) fn is_terminal_error(_: &io::Error) -> bool {
        false
    }

    /// Without a terminal that shows progress, it does not matter.
    pub(super) fn is_output_piped() -> bool {
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
    use super::is_hangup;
    use super::system::retry_when_ready;
    use rustix::event::PollFlags;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::{Duration, Instant};

    /// A connected pair of which the first is non-blocking.
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
        let stops_at_the_third_check = || asked.replace(asked.get() + 1) >= 3;
        assert!(is_hangup(&of_terminal, stops_at_the_third_check));
        assert!(!is_hangup(&of_terminal, || false));
        assert!(!is_hangup(&of_others, || asked.replace(0) == 0));
        assert!(is_hangup(&of_others, || true));
    }

    #[test]
    fn empty_non_blocking_descriptor_is_waited_for() {
        let (ours, mut theirs) = pair();
        let writer = thread::spawn(move || {
            theirs.write_all(b"late").unwrap();
            theirs
        });
        let mut buffer = [0; 9];
        let read = retry_when_ready(ours.as_fd(), PollFlags::IN, None, || {
            rustix::io::read(&ours, &mut buffer)
        });
        assert_eq!((read.unwrap(), &buffer[..4]), (4, &b"late"[..]));
        drop(writer.join().unwrap());
        let read = retry_when_ready(ours.as_fd(), PollFlags::IN, None, || {
            rustix::io::read(&ours, &mut buffer)
        });
        assert_eq!(read.unwrap(), 0, "the end");
    }

    #[test]
    fn full_non_blocking_descriptor_is_waited_for_or_given_up() {
        let (ours, mut theirs) = pair();
        let write = |by| {
            retry_when_ready(ours.as_fd(), PollFlags::OUT, by, || {
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
