//! The floor with its sends through an io_uring ring: one system call for all sends of a turn.
//!
//! Everything else is unchanged: readiness through epoll, and one read for each ready socket.
//!
//! This is the only place in this package with unsafe code. It relies on the following:
//!
//! - The kernel reads a request's bytes, and uses its descriptor, until the request has completed. [`Ring::send_all`]
//!   borrows both for as long as it runs, and does not return, nor unwind, before it has seen the completion of each
//!   request that it has pushed into the ring. If the ring fails meanwhile, the process aborts.
//! - So the ring is empty between two calls, and may be dropped at any time.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::abort;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::{Floor, FloorConnection};

/// Sends per system call.
const ENTRIES: u32 = 1024;

pub(super) struct Ring(IoUring);

/// One send on a borrowed socket.
struct Send<'a> {
    token: u32,
    socket: BorrowedFd<'a>,
    piece: Range<usize>,
    bytes: &'a [u8],
}

impl Ring {
    /// Fails if the kernel is too old, or io_uring is forbidden, as in most containers.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES).map_err(|error| {
            let text = format!("io_uring is unavailable, as in many containers: {error}");
            io::Error::new(error.kind(), text)
        })?;
        Ok(Self(ring))
    }

    /// Executes all sends, each to a different socket. Returns the results of those that did not send everything, by index.
    fn send_all(&mut self, sends: &[Send<'_>]) -> Vec<(usize, Result<usize, Errno>)> {
        let mut unfinished = Vec::new();
        for (first, sends) in (0..)
            .step_by(ENTRIES as usize)
            .zip(sends.chunks(ENTRIES as usize))
        {
            self.push(sends);
            let mut left = sends.len();
            while left > 0 {
                match self.0.submit_and_wait(left) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // The kernel may still use the borrowed buffers.
                    Err(_) => abort(),
                }
                for completion in self.0.completion() {
                    left -= 1;
                    let index = completion.user_data() as usize;
                    let outcome = usize::try_from(completion.result())
                        .map_err(|_| Errno::from_raw_os_error(-completion.result()));
                    if sends.get(index).map(|send| send.bytes.len()) != outcome.ok() {
                        unfinished.push((first + index, outcome));
                    }
                }
            }
        }
        unfinished
    }

    /// Pushes at most [`ENTRIES`] sends into an empty ring.
    #[allow(unsafe_code)]
    fn push(&mut self, sends: &[Send<'_>]) {
        // `DONTWAIT`: a send completes at once and never waits in the kernel for buffer space.
        let flags = (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() as i32;
        let mut queue = self.0.submission();
        for (index, send) in sends.iter().enumerate() {
            let socket = types::Fd(send.socket.as_raw_fd());
            let len = u32::try_from(send.bytes.len()).unwrap_or(u32::MAX);
            let entry: squeue::Entry = opcode::Send::new(socket, send.bytes.as_ptr(), len)
                .flags(flags)
                .build()
                .user_data(index as u64);
            // SAFETY: socket and bytes are borrowed until `send_all` returns, which waits for this to complete.
            if unsafe { queue.push(&entry) }.is_err() {
                // Cannot happen in an empty ring; if it did, requests in the ring could not be awaited safely.
                abort();
            }
        }
    }
}

impl Floor {
    /// Sends ranges of the output with one system call. Each connection may occur once only.
    pub(super) fn send_all(&mut self, due: impl IntoIterator<Item = (u32, Range<usize>)>) {
        let Some(ring) = &mut self.ring else {
            return;
        };
        let mut sends = Vec::with_capacity(self.connections.len());
        let mut behind = Vec::new();
        for (token, piece) in due {
            if let Some(Some(connection)) = self.connections.get(token as usize) {
                if connection.has_output() {
                    behind.push((token, piece));
                } else {
                    sends.push(Send {
                        token,
                        socket: connection.socket.as_fd(),
                        bytes: &self.output[piece.clone()],
                        piece,
                    });
                }
            }
        }
        let mut gone = Vec::new();
        for (at, outcome) in ring.send_all(&sends) {
            let Send { token, piece, .. } = &sends[at];
            match outcome {
                Ok(sent) => behind.push((*token, piece.start + sent..piece.end)),
                Err(Errno::AGAIN | Errno::INTR) => behind.push((*token, piece.clone())),
                Err(_) => gone.push(*token),
            }
        }
        for (token, piece) in behind {
            if let Some(Some(connection)) = self.connections.get_mut(token as usize)
                && connection.send(&self.output[piece]).is_err()
            {
                gone.push(token);
            }
        }
        for token in gone {
            self.drop_connection(token as usize);
        }
    }

    /// The open connections, which receive a fan-out.
    pub(super) fn recipients(&self) -> Vec<u32> {
        let open =
            |connection: &Option<FloorConnection>| connection.as_ref().is_some_and(|c| c.open);
        let all = (0..).zip(&self.connections);
        all.filter(|(_, connection)| open(connection))
            .map(|(token, _)| token)
            .collect()
    }

    /// Queues the replies to one read, which end the output, until the end of the turn.
    pub(super) fn queue_replies(&mut self, token: u32) {
        let start = self.replies.last().map_or(0, |(_, piece)| piece.end);
        if start < self.output.len() {
            self.replies.push((token, start..self.output.len()));
        }
    }

    /// Sends the queued replies of this turn.
    pub(super) fn send_replies(&mut self) {
        if !self.replies.is_empty() {
            let mut replies = std::mem::take(&mut self.replies);
            self.send_all(replies.drain(..));
            self.replies = replies;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn send<'a>(socket: &'a UnixStream, bytes: &'a [u8]) -> Send<'a> {
        Send {
            token: 0,
            socket: socket.as_fd(),
            piece: 0..bytes.len(),
            bytes,
        }
    }

    /// `None` if io_uring is unavailable: then there is nothing to test.
    fn ring() -> Option<Ring> {
        Ring::new().inspect_err(|error| eprintln!("{error}")).ok()
    }

    #[test]
    fn more_sends_than_ring_entries_each_arrive_once() {
        let Some(mut ring) = ring() else { return };
        // Enough sockets that no buffer fills up.
        const SOCKETS: usize = 32;
        let pairs: Vec<_> = (0..SOCKETS).map(|_| UnixStream::pair().unwrap()).collect();
        let bytes: Vec<u8> = (0..2 * ENTRIES as usize + 7)
            .map(|n| (n / SOCKETS) as u8)
            .collect();
        let sockets = pairs.iter().map(|(ours, _)| ours).cycle();
        let sends: Vec<_> = bytes
            .chunks(1)
            .zip(sockets)
            .map(|(byte, socket)| send(socket, byte))
            .collect();
        assert_eq!(ring.send_all(&sends), []);
        drop(sends);
        let sent = |n: usize| bytes.iter().skip(n).step_by(SOCKETS).copied();
        for (n, (ours, mut theirs)) in pairs.into_iter().enumerate() {
            drop(ours);
            let mut received = Vec::new();
            theirs.read_to_end(&mut received).unwrap();
            assert!(received.into_iter().eq(sent(n)), "socket {n}");
        }
    }

    #[test]
    fn unfinished_sends_are_reported_by_index() {
        let Some(mut ring) = ring() else { return };
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (full, _reader) = UnixStream::pair().unwrap();
        let (gone, closed) = UnixStream::pair().unwrap();
        drop(closed);
        let much = vec![7; 16 << 20];
        let sends = [
            send(&ours, b"a"),
            send(&full, &much),
            send(&gone, b"b"),
            send(&ours, b"c"),
        ];
        let unfinished = ring.send_all(&sends);
        let [(1, Ok(part)), (2, Err(Errno::PIPE))] = unfinished[..] else {
            panic!("{unfinished:?}");
        };
        assert!(0 < part && part < much.len());
        // A full socket accepts nothing.
        assert_eq!(
            ring.send_all(&[send(&full, b"d")]),
            [(0, Err(Errno::AGAIN))]
        );
        let mut received = [0; 2];
        (&theirs).read_exact(&mut received).unwrap();
        assert_eq!(&received, b"ac");
    }
}
