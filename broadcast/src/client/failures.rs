//! The failures of a client's connection: whether each is temporary, and what changes before the next attempt.
//!
//! [`TABLE`] is the only source: the session acts on it, the help and the guide (`docs/shell.md`) show it, and tests
//! read it.

use std::fmt::Write;

/// A kind of failure.
#[cfg_attr(not(feature = "tls"), allow(dead_code))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    HostUnresolved,
    Unreachable,
    BadAddress,
    /// The server's certificate is not acceptable, or no authority can be loaded to check it.
    Certificate,
    /// The server refuses the TLS connection, or has no version of TLS in common with the client.
    TlsRefused,
    NotTls,
    TlsAborted,
    HandshakeTimeout,
    HandshakeAborted,
    NotWebSocket,
    /// The handshake was answered with this status instead of 101.
    Status(u16),
    /// With `--require-broadcast`: the server does not broadcast the client's messages.
    NotBroadcasting,
    /// The server has closed the connection with this code; 1005 stands for none.
    Closed(u16),
    ConnectionLost,
    Unresponsive,
    ProtocolViolation,
    /// This machine lacks a resource, such as memory or random bytes.
    LocalError,
}

/// The reaction to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryDecision {
    /// Retry with exponential backoff.
    Retry,
    /// Retry, but give the server time first.
    RetryLater,
    /// Retry after the time that the server has named; if it has named none, as with `Retry`.
    RetryAsTold,
    /// Retry if there was a connection before: the server may be about to be repaired. Otherwise the failure is permanent.
    RetryIfConnected,
    /// The server has ended the stream: exit code 0 for `listen`, a failure for `send`, which still has lines to send.
    Done,
    /// A permanent failure: exit with code 1.
    GiveUp,
}

/// A row of the table. The first row that matches a failure applies.
#[derive(Debug)]
pub(super) struct FailureRow {
    is: fn(Failure) -> bool,
    pub(super) description: &'static str,
    pub(super) decision: RetryDecision,
    /// What changes, or has to change, before the next attempt.
    pub(super) next_time: &'static str,
}

macro_rules! row {
    ($pattern:pat, $description:literal, $decision:ident, $next_time:literal) => {
        FailureRow {
            is: |failure| matches!(failure, $pattern),
            description: $description,
            decision: RetryDecision::$decision,
            next_time: $next_time,
        }
    };
}

use Failure::{
    BadAddress, Certificate, Closed, ConnectionLost, HandshakeAborted, HandshakeTimeout,
    HostUnresolved, LocalError, NotBroadcasting, NotTls, NotWebSocket, ProtocolViolation, Status,
    TlsAborted, TlsRefused, Unreachable, Unresponsive,
};

/// All failures.
pub(super) const TABLE: &[FailureRow] = &[
    row!(
        HostUnresolved,
        "the host name does not resolve, or the zone does not exist on this machine",
        Retry,
        "the name may be registered, or the resolver reachable"
    ),
    row!(
        Unreachable,
        "connection refused, no route, no such Unix socket, or no answer within 20 s",
        Retry,
        "the server or the network may be back"
    ),
    row!(
        BadAddress,
        "the system cannot connect to this kind of address, such as a link-local one without a zone",
        GiveUp,
        "nothing until the URL is corrected"
    ),
    row!(
        Certificate,
        "with wss://, the server's certificate has expired, is for another name, comes from an unknown authority, or is otherwise unacceptable",
        RetryIfConnected,
        "the server may have a new certificate, and --ca is read again; after a first attempt, nothing until the certificate, the URL or --ca is corrected"
    ),
    row!(
        TlsRefused,
        "with wss://, the server refuses TLS with an alert, or supports no version or cipher suite that the client does",
        RetryIfConnected,
        "the server may have other settings; after a first attempt, nothing until one of the programs is changed"
    ),
    row!(
        NotTls,
        "with wss://, the server does not speak TLS",
        GiveUp,
        "nothing until the URL is corrected"
    ),
    row!(
        TlsAborted,
        "with wss://, the server hangs up during the TLS handshake, or violates TLS",
        Retry,
        "the server may be ready"
    ),
    row!(
        HandshakeTimeout,
        "the handshake gets no answer within 20 s",
        Retry,
        "the server may be less busy"
    ),
    row!(
        HandshakeAborted,
        "the server hangs up during the handshake",
        Retry,
        "the handshake is repeated at once without the program's own subprotocols, if it offered some; otherwise the server may be ready"
    ),
    row!(
        NotWebSocket,
        "the response is not HTTP, or does not match the handshake (RFC 6455 §4.1)",
        GiveUp,
        "nothing until the URL, or the proxy in between, is corrected"
    ),
    row!(
        Status(300..=399),
        "status 3xx, a redirect",
        GiveUp,
        "nothing: redirects are not followed; use the URL that the message names"
    ),
    row!(
        Status(400),
        "status 400",
        GiveUp,
        "the handshake is repeated at once without the program's own subprotocols, if it offered some; otherwise nothing"
    ),
    row!(
        Status(401),
        "status 401: the server needs a token, or another one",
        GiveUp,
        "nothing until --token-file, or --header, has the right token"
    ),
    row!(
        Status(408 | 425),
        "status 408 or 425",
        Retry,
        "the server may accept the same request"
    ),
    row!(
        Status(429 | 503),
        "status 429 or 503",
        RetryLater,
        "the client has waited for the server's Retry-After (at most 300 s), and at least half of --max-delay"
    ),
    row!(
        Status(501 | 505),
        "status 501 or 505",
        GiveUp,
        "nothing until the server is changed"
    ),
    row!(
        Status(0..=99 | 500..),
        "other 5xx statuses, and invalid ones (RFC 9110 §15)",
        Retry,
        "the server, or the one behind its proxy, may be back"
    ),
    row!(
        Status(_),
        "other statuses, such as 200, 403, 404 and 426",
        GiveUp,
        "nothing until the URL, --header or --subprotocol is corrected"
    ),
    row!(
        NotBroadcasting,
        "with --require-broadcast, the server does not announce that it broadcasts messages",
        GiveUp,
        "nothing until the server is started with --on-message broadcast"
    ),
    row!(
        Closed(1000),
        "close code 1000: the server has ended normally",
        Done,
        "nothing: `listen` ends with exit code 0, `send` with 1"
    ),
    row!(
        Closed(1008 | 3000 | 3003),
        "close codes 1008, 3000 and 3003: a policy violation, or missing permissions",
        GiveUp,
        "nothing until the request or the permissions are changed"
    ),
    row!(
        Closed(1002 | 1010),
        "close codes 1002 and 1010: a protocol error, or a missing extension",
        GiveUp,
        "nothing until one of the programs is changed"
    ),
    row!(
        Closed(1009),
        "close code 1009: a line is too long for the server",
        Retry,
        "that line is dropped and reported, and the exit code will be 1; the following lines are sent"
    ),
    row!(
        Closed(1013),
        "close code 1013: the server is overloaded",
        RetryLater,
        "the client has waited for at least half of --max-delay"
    ),
    row!(
        Closed(1012),
        "close code 1012: the server restarts",
        RetryAsTold,
        "the client has waited for exactly the time that the close reason names (at most 300 s), if it names one; the server, or another one, may be there"
    ),
    row!(
        Closed(_),
        "other close codes, such as 1001 and 1011, or none",
        Retry,
        "the server may be back"
    ),
    row!(
        ConnectionLost,
        "the connection breaks",
        Retry,
        "the server or the network may be back; a line that was cut off on five connections in a row is dropped and reported, and the exit code will be 1"
    ),
    row!(
        Unresponsive,
        "the server does not answer a ping (--heartbeat) or the close frame",
        Retry,
        "the server may respond again"
    ),
    row!(
        ProtocolViolation,
        "the server violates the WebSocket protocol, or sends a message of more than 64 MiB",
        Retry,
        "the server may send other messages"
    ),
    row!(
        LocalError,
        "this machine lacks memory, descriptors, threads or random bytes",
        Retry,
        "they may be available"
    ),
];

impl Failure {
    pub(super) fn row(self) -> &'static FailureRow {
        let row = TABLE.iter().find(|row| (row.is)(self));
        row.expect("every failure is in the table")
    }
}

impl FailureRow {
    fn is_retried(&self) -> &'static str {
        match self.decision {
            RetryDecision::Retry | RetryDecision::RetryLater | RetryDecision::RetryAsTold => "yes",
            RetryDecision::RetryIfConnected => "only after an earlier connection",
            RetryDecision::Done | RetryDecision::GiveUp => "no",
        }
    }
}

/// Renders the table for the help.
pub(super) fn help() -> String {
    let mut help =
        "Failures, whether the client retries, and what may differ on the next attempt:\n"
            .to_owned();
    for row in TABLE {
        let (description, is_retried, next_time) =
            (row.description, row.is_retried(), row.next_time);
        let _ = write!(
            help,
            "\n  {description}\n      retried: {is_retried}; next attempt: {next_time}"
        );
    }
    help.push('\n');
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Renders the table for the guide.
    fn markdown() -> String {
        let mut table =
            "| failure | retried? | what may differ on the next attempt |\n|---|---|---|\n"
                .to_owned();
        for row in TABLE {
            let _ = writeln!(
                table,
                "| {} | {} | {} |",
                row.description,
                row.is_retried(),
                row.next_time
            );
        }
        table
    }

    #[test]
    fn guide_shows_the_table_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/shell.md");
        let guide = std::fs::read_to_string(path).unwrap();
        assert!(
            guide.contains(&markdown()),
            "docs/shell.md lacks:\n{}",
            markdown()
        );
    }

    #[test]
    fn every_status_and_close_code_is_in_the_table() {
        for number in 0..=u16::MAX {
            Status(number).row();
            Closed(number).row();
        }
    }

    #[test]
    fn no_row_is_hidden_by_earlier_rows() {
        let plain = [
            HostUnresolved,
            Unreachable,
            BadAddress,
            Certificate,
            TlsRefused,
            NotTls,
            TlsAborted,
            HandshakeTimeout,
            HandshakeAborted,
            NotWebSocket,
            NotBroadcasting,
            ConnectionLost,
            Unresponsive,
            ProtocolViolation,
            LocalError,
        ];
        let numbered = (0..=u16::MAX).flat_map(|n| [Status(n), Closed(n)]);
        let mut used: Vec<&str> = plain
            .into_iter()
            .chain(numbered)
            .map(|f| f.row().description)
            .collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), TABLE.len());
    }

    #[test]
    fn temporary_statuses_are_retried() {
        for (decision, statuses) in [
            (RetryDecision::RetryLater, &[429, 503][..]),
            (
                RetryDecision::Retry,
                &[408, 425, 500, 502, 504, 507, 521, 599],
            ),
            (
                RetryDecision::GiveUp,
                &[
                    200, 204, 301, 308, 400, 401, 403, 404, 407, 410, 421, 426, 451, 501, 505,
                ],
            ),
        ] {
            for status in statuses {
                assert_eq!(Status(*status).row().decision, decision, "{status}");
            }
        }
    }

    #[test]
    fn temporary_close_codes_are_retried() {
        for (decision, codes) in [
            (RetryDecision::Done, &[1000][..]),
            (RetryDecision::GiveUp, &[1002, 1008, 1010, 3000, 3003]),
            (RetryDecision::RetryLater, &[1013]),
            (RetryDecision::RetryAsTold, &[1012]),
            (
                RetryDecision::Retry,
                &[1001, 1003, 1005, 1007, 1009, 1011, 1014, 3008, 4000, 4999],
            ),
        ] {
            for code in codes {
                assert_eq!(Closed(*code).row().decision, decision, "{code}");
            }
        }
    }
}
