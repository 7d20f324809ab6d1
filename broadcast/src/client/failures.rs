//! What can go wrong between a client and its server, whether it can pass by itself, and what is different next time.
//!
//! [`TABLE`] is all there is: the session goes by it, the help and the guide show it (`docs/shell.md`), and tests read it.

use std::fmt::Write;

/// What has gone wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    NoAddress,
    NotReached,
    BadAddress,
    NoAnswer,
    HungUp,
    NotWebSocket,
    /// Another status than 101 has answered the handshake.
    Status(u16),
    /// `send --require-broadcast`, and the server does not hand messages on.
    NotHandedOn,
    /// The server has closed, with this code; 1005: without one.
    Closed(u16),
    Lost,
    Silent,
    Broken,
    /// This machine lacks something, such as memory or random bytes.
    System,
}

/// How to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It can pass: again after a delay that grows.
    Again,
    /// The same, but not before the server has had some time.
    Later,
    /// The server says that all is done: for `listen` the end, with exit code 0; for `send`, which has not ended, a failure.
    Ends,
    /// It can't pass: the end, with exit code 1.
    Never,
}

/// A line of the table. The first one that a failure is in counts.
#[derive(Debug)]
pub(super) struct Row {
    is: fn(Failure) -> bool,
    pub(super) what: &'static str,
    pub(super) then: Then,
    /// What is different next time, or has to be.
    pub(super) next_time: &'static str,
}

macro_rules! row {
    ($pattern:pat, $what:literal, $then:ident, $next_time:literal) => {
        Row {
            is: |failure| matches!(failure, $pattern),
            what: $what,
            then: Then::$then,
            next_time: $next_time,
        }
    };
}

use Failure::{
    BadAddress, Broken, Closed, HungUp, Lost, NoAddress, NoAnswer, NotHandedOn, NotReached,
    NotWebSocket, Silent, Status, System,
};

/// Every failure.
pub(super) const TABLE: &[Row] = &[
    row!(
        NoAddress,
        "the host name does not resolve, or the zone does not exist on this machine",
        Again,
        "the name may be registered, or the resolver reachable"
    ),
    row!(
        NotReached,
        "connection refused, no route, or no answer within 20 s",
        Again,
        "the server or the network may be back"
    ),
    row!(
        BadAddress,
        "the system cannot connect to this kind of address, such as a link-local one without a zone",
        Never,
        "nothing until the URL is corrected"
    ),
    row!(
        NoAnswer,
        "the handshake gets no answer within 20 s",
        Again,
        "the server may be less busy"
    ),
    row!(
        HungUp,
        "the server hangs up during the handshake",
        Again,
        "if subprotocols of our own were offered, the server is asked at once without them; otherwise it may be ready"
    ),
    row!(
        NotWebSocket,
        "the answer is not HTTP, or does not match the handshake (RFC 6455 §4.1)",
        Never,
        "nothing until the URL, or the proxy in between, is corrected"
    ),
    row!(
        Status(300..=399),
        "status 3xx, a redirect",
        Never,
        "nothing: redirects are not followed; use the URL that the message names"
    ),
    row!(
        Status(400),
        "status 400",
        Never,
        "if subprotocols of our own were offered, the server is asked at once without them; otherwise nothing"
    ),
    row!(
        Status(408 | 425),
        "status 408 or 425",
        Again,
        "the server may accept the same request"
    ),
    row!(
        Status(429 | 503),
        "status 429 or 503",
        Later,
        "the server has had the time that it asks for with Retry-After (at most 300 s), and at least half of --max-delay"
    ),
    row!(
        Status(501 | 505),
        "status 501 or 505",
        Never,
        "nothing until the server is changed"
    ),
    row!(
        Status(0..=99 | 500..),
        "other 5xx statuses, and invalid ones (RFC 9110 §15)",
        Again,
        "the server, or the one behind its proxy, may be back"
    ),
    row!(
        Status(_),
        "other statuses, such as 200, 401, 403, 404 and 426",
        Never,
        "nothing until the URL, --header or --subprotocol is corrected"
    ),
    row!(
        NotHandedOn,
        "with --require-broadcast, a server that does not say that it hands messages on",
        Never,
        "nothing until the server is started with --on-message broadcast"
    ),
    row!(
        Closed(1000),
        "close code 1000: the server is done",
        Ends,
        "nothing: `listen` ends with exit code 0, `send` with 1"
    ),
    row!(
        Closed(1008 | 3000 | 3003),
        "close codes 1008, 3000 and 3003: a policy, or missing rights",
        Never,
        "nothing until the request or the rights are changed"
    ),
    row!(
        Closed(1002 | 1010),
        "close codes 1002 and 1010: one side does not speak the protocol as the other does",
        Never,
        "nothing until one of the programs is changed"
    ),
    row!(
        Closed(1009),
        "close code 1009: a line is too long for the server",
        Again,
        "that line is dropped, with a message and exit code 1 in the end; the following lines are sent"
    ),
    row!(
        Closed(1013),
        "close code 1013: the server asks for time",
        Later,
        "the server has had at least half of --max-delay"
    ),
    row!(
        Closed(_),
        "other close codes, such as 1001, 1011 and 1012, or none",
        Again,
        "the server may be back"
    ),
    row!(
        Lost,
        "the connection breaks",
        Again,
        "the server or the network may be back; a line that could not be sent whole on five connections in a row is dropped, with a message and exit code 1 in the end"
    ),
    row!(
        Silent,
        "the server answers no ping (--heartbeat), or not the close frame",
        Again,
        "the server may respond again"
    ),
    row!(
        Broken,
        "the server violates the WebSocket protocol, or sends a message of more than 64 MiB",
        Again,
        "the server may send other messages"
    ),
    row!(
        System,
        "this machine lacks memory, descriptors, threads or random bytes",
        Again,
        "they may be available"
    ),
];

impl Failure {
    pub(super) fn row(self) -> &'static Row {
        let row = TABLE.iter().find(|row| (row.is)(self));
        row.expect("every failure is in the table")
    }
}

impl Row {
    fn can_pass(&self) -> &'static str {
        match self.then {
            Then::Again | Then::Later => "yes",
            Then::Ends | Then::Never => "no",
        }
    }
}

/// The table as it stands in the help.
pub(super) fn help() -> String {
    let mut help =
        "What can fail, whether that can pass by itself, and what is different at the next attempt:\n"
            .to_owned();
    for row in TABLE {
        let (what, can_pass, next_time) = (row.what, row.can_pass(), row.next_time);
        let _ = write!(
            help,
            "\n- {what}\n  passes: {can_pass}; next attempt: {next_time}"
        );
    }
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it stands in the guide.
    fn markdown() -> String {
        let mut table =
            "| failure | can it pass by itself? | what is different at the next attempt |\n|---|---|---|\n"
                .to_owned();
        for row in TABLE {
            let _ = writeln!(
                table,
                "| {} | {} | {} |",
                row.what,
                row.can_pass(),
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
    fn every_status_and_every_close_code_is_in_the_table() {
        for number in 0..=u16::MAX {
            Status(number).row();
            Closed(number).row();
        }
    }

    #[test]
    fn no_row_of_the_table_is_hidden_by_those_before_it() {
        let plain = [
            NoAddress,
            NotReached,
            BadAddress,
            NoAnswer,
            HungUp,
            NotWebSocket,
            NotHandedOn,
            Lost,
            Silent,
            Broken,
            System,
        ];
        let numbered = (0..=u16::MAX).flat_map(|n| [Status(n), Closed(n)]);
        let mut used: Vec<&str> = plain
            .into_iter()
            .chain(numbered)
            .map(|f| f.row().what)
            .collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), TABLE.len());
    }

    #[test]
    fn statuses_that_can_pass_are_tried_again() {
        for (then, statuses) in [
            (Then::Later, &[429, 503][..]),
            (Then::Again, &[408, 425, 500, 502, 504, 507, 521, 599]),
            (
                Then::Never,
                &[
                    200, 204, 301, 308, 400, 401, 403, 404, 407, 410, 421, 426, 451, 501, 505,
                ],
            ),
        ] {
            for status in statuses {
                assert_eq!(Status(*status).row().then, then, "{status}");
            }
        }
    }

    #[test]
    fn close_codes_that_can_pass_are_followed_by_another_attempt() {
        for (then, codes) in [
            (Then::Ends, &[1000][..]),
            (Then::Never, &[1002, 1008, 1010, 3000, 3003]),
            (Then::Later, &[1013]),
            (
                Then::Again,
                &[
                    1001, 1003, 1005, 1007, 1009, 1011, 1012, 1014, 3008, 4000, 4999,
                ],
            ),
        ] {
            for code in codes {
                assert_eq!(Closed(*code).row().then, then, "{code}");
            }
        }
    }
}
