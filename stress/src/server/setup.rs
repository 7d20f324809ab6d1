//! The configuration of the server under test, which is passed to it as command-line arguments.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use humphrey_ws::ping::Heartbeat;
use humphrey_ws::{Limits, SlowConsumer};

use crate::check::{Failure, Outcome};

/// Differences from the library's defaults. Times are in milliseconds, sizes in bytes; zero keeps the default.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) address: SocketAddrV4,
    pub(crate) seed: u64,
    pub(crate) shards: usize,
    pub(crate) handler_threads: usize,
    pub(crate) policy: Policy,
    /// The directory of the server's certificate and key; `None` for a server without TLS.
    pub(crate) tls: Option<PathBuf>,
    pub(crate) heartbeat_interval: u64,
    pub(crate) heartbeat_timeout: u64,
    pub(crate) handshake_timeout: u64,
    pub(crate) write_timeout: u64,
    pub(crate) message_timeout: u64,
    pub(crate) close_timeout: u64,
    pub(crate) message_bytes_max: usize,
    pub(crate) outbox_bytes_max: usize,
    pub(crate) mailbox_bytes_max: usize,
    pub(crate) outboxes_bytes_max: usize,
    pub(crate) received_bytes_max: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) bodies_bytes_max: usize,
    pub(crate) handshakes_max: usize,
    pub(crate) connections_max: usize,
    pub(crate) messages_per_second_max: u32,
    /// The server's limit of file descriptors; zero keeps the process's limit.
    pub(crate) descriptors: u64,
    /// 1 if the server accepts compression, otherwise 0.
    pub(crate) compression: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Disconnect,
    DropNewest,
    DropOldest,
    SkipAhead,
    Pace {
        bytes_per_second_min: u64,
        patience: u64,
    },
}

impl Setup {
    /// The library's defaults, on a free port of a loopback address that clients do not connect from.
    pub(crate) fn new(seed: u64) -> Self {
        let host = 2 + (seed % 250) as u8;
        Self {
            address: SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host), 0),
            seed,
            shards: 2,
            handler_threads: 32,
            policy: Policy::Disconnect,
            tls: None,
            heartbeat_interval: 0,
            heartbeat_timeout: 0,
            handshake_timeout: 0,
            write_timeout: 0,
            message_timeout: 0,
            close_timeout: 0,
            message_bytes_max: 0,
            outbox_bytes_max: 0,
            mailbox_bytes_max: 0,
            outboxes_bytes_max: 0,
            received_bytes_max: 0,
            body_bytes_max: 0,
            bodies_bytes_max: 0,
            handshakes_max: 0,
            connections_max: 0,
            messages_per_second_max: 0,
            descriptors: 0,
            compression: 0,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        let times = [
            (self.handshake_timeout, &mut limits.handshake_timeout),
            (self.write_timeout, &mut limits.write_timeout),
            (self.message_timeout, &mut limits.message_timeout),
            (self.close_timeout, &mut limits.close_timeout),
        ];
        for (ms, limit) in times.into_iter().filter(|(ms, _)| *ms > 0) {
            *limit = Duration::from_millis(ms);
        }
        let sizes = [
            (self.message_bytes_max, &mut limits.message_bytes_max),
            (self.outbox_bytes_max, &mut limits.outbox_bytes_max),
            (self.mailbox_bytes_max, &mut limits.mailbox_bytes_max),
            (self.outboxes_bytes_max, &mut limits.outboxes_bytes_max),
            (self.received_bytes_max, &mut limits.received_bytes_max),
            (self.body_bytes_max, &mut limits.body_bytes_max),
            (self.bodies_bytes_max, &mut limits.bodies_bytes_max),
            (self.handshakes_max, &mut limits.handshakes_max),
            (self.connections_max, &mut limits.connections_max),
        ];
        for (bytes, limit) in sizes.into_iter().filter(|(bytes, _)| *bytes > 0) {
            *limit = bytes;
        }
        if self.messages_per_second_max > 0 {
            limits.messages_per_second_max = Some(self.messages_per_second_max);
        }
        limits
    }

    pub(super) fn slow_consumer(&self) -> SlowConsumer {
        match self.policy {
            Policy::Disconnect => SlowConsumer::Disconnect,
            Policy::DropNewest => SlowConsumer::DropNewest,
            Policy::DropOldest => SlowConsumer::DropOldest,
            Policy::SkipAhead => SlowConsumer::SkipAhead,
            Policy::Pace {
                bytes_per_second_min,
                patience,
            } => SlowConsumer::Pace {
                bytes_per_second_min,
                patience: Duration::from_millis(patience),
            },
        }
    }

    pub(super) fn heartbeat(&self) -> Option<Heartbeat> {
        (self.heartbeat_interval > 0).then(|| {
            Heartbeat::new(
                Duration::from_millis(self.heartbeat_interval),
                Duration::from_millis(self.heartbeat_timeout),
            )
        })
    }

    pub(super) fn to_args(&self) -> Vec<String> {
        let (policy, rate, patience) = match self.policy {
            Policy::Disconnect => ("disconnect", 0, 0),
            Policy::DropNewest => ("drop-newest", 0, 0),
            Policy::DropOldest => ("drop-oldest", 0, 0),
            Policy::SkipAhead => ("skip-ahead", 0, 0),
            Policy::Pace {
                bytes_per_second_min,
                patience,
            } => ("pace", bytes_per_second_min, patience),
        };
        let tls = self
            .tls
            .as_ref()
            .map(|directory| directory.to_string_lossy());
        let mut args = vec![
            self.address.to_string(),
            tls.unwrap_or_default().into_owned(),
            policy.to_owned(),
            rate.to_string(),
            patience.to_string(),
        ];
        args.extend(self.numbers().map(|number| number.to_string()));
        args
    }

    fn numbers(&self) -> [u64; 21] {
        [
            self.seed,
            self.shards as u64,
            self.handler_threads as u64,
            self.heartbeat_interval,
            self.heartbeat_timeout,
            self.handshake_timeout,
            self.write_timeout,
            self.message_timeout,
            self.close_timeout,
            self.message_bytes_max as u64,
            self.outbox_bytes_max as u64,
            self.mailbox_bytes_max as u64,
            self.outboxes_bytes_max as u64,
            self.received_bytes_max as u64,
            self.body_bytes_max as u64,
            self.bodies_bytes_max as u64,
            self.handshakes_max as u64,
            self.connections_max as u64,
            self.messages_per_second_max.into(),
            self.descriptors,
            self.compression,
        ]
    }

    pub(super) fn from_args(args: &mut impl Iterator<Item = String>) -> Outcome<Self> {
        let address = next(args)?;
        let tls: String = next(args)?;
        let policy: String = next(args)?;
        let bytes_per_second_min = next(args)?;
        let patience = next(args)?;
        let policy = match policy.as_str() {
            "disconnect" => Policy::Disconnect,
            "drop-newest" => Policy::DropNewest,
            "drop-oldest" => Policy::DropOldest,
            "skip-ahead" => Policy::SkipAhead,
            "pace" => Policy::Pace {
                bytes_per_second_min,
                patience,
            },
            other => return Err(Failure::new(format!("unknown policy {other}"))),
        };
        Ok(Self {
            address,
            tls: (!tls.is_empty()).then(|| tls.into()),
            policy,
            seed: next(args)?,
            shards: next(args)?,
            handler_threads: next(args)?,
            heartbeat_interval: next(args)?,
            heartbeat_timeout: next(args)?,
            handshake_timeout: next(args)?,
            write_timeout: next(args)?,
            message_timeout: next(args)?,
            close_timeout: next(args)?,
            message_bytes_max: next(args)?,
            outbox_bytes_max: next(args)?,
            mailbox_bytes_max: next(args)?,
            outboxes_bytes_max: next(args)?,
            received_bytes_max: next(args)?,
            body_bytes_max: next(args)?,
            bodies_bytes_max: next(args)?,
            handshakes_max: next(args)?,
            connections_max: next(args)?,
            messages_per_second_max: next(args)?,
            descriptors: next(args)?,
            compression: next(args)?,
        })
    }
}

/// Parses the next argument, or the next word of a command.
pub(crate) fn next<T: FromStr>(words: &mut impl Iterator<Item = impl AsRef<str>>) -> Outcome<T> {
    let word = words.next();
    let word = word.as_ref().map_or("", |word| word.as_ref());
    word.parse()
        .map_err(|_| Failure::new(format!("unexpected argument {word:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setup_survives_the_command_line_round_trip() {
        let setup = Setup {
            policy: Policy::Pace {
                bytes_per_second_min: 7,
                patience: 8,
            },
            tls: Some("a directory".into()),
            heartbeat_timeout: 9,
            outbox_bytes_max: 10,
            messages_per_second_max: 13,
            descriptors: 11,
            compression: 1,
            ..Setup::new(12)
        };
        let arrived = Setup::from_args(&mut setup.to_args().into_iter()).unwrap();
        assert_eq!(format!("{setup:?}"), format!("{arrived:?}"));
    }
}
