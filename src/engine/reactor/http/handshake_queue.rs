//! The queue of connections that wait for a request head, oldest first. If there are too many, the oldest is
//! disconnected (`Limits::handshakes_max`).

use std::collections::VecDeque;

use crate::engine::parts::id::Key;
use crate::engine::reactor::http::Http;
use crate::engine::reactor::{Core, Stage};
use crate::limits::Limits;
use crate::transport::ShardTransport;

pub(crate) struct HandshakeQueue {
    /// Connections with their numbers. Entries of connections that no longer wait, or that wait anew, are swept out now
    /// and then.
    entries: VecDeque<(u64, Key)>,
    /// The number of connections that wait.
    waiting: usize,
    /// The next number.
    seq: u64,
    /// The shard's share of the limit.
    max: usize,
}

impl HandshakeQueue {
    pub(crate) fn new(limits: &Limits, shards: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            waiting: 0,
            seq: 0,
            max: limits.handshakes_max.div_ceil(shards).max(1),
        }
    }

    /// Appends a connection that waits for a request head.
    pub(crate) fn push(&mut self, http: &mut Http, key: Key) {
        self.remove(http);
        http.handshake_seq = Some(self.seq);
        self.entries.push_back((self.seq, key));
        self.seq += 1;
        self.waiting += 1;
    }

    /// Removes a connection, which no longer waits for a request head. Its entry is swept out later.
    pub(crate) fn remove(&mut self, http: &mut Http) {
        if http.handshake_seq.take().is_some() {
            self.waiting -= 1;
        }
    }

    fn pop_over_max(&mut self) -> Option<(u64, Key)> {
        match self.waiting > self.max {
            true => self.entries.pop_front(),
            false => None,
        }
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<T: ShardTransport> Core<T> {
    /// Disconnects the oldest connections while too many wait for a request head.
    pub(crate) fn enforce_handshakes_max(&mut self) {
        while let Some((seq, key)) = self.cx.handshake_queue.pop_over_max() {
            self.with(key, |stage, cx| {
                if let Stage::Http(http) = stage
                    && http.handshake_seq == Some(seq)
                {
                    cx.shard.counters().refused_handshakes_max.add(1);
                    cx.end();
                }
            });
        }
        self.sweep_handshake_queue();
    }

    /// Removes entries of connections that no longer wait, which bounds the length of the queue.
    pub(crate) fn sweep_handshake_queue(&mut self) {
        let queue = &mut self.cx.handshake_queue;
        if queue.entries.len() <= 2 * queue.waiting + 64 {
            return;
        }
        let conns = &self.conns;
        queue.entries.retain(|&(seq, key)| {
            conns.get(key).is_some_and(
                |conn| matches!(&conn.stage, Stage::Http(http) if http.handshake_seq == Some(seq)),
            )
        });
    }
}
