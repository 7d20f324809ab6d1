use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::metrics::{
    Calls, ClusterMetrics, CompressionMetrics, Dropped, DurationCounters, HandshakeFailures,
    Refused, SizeCounters, TlsMetrics,
};

/// A histogram of durations with so many in one bucket.
fn durations(took: Duration, count: u64) -> DurationHistogram {
    let counters = DurationCounters::<1_000>::default();
    counters.add(took, count);
    let mut histogram = DurationHistogram::default();
    counters.add_to(&mut histogram);
    histogram
}

/// Returns metrics in which every field has a different value, and their number without the histograms. It is one literal, so a new field
/// does not compile until it has a value here. The function is as long as the list of metrics.
fn distinct() -> (Metrics, usize) {
    let mut last = 1_000;
    let mut next = || {
        last += 1;
        last
    };
    let metrics = Metrics {
        connections: next(),
        connections_opened: next(),
        event_streams: next(),
        event_streams_opened: next(),
        rooms: next(),
        room_members: next(),
        accepted: next(),
        refused: Refused {
            connections_max: next(),
            handshakes_max: next(),
            peer_connections_max: next(),
            peer_handshakes_per_second_max: next(),
            user_connections_max: next(),
            origin: next(),
            host: next(),
            handshake_handler: next(),
            unserved: next(),
        },
        handshake_failures: HandshakeFailures {
            malformed: next(),
            too_large: next(),
            timeout: next(),
            not_an_upgrade: next(),
            version: next(),
            key: next(),
            requirements: next(),
        },
        accept_errors: next(),
        requests: next(),
        messages_in: next(),
        bytes_in: next(),
        messages_out: next(),
        bytes_out: next(),
        compression: CompressionMetrics {
            received_bytes: next(),
            inflated_bytes: next(),
            bombs: next(),
            compressed: next(),
            sent_bytes: next(),
            plain_bytes: next(),
            epochs: next(),
            waiting: next(),
        },
        tls: TlsMetrics {
            handshakes: next(),
            resumed: next(),
            aborted: next(),
            plain_http: next(),
            incompatible: next(),
            client_certificates: next(),
            untrusted: next(),
            alerts: next(),
            malformed: next(),
            truncated: next(),
            reloads: next(),
        },
        cluster: ClusterMetrics {
            servers_connected: next(),
            nodes: next(),
            connections: next(),
            silences: next(),
            published: next(),
            confirmed: next(),
            unconfirmed: next(),
            received: next(),
            missed_remote: next(),
            dropped_broker: next(),
            dropped_full: next(),
            bad_envelopes: next(),
            history_reads: next(),
            gaps: next(),
            gaps_server_changed: next(),
            round_trips: durations(Duration::from_millis(3), 71),
        },
        dropped: Dropped {
            slow_consumer: next(),
            closed: next(),
            no_recipient: next(),
            not_running: next(),
            too_large: next(),
            rooms_max: next(),
            keyed_refused: next(),
            unhandled: next(),
        },
        conflated: next(),
        calls: Calls {
            handled: next(),
            cancelled: next(),
            unanswered: next(),
            unknown: next(),
            refused: next(),
            notifications_handled: next(),
            notifications_unknown: next(),
        },
        slow_consumers: next(),
        heartbeat_timeouts: next(),
        protocol_errors: next(),
        unfinished_messages: next(),
        expired: next(),
        closed_over_rate: next(),
        reads_delayed: next(),
        outbox_bytes_peak: next(),
        mailbox_bytes_peak: next(),
        delivery_delays: durations(Duration::from_millis(16), 72),
        outbox_depths: {
            let counters = SizeCounters::default();
            counters.add(3_000);
            let mut histogram = SizeHistogram::default();
            counters.add_to(&mut histogram);
            histogram
        },
        paced: Duration::from_secs(next()),
        handler_runs: next(),
        handler_time: Duration::from_secs(next()),
        handler_durations: durations(Duration::from_secs(20), 73),
        handlers_blocked: next(),
        handlers_exhausted: next(),
        handler_panics: next(),
    };
    (metrics, last as usize - 1_000)
}

#[test]
fn every_metric_is_written_once_for_each_shard() {
    let (metrics, fields) = distinct();
    let text = render(&[
        ("0".to_owned(), metrics),
        ("1".to_owned(), Metrics::default()),
    ]);
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let is_of_histogram = |line: &&str| {
        HISTOGRAMS
            .iter()
            .any(|family| line["humphrey_ws_".len()..].starts_with(family.name))
    };
    let (of_histograms, samples): (Vec<&str>, Vec<&str>) =
        samples.into_iter().partition(is_of_histogram);
    // Each has 16 or 9 buckets, the one without a bound, a sum and a count.
    assert_eq!(of_histograms.len(), 2 * (3 * 19 + 12), "{text}");
    assert_eq!(samples.len(), 2 * fields, "{text}");
    let values: HashSet<&str> = samples
        .iter()
        .filter(|line| line.contains("shard=\"0\""))
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    assert_eq!(values.len(), fields, "{text}");
    let series: HashSet<&str> = samples
        .iter()
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    assert_eq!(series.len(), samples.len(), "{text}");
}

#[test]
fn histogram_has_cumulative_buckets_sum_and_count() {
    let (metrics, _) = distinct();
    let text = render(&[("0".to_owned(), metrics)]);
    for line in [
        "humphrey_ws_delivery_delay_seconds_bucket{shard=\"0\",le=\"0.01\"} 0",
        "humphrey_ws_delivery_delay_seconds_bucket{shard=\"0\",le=\"0.025\"} 72",
        "humphrey_ws_delivery_delay_seconds_bucket{shard=\"0\",le=\"+Inf\"} 72",
        "humphrey_ws_delivery_delay_seconds_sum{shard=\"0\"} 1.152",
        "humphrey_ws_delivery_delay_seconds_count{shard=\"0\"} 72",
        "humphrey_ws_outbox_depth_bytes_bucket{shard=\"0\",le=\"1024\"} 0",
        "humphrey_ws_outbox_depth_bytes_bucket{shard=\"0\",le=\"4096\"} 1",
        "humphrey_ws_outbox_depth_bytes_sum{shard=\"0\"} 3000",
        "humphrey_ws_handler_duration_seconds_bucket{shard=\"0\",le=\"10\"} 0",
        "humphrey_ws_handler_duration_seconds_bucket{shard=\"0\",le=\"+Inf\"} 73",
        "humphrey_ws_cluster_round_trip_seconds_bucket{shard=\"0\",le=\"0.0025\"} 0",
        "humphrey_ws_cluster_round_trip_seconds_bucket{shard=\"0\",le=\"0.005\"} 71",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn text_follows_the_prometheus_format() {
    let (metrics, _) = distinct();
    let text = render(&[("0".to_owned(), metrics)]);
    assert!(text.ends_with('\n'));
    let (mut family, mut kind_of_family) = ("", "");
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().unwrap();
            let rest = family.strip_prefix("humphrey_ws_").unwrap();
            assert!(
                rest.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            );
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, family);
            kind_of_family = kind;
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let name = line.split('{').next().unwrap();
            let suffix = name.strip_prefix(family).unwrap();
            match kind_of_family {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
            assert!(line[name.len()..].starts_with("{shard=\"0\""), "{line}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
