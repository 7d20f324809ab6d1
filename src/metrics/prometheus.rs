//! The metrics as text for Prometheus (its text exposition format, version 0.0.4).

use std::fmt::Write as _;

use super::{DurationHistogram, Metrics, SizeHistogram};

#[cfg(test)]
mod tests;

/// One metric: its name without the prefix, its kind, what it says, and its values with the label that tells them apart.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    values: fn(&Metrics) -> Vec<(&'static str, Value)>,
}

/// A histogram: the upper bound of each bucket with the number of observations up to it, and the sum of them.
struct Buckets {
    counts: Vec<(f64, u64)>,
    sum: f64,
}

impl Buckets {
    fn of_durations(histogram: &DurationHistogram) -> Self {
        Self {
            counts: histogram.buckets().collect(),
            sum: histogram.sum().as_secs_f64(),
        }
    }

    fn of_sizes(histogram: &SizeHistogram) -> Self {
        Self {
            counts: histogram.buckets().collect(),
            sum: histogram.sum() as f64,
        }
    }

    /// The number of all observations.
    fn count(&self) -> u64 {
        self.counts.last().map_or(0, |&(_, count)| count)
    }
}

/// A metric that is a histogram.
struct HistogramFamily {
    name: &'static str,
    help: &'static str,
    buckets: fn(&Metrics) -> Buckets,
}

enum Value {
    Count(u64),
    Seconds(f64),
}

fn one(n: u64) -> Vec<(&'static str, Value)> {
    vec![("", Value::Count(n))]
}

/// All metrics, for the parts of an app: each with its value of the label `shard`.
pub(crate) fn render(parts: &[(String, Metrics)]) -> String {
    let mut text = String::with_capacity(16 << 10);
    for family in FAMILIES {
        let Family {
            name, kind, help, ..
        } = family;
        let _ = writeln!(text, "# HELP humphrey_ws_{name} {help}");
        let _ = writeln!(text, "# TYPE humphrey_ws_{name} {kind}");
        for (shard, metrics) in parts {
            for (cause, value) in (family.values)(metrics) {
                let _ = write!(text, "humphrey_ws_{name}{{shard=\"{shard}\"");
                if !cause.is_empty() {
                    let _ = write!(text, ",cause=\"{cause}\"");
                }
                let _ = match value {
                    Value::Count(n) => writeln!(text, "}} {n}"),
                    Value::Seconds(seconds) => writeln!(text, "}} {seconds}"),
                };
            }
        }
    }
    for HistogramFamily {
        name,
        help,
        buckets,
    } in HISTOGRAMS
    {
        let _ = writeln!(text, "# HELP humphrey_ws_{name} {help}");
        let _ = writeln!(text, "# TYPE humphrey_ws_{name} histogram");
        for (shard, metrics) in parts {
            let buckets = buckets(metrics);
            for (bound, count) in &buckets.counts {
                let bound = match bound.is_finite() {
                    true => bound.to_string(),
                    false => "+Inf".to_owned(),
                };
                let labels = format!("shard=\"{shard}\",le=\"{bound}\"");
                let _ = writeln!(text, "humphrey_ws_{name}_bucket{{{labels}}} {count}");
            }
            let (sum, count) = (buckets.sum, buckets.count());
            let _ = writeln!(text, "humphrey_ws_{name}_sum{{shard=\"{shard}\"}} {sum}");
            let _ = writeln!(
                text,
                "humphrey_ws_{name}_count{{shard=\"{shard}\"}} {count}"
            );
        }
    }
    text
}

const HISTOGRAMS: &[HistogramFamily] = &[
    HistogramFamily {
        name: "delivery_delay_seconds",
        help: "How long messages waited for their client until the operating system took them, in steps of 8 ms.",
        buckets: |metrics| Buckets::of_durations(&metrics.delivery_delays),
    },
    HistogramFamily {
        name: "outbox_depth_bytes",
        help: "Bytes that waited for a client, each time that its socket did not take all.",
        buckets: |metrics| Buckets::of_sizes(&metrics.outbox_depths),
    },
    HistogramFamily {
        name: "handler_duration_seconds",
        help: "How long handlers have run, once for all that one read of a connection has brought.",
        buckets: |metrics| Buckets::of_durations(&metrics.handler_durations),
    },
    HistogramFamily {
        name: "cluster_round_trip_seconds",
        help: "How long broker servers took to answer, heartbeats included.",
        buckets: |metrics| Buckets::of_durations(&metrics.cluster.round_trips),
    },
];

const FAMILIES: &[Family] = &[
    Family {
        name: "connections",
        kind: "gauge",
        help: "WebSocket connections that are open.",
        values: |metrics| one(metrics.connections),
    },
    Family {
        name: "connections_opened_total",
        kind: "counter",
        help: "WebSocket connections that were opened.",
        values: |metrics| one(metrics.connections_opened),
    },
    Family {
        name: "event_streams",
        kind: "gauge",
        help: "Clients of event streams that are being served.",
        values: |metrics| one(metrics.event_streams),
    },
    Family {
        name: "event_streams_opened_total",
        kind: "counter",
        help: "Clients of event streams that were served.",
        values: |metrics| one(metrics.event_streams_opened),
    },
    Family {
        name: "rooms",
        kind: "gauge",
        help: "Existing rooms.",
        values: |metrics| one(metrics.rooms),
    },
    Family {
        name: "room_members",
        kind: "gauge",
        help: "Connections in rooms, each once for every room that it is in.",
        values: |metrics| one(metrics.room_members),
    },
    Family {
        name: "connections_accepted_total",
        kind: "counter",
        help: "Connections of all kinds that were accepted or adopted.",
        values: |metrics| one(metrics.accepted),
    },
    Family {
        name: "connections_refused_total",
        kind: "counter",
        help: "Connections refused because of a limit, their origin or host, or the handshake handler.",
        values: |metrics| {
            let refused = &metrics.refused;
            vec![
                ("connections_max", Value::Count(refused.connections_max)),
                ("handshakes_max", Value::Count(refused.handshakes_max)),
                (
                    "peer_connections_max",
                    Value::Count(refused.peer_connections_max),
                ),
                (
                    "peer_handshakes_per_second_max",
                    Value::Count(refused.peer_handshakes_per_second_max),
                ),
                (
                    "user_connections_max",
                    Value::Count(refused.user_connections_max),
                ),
                ("origin", Value::Count(refused.origin)),
                ("host", Value::Count(refused.host)),
                ("handshake_handler", Value::Count(refused.handshake_handler)),
                ("unserved", Value::Count(refused.unserved)),
            ]
        },
    },
    Family {
        name: "handshake_failures_total",
        kind: "counter",
        help: "Requests that did not become a WebSocket, by what was wrong with them.",
        values: |metrics| {
            let failures = &metrics.handshake_failures;
            vec![
                ("malformed", Value::Count(failures.malformed)),
                ("too_large", Value::Count(failures.too_large)),
                ("timeout", Value::Count(failures.timeout)),
                ("not_an_upgrade", Value::Count(failures.not_an_upgrade)),
                ("version", Value::Count(failures.version)),
                ("key", Value::Count(failures.key)),
                ("requirements", Value::Count(failures.requirements)),
            ]
        },
    },
    Family {
        name: "accept_errors_total",
        kind: "counter",
        help: "Times that accepting failed, as when file descriptors ran out.",
        values: |metrics| one(metrics.accept_errors),
    },
    Family {
        name: "requests_total",
        kind: "counter",
        help: "HTTP requests that were handed to the mounted routes.",
        values: |metrics| one(metrics.requests),
    },
    Family {
        name: "messages_received_total",
        kind: "counter",
        help: "Messages received.",
        values: |metrics| one(metrics.messages_in),
    },
    Family {
        name: "received_bytes_total",
        kind: "counter",
        help: "Bytes received from WebSocket clients, framing included.",
        values: |metrics| one(metrics.bytes_in),
    },
    Family {
        name: "messages_sent_total",
        kind: "counter",
        help: "Messages written to sockets in full, once for each recipient.",
        values: |metrics| one(metrics.messages_out),
    },
    Family {
        name: "sent_bytes_total",
        kind: "counter",
        help: "Bytes written to WebSocket clients and event streams, framing included.",
        values: |metrics| one(metrics.bytes_out),
    },
    Family {
        name: "compression_received_bytes_total",
        kind: "counter",
        help: "Payload bytes of compressed messages received, as they came.",
        values: |metrics| one(metrics.compression.received_bytes),
    },
    Family {
        name: "compression_inflated_bytes_total",
        kind: "counter",
        help: "Bytes of compressed messages received, inflated.",
        values: |metrics| one(metrics.compression.inflated_bytes),
    },
    Family {
        name: "compression_bombs_total",
        kind: "counter",
        help: "Compressed messages that were longer than allowed when inflated.",
        values: |metrics| one(metrics.compression.bombs),
    },
    Family {
        name: "compression_messages_total",
        kind: "counter",
        help: "Messages compressed, once for all recipients.",
        values: |metrics| one(metrics.compression.compressed),
    },
    Family {
        name: "compression_sent_bytes_total",
        kind: "counter",
        help: "Bytes of compressed messages sent, once for each recipient.",
        values: |metrics| one(metrics.compression.sent_bytes),
    },
    Family {
        name: "compression_plain_bytes_total",
        kind: "counter",
        help: "Bytes that compressed messages sent would have been uncompressed.",
        values: |metrics| one(metrics.compression.plain_bytes),
    },
    Family {
        name: "compression_epochs_total",
        kind: "counter",
        help: "Times that an audience began to share a history.",
        values: |metrics| one(metrics.compression.epochs),
    },
    Family {
        name: "compression_waiting_total",
        kind: "counter",
        help: "Plain deliveries to clients that had agreed to compression and shared no history yet.",
        values: |metrics| one(metrics.compression.waiting),
    },
    Family {
        name: "tls_handshakes_total",
        kind: "counter",
        help: "Completed TLS handshakes, resumed ones included.",
        values: |metrics| one(metrics.tls.handshakes),
    },
    Family {
        name: "tls_resumed_total",
        kind: "counter",
        help: "Completed TLS handshakes that resumed an earlier session.",
        values: |metrics| one(metrics.tls.resumed),
    },
    Family {
        name: "tls_failures_total",
        kind: "counter",
        help: "TLS connections that failed, in the handshake or later.",
        values: |metrics| {
            let tls = &metrics.tls;
            vec![
                ("aborted", Value::Count(tls.aborted)),
                ("plain_http", Value::Count(tls.plain_http)),
                ("incompatible", Value::Count(tls.incompatible)),
                ("client_certificate", Value::Count(tls.client_certificates)),
                ("untrusted", Value::Count(tls.untrusted)),
                ("alert", Value::Count(tls.alerts)),
                ("malformed", Value::Count(tls.malformed)),
            ]
        },
    },
    Family {
        name: "tls_truncated_total",
        kind: "counter",
        help: "TLS connections that ended without the announcement of an end.",
        values: |metrics| one(metrics.tls.truncated),
    },
    Family {
        name: "tls_reloads_total",
        kind: "counter",
        help: "Times that a new certificate or TLS configuration was put in place.",
        values: |metrics| one(metrics.tls.reloads),
    },
    Family {
        name: "cluster_servers_connected",
        kind: "gauge",
        help: "Broker servers that this node is connected to.",
        values: |metrics| one(metrics.cluster.servers_connected),
    },
    Family {
        name: "cluster_nodes",
        kind: "gauge",
        help: "Nodes of the cluster that this node hears, itself included.",
        values: |metrics| one(metrics.cluster.nodes),
    },
    Family {
        name: "cluster_connections_total",
        kind: "counter",
        help: "Connections to broker servers that were established.",
        values: |metrics| one(metrics.cluster.connections),
    },
    Family {
        name: "cluster_silences_total",
        kind: "counter",
        help: "Connections to broker servers that were given up because heartbeats did not return.",
        values: |metrics| one(metrics.cluster.silences),
    },
    Family {
        name: "cluster_published_total",
        kind: "counter",
        help: "Messages sent to broker servers.",
        values: |metrics| one(metrics.cluster.published),
    },
    Family {
        name: "cluster_confirmed_total",
        kind: "counter",
        help: "Messages that broker servers have confirmed.",
        values: |metrics| one(metrics.cluster.confirmed),
    },
    Family {
        name: "cluster_received_total",
        kind: "counter",
        help: "Messages of other nodes that were received.",
        values: |metrics| one(metrics.cluster.received),
    },
    Family {
        name: "cluster_lost_total",
        kind: "counter",
        help: "Messages between nodes that were lost or may have been.",
        values: |metrics| {
            let cluster = &metrics.cluster;
            vec![
                ("unconfirmed", Value::Count(cluster.unconfirmed)),
                ("missed_remote", Value::Count(cluster.missed_remote)),
                ("dropped_broker", Value::Count(cluster.dropped_broker)),
                ("dropped_full", Value::Count(cluster.dropped_full)),
                ("bad_envelope", Value::Count(cluster.bad_envelopes)),
            ]
        },
    },
    Family {
        name: "cluster_history_reads_total",
        kind: "counter",
        help: "Reads of a room's history from a broker server.",
        values: |metrics| one(metrics.cluster.history_reads),
    },
    Family {
        name: "cluster_gaps_total",
        kind: "counter",
        help: "Gaps in rooms with a history, of which this node has told the members.",
        values: |metrics| {
            let cluster = &metrics.cluster;
            vec![
                ("lost", Value::Count(cluster.gaps)),
                ("server_changed", Value::Count(cluster.gaps_server_changed)),
            ]
        },
    },
    Family {
        name: "messages_dropped_total",
        kind: "counter",
        help: "Messages that were not delivered, once for each recipient that did not get them.",
        values: |metrics| {
            let dropped = &metrics.dropped;
            vec![
                ("slow_consumer", Value::Count(dropped.slow_consumer)),
                ("closed", Value::Count(dropped.closed)),
                ("no_recipient", Value::Count(dropped.no_recipient)),
                ("not_running", Value::Count(dropped.not_running)),
                ("too_large", Value::Count(dropped.too_large)),
                ("rooms_max", Value::Count(dropped.rooms_max)),
                ("keyed_refused", Value::Count(dropped.keyed_refused)),
                ("unhandled", Value::Count(dropped.unhandled)),
            ]
        },
    },
    Family {
        name: "messages_conflated_total",
        kind: "counter",
        help: "Keyed messages that a newer one of their key has replaced while they waited for a client.",
        values: |metrics| one(metrics.conflated),
    },
    Family {
        name: "calls_handled_total",
        kind: "counter",
        help: "Calls from clients that were handed to their handlers.",
        values: |metrics| one(metrics.calls.handled),
    },
    Family {
        name: "calls_unserved_total",
        kind: "counter",
        help: "Calls from clients that were not answered as they were meant to be.",
        values: |metrics| {
            let calls = &metrics.calls;
            vec![
                ("cancelled", Value::Count(calls.cancelled)),
                ("unanswered", Value::Count(calls.unanswered)),
                ("unknown", Value::Count(calls.unknown)),
                ("refused", Value::Count(calls.refused)),
            ]
        },
    },
    Family {
        name: "notifications_handled_total",
        kind: "counter",
        help: "Notifications from clients that were handed to their handlers.",
        values: |metrics| one(metrics.calls.notifications_handled),
    },
    Family {
        name: "notifications_unknown_total",
        kind: "counter",
        help: "Notifications from clients without a handler.",
        values: |metrics| one(metrics.calls.notifications_unknown),
    },
    Family {
        name: "connections_disconnected_total",
        kind: "counter",
        help: "Clients that were disconnected for what they did, or did not do.",
        values: |metrics| {
            vec![
                ("slow_consumer", Value::Count(metrics.slow_consumers)),
                ("heartbeat", Value::Count(metrics.heartbeat_timeouts)),
                ("protocol_error", Value::Count(metrics.protocol_errors)),
                (
                    "unfinished_message",
                    Value::Count(metrics.unfinished_messages),
                ),
                ("expired", Value::Count(metrics.expired)),
                ("over_rate", Value::Count(metrics.closed_over_rate)),
            ]
        },
    },
    Family {
        name: "reads_delayed_total",
        kind: "counter",
        help: "Times that reading from a client was delayed because it had reached a rate limit.",
        values: |metrics| one(metrics.reads_delayed),
    },
    Family {
        name: "outbox_peak_bytes",
        kind: "gauge",
        help: "The most bytes that ever waited for one client.",
        values: |metrics| one(metrics.outbox_bytes_peak),
    },
    Family {
        name: "mailbox_peak_bytes",
        kind: "gauge",
        help: "The most bytes that were ever in the shard's mailbox.",
        values: |metrics| one(metrics.mailbox_bytes_peak),
    },
    Family {
        name: "paced_seconds_total",
        kind: "counter",
        help: "Time for which producers were delayed by slow consumers.",
        values: |metrics| vec![("", Value::Seconds(metrics.paced.as_secs_f64()))],
    },
    Family {
        name: "handler_runs_total",
        kind: "counter",
        help: "Times that handlers were run, once for all that one read of a connection has brought.",
        values: |metrics| one(metrics.handler_runs),
    },
    Family {
        name: "handler_seconds_total",
        kind: "counter",
        help: "How long handlers have run, that of all threads together.",
        values: |metrics| vec![("", Value::Seconds(metrics.handler_time.as_secs_f64()))],
    },
    Family {
        name: "handlers_blocked",
        kind: "gauge",
        help: "Handlers that have been running for more than about a millisecond.",
        values: |metrics| one(metrics.handlers_blocked),
    },
    Family {
        name: "handlers_exhausted_total",
        kind: "counter",
        help: "Times that all handler threads were blocked while a connection waited for one.",
        values: |metrics| one(metrics.handlers_exhausted),
    },
    Family {
        name: "handler_panics_total",
        kind: "counter",
        help: "Handlers that panicked.",
        values: |metrics| one(metrics.handler_panics),
    },
];
