//! The counters of a node's link to its cluster.

use std::sync::atomic::Ordering::Relaxed;

use crate::atomic::AtomicU64;
use crate::metrics::{ClusterMetrics, Counter, DurationCounters, DurationHistogram, Metrics};

/// The counters and gauges of a node. See [`ClusterMetrics`].
#[derive(Debug, Default)]
pub(crate) struct ClusterCounters {
    pub(crate) servers_connected: AtomicU64,
    pub(crate) nodes: AtomicU64,
    pub(crate) connections: Counter,
    pub(crate) silences: Counter,
    pub(crate) published: Counter,
    pub(crate) confirmed: Counter,
    pub(crate) unconfirmed: Counter,
    pub(crate) received: Counter,
    pub(crate) missed_remote: Counter,
    pub(crate) dropped_broker: Counter,
    pub(crate) dropped_full: Counter,
    /// Messages that came after the link had ended. They count as messages to an app that does not run.
    pub(crate) dropped_not_running: Counter,
    pub(crate) bad_envelopes: Counter,
    pub(crate) history_reads: Counter,
    pub(crate) gaps: Counter,
    pub(crate) gaps_server_changed: Counter,
    /// Only the link adds to them.
    pub(crate) round_trips: DurationCounters<1_000>,
}

impl ClusterCounters {
    pub(crate) fn add_to(&self, metrics: &mut Metrics) {
        metrics.dropped.not_running += self.dropped_not_running.get();
        let cluster = &mut metrics.cluster;
        *cluster = ClusterMetrics {
            servers_connected: self.servers_connected.load(Relaxed),
            nodes: self.nodes.load(Relaxed),
            connections: self.connections.get(),
            silences: self.silences.get(),
            published: self.published.get(),
            confirmed: self.confirmed.get(),
            unconfirmed: self.unconfirmed.get(),
            received: self.received.get(),
            missed_remote: self.missed_remote.get(),
            dropped_broker: self.dropped_broker.get(),
            dropped_full: self.dropped_full.get(),
            bad_envelopes: self.bad_envelopes.get(),
            history_reads: self.history_reads.get(),
            gaps: self.gaps.get(),
            gaps_server_changed: self.gaps_server_changed.get(),
            round_trips: DurationHistogram::default(),
        };
        self.round_trips.add_to(&mut cluster.round_trips);
    }
}
