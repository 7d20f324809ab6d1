//! Writes to many sockets with one system call: an io_uring ring that is used for sends only.
//!
//! This is the one place in this crate with unsafe code. It is sound for these reasons:
//!
//! - The kernel uses a request's bytes and descriptor until the request has completed. [`Ring::write_many`] borrows
//!   both, and neither returns nor unwinds before it has seen the completion of each request that the kernel has taken.
//! - The kernel takes requests in order, and only during a submission. Requests that it has not taken when the ring
//!   fails are dropped with the ring, which is not used again.
//! - So a ring holds nothing between two calls: it may be dropped, or moved to another thread, at any time.
//!
//! Sends set `MSG_DONTWAIT`, so the kernel completes each of them at once, as a call of `send` would: nothing here
//! waits for a socket.

use std::io;
use std::os::fd::AsRawFd;
use std::process::abort;
use std::thread;

use io_uring::{IoUring, opcode, squeue, types};
use mio::net::TcpStream;
use rustix::net::SendFlags;

use super::socket::write;
use super::{Write, WriteMany};

/// The maximum number of sends per system call. A longer list takes several calls.
const ENTRIES: usize = 1024;

/// An io_uring ring. `None` if it has failed or could not be created. Writes are then made one by one.
pub(crate) struct Ring(Option<IoUring>);

/// The ring failed. The kernel has taken the first `taken` requests, and none of the others.
struct Failed {
    taken: usize,
}

impl Ring {
    /// Makes a ring.
    ///
    /// # Errors
    /// The kernel is too old (before 5.6) or forbids io_uring, as most containers do.
    pub(crate) fn new() -> io::Result<Self> {
        // When a ring is dropped, the kernel interrupts the thread that made it in whatever system call it waits in.
        // That may be the program's thread, so the ring is made by a thread that has ended by then.
        let made = thread::Builder::new()
            .spawn(|| IoUring::new(ENTRIES as u32))?
            .join();
        let ring = made.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        Ok(Self(Some(ring)))
    }

    /// Makes a ring for each of `count` shards. If one of them can't be made, all shards write one by one.
    pub(super) fn several(count: usize) -> (Vec<Self>, io::Result<()>) {
        let rings: io::Result<Vec<Self>> = (0..count).map(|_| Self::new()).collect();
        match rings {
            Ok(rings) => (rings, Ok(())),
            Err(error) => ((0..count).map(|_| Self(None)).collect(), Err(error)),
        }
    }

    /// Makes at most [`ENTRIES`] writes. Returns the index and outcome of each that was not made in full.
    fn write_chunk(&mut self, writes: &[(&TcpStream, &[u8])]) -> UnfinishedWrites {
        let mut unfinished = Vec::new();
        let taken = match &mut self.0 {
            Some(ring) if writes.len() >= Self::GATHER_MIN => {
                send_all(ring, writes, &mut unfinished).unwrap_or_else(|failed| {
                    self.0 = None;
                    failed.taken
                })
            }
            _ => 0,
        };
        for (index, (socket, bytes)) in writes.iter().enumerate().skip(taken) {
            note(index, write(socket, bytes), bytes, &mut unfinished);
        }
        // Requests complete in any order.
        unfinished.sort_unstable_by_key(|&(index, _)| index);
        unfinished
    }
}

/// Outcomes of writes that were not made in full. Most are, and take no memory here.
type UnfinishedWrites = Vec<(usize, io::Result<usize>)>;

fn note(index: usize, outcome: io::Result<usize>, bytes: &[u8], unfinished: &mut UnfinishedWrites) {
    if !matches!(outcome, Ok(n) if n == bytes.len()) {
        unfinished.push((index, outcome));
    }
}

impl WriteMany<TcpStream> for Ring {
    const GATHER_MIN: usize = 4;
    const AT_ONCE: usize = ENTRIES;

    fn write_many<'a, K: Copy, G: Copy>(
        &mut self,
        targets: &[K],
        mut write: impl FnMut(K) -> Option<Write<'a, TcpStream, G>>,
        mut outcome: impl FnMut(G, usize, io::Result<usize>, bool),
    ) {
        let mut writes = targets.iter().filter_map(|&target| write(target));
        let len_max = targets.len().min(ENTRIES);
        loop {
            let mut tags = Vec::with_capacity(len_max);
            let mut chunk = Vec::with_capacity(len_max);
            for write in writes.by_ref().take(ENTRIES) {
                tags.push(write.tag);
                chunk.push((write.transport, write.bytes));
            }
            let is_last = chunk.len() < ENTRIES;
            let mut unfinished = self.write_chunk(&chunk).into_iter().peekable();
            for (index, (tag, (_, bytes))) in tags.into_iter().zip(chunk).enumerate() {
                let result = match unfinished.next_if(|&(at, _)| at == index) {
                    Some((_, result)) => result,
                    None => Ok(bytes.len()),
                };
                outcome(tag, bytes.len(), result, false);
            }
            if is_last {
                return;
            }
        }
    }
}

/// Sends at most [`ENTRIES`] writes through an empty ring. Returns their number once all have completed.
fn send_all(
    ring: &mut IoUring,
    writes: &[(&TcpStream, &[u8])],
    unfinished: &mut UnfinishedWrites,
) -> Result<usize, Failed> {
    push(ring, writes);
    let mut left = writes.len();
    while left > 0 {
        let submitted = ring.submit_and_wait(left);
        for completion in ring.completion() {
            left -= 1;
            let index = completion.user_data() as usize;
            let outcome = usize::try_from(completion.result())
                .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
            if let Some((_, bytes)) = writes.get(index) {
                note(index, outcome, bytes, unfinished);
            }
        }
        if submitted.is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
            let untaken = ring.submission().len();
            if left > untaken {
                // A request with `MSG_DONTWAIT` completes at once. One that has not may still read the bytes that are
                // borrowed here.
                abort();
            }
            return Err(Failed {
                taken: writes.len() - untaken,
            });
        }
    }
    Ok(writes.len())
}

#[allow(unsafe_code)]
fn push(ring: &mut IoUring, writes: &[(&TcpStream, &[u8])]) {
    let flags = (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() as i32;
    let mut queue = ring.submission();
    for (index, (socket, bytes)) in writes.iter().enumerate() {
        let socket = types::Fd(socket.as_raw_fd());
        // Of a write longer than 4 GiB, only a part is sent, as by `send`.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry: squeue::Entry = opcode::Send::new(socket, bytes.as_ptr(), len)
            .flags(flags)
            .build()
            .user_data(index as u64);
        // SAFETY: bytes and descriptor are borrowed by `write_many`, which does not return or unwind until the kernel
        // has completed this request, or can no longer take it.
        if unsafe { queue.push(&entry) }.is_err() {
            // The queue has [`ENTRIES`] places, so this can't happen. Requests that were already pushed can't be taken
            // back.
            abort();
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
