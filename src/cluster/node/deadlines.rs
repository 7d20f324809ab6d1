//! What a node does when time passes: heartbeats, judging silence, and forgetting what is no longer needed.

use std::time::{Duration, Instant};

use super::{Action, HEARTBEAT_INTERVAL, Node, Published, QUEUED_MAX};
use crate::cluster::broker::{Channel, Command};
use crate::cluster::parked;
use crate::cluster::peers::SILENCE_MAX;
use crate::cluster::wire::{self, Content, Heartbeat};

/// A node that was not run for longer than this does not judge the silence of others before it has read what came.
const STANDSTILL: Duration = Duration::from_millis(250);

impl Node {
    /// Does what is due. Call it after what was received has been handled.
    pub(crate) fn on_time(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let stood_still = now.saturating_duration_since(self.now);
        self.now = now;
        if stood_still > STANDSTILL + HEARTBEAT_INTERVAL {
            // What others have sent meanwhile may not have been read yet.
            for server in &mut self.servers {
                server.echoed = (server.echoed + stood_still).min(now);
            }
            self.peers.excuse(stood_still, now);
        }
        for at in 0..self.servers.len() {
            self.judge_server(at, now, actions);
        }
        self.judge_peers(now);
        self.unsubscribe_unneeded(now, actions);
        self.parked.retry(&*self.members);
        self.read_on_time(now, actions);
        self.drop_idle_copies(now);
        self.tell_silences(now);
        self.act_later(now);
        if self.sent.on_time(now) {
            self.prune_counts();
        }
    }

    /// Drops the counts of nodes that are not known, such as those whose last messages have overtaken their last heartbeat.
    fn prune_counts(&mut self) {
        let rooms = self.rooms.values_mut().map(|room| &mut room.counts);
        for counts in rooms.chain([&mut self.everyone, &mut self.direct]) {
            counts.retain(|node| self.peers.is_known(node));
        }
    }

    fn judge_server(&mut self, at: usize, now: Instant, actions: &mut Vec<Action>) {
        if let Some(before) = now.checked_sub(QUEUED_MAX) {
            let expired = self.shared[at].outgoing.expire(before);
            self.counters.dropped_broker.add(expired as u64);
        }
        self.expire_appends(at, now);
        let server = &mut self.servers[at];
        if server.incarnation.is_none() {
            return;
        }
        if now.saturating_duration_since(server.echoed) >= SILENCE_MAX {
            self.counters.silences.add(1);
            actions.push(Action::Reconnect(at));
            return;
        }
        if server.resubscribe_at.is_some_and(|at| at <= now) {
            server.resubscribe_at = None;
            self.resubscribe(at, actions);
        }
        let server = &mut self.servers[at];
        // The last heartbeat must remain the last one.
        if server.heartbeat_due <= now && !self.is_stopping {
            server.heartbeat_due = now + HEARTBEAT_INTERVAL;
            server.sent(Published::Own, now);
            let command = self.heartbeat_command(false);
            actions.push(Action::Command(at, command));
        }
    }

    pub(super) fn heartbeat_command(&mut self, is_last: bool) -> Command {
        self.heartbeats += 1;
        let content = Content::Heartbeat(Heartbeat {
            versions: (wire::VERSION_MIN, wire::VERSION),
            is_last,
        });
        Command::Publish {
            channel: Channel::Nodes,
            envelope: content.encode().envelope(self.id, self.heartbeats),
        }
    }

    /// When [`on_time`](Self::on_time) must be called next.
    pub(crate) fn next_due(&self, now: Instant) -> Instant {
        let heartbeats = self.servers.iter().map(|server| match server.incarnation {
            // No further heartbeat is due.
            Some(_) if self.is_stopping => now + HEARTBEAT_INTERVAL,
            Some(_) => server.heartbeat_due.min(server.echoed + SILENCE_MAX),
            None => now + HEARTBEAT_INTERVAL,
        });
        let resubscribe = self.servers.iter();
        let resubscribe = resubscribe.filter_map(|server| server.resubscribe_at);
        let lingering = self.lingering.front().map(|&(at, _)| at);
        let waits = !self.parked.is_empty() || !self.waiting.is_empty();
        let parked = waits.then(|| now + parked::RETRY_INTERVAL);
        let reads = self
            .servers
            .iter()
            .filter_map(|server| server.reads.next_due());
        heartbeats
            .chain(resubscribe)
            .chain(reads)
            .chain(lingering)
            .chain(parked)
            .min()
            .unwrap_or(now + HEARTBEAT_INTERVAL)
    }
}
