//! Servers that can be measured, and the work that a server and its client do.

use super::peers::Peer;
use crate::args::Job;
use crate::floor::FloorMode;
use crate::load::{Plan, Rooms};
use crate::subject::HandlerDelay;

/// Payload bytes of a message, unless a scenario says otherwise.
pub(super) const SIZE: usize = 32;

/// A server that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ServerKind {
    Floor(FloorMode),
    Subject(SubjectVariant),
    /// `humphrey-broadcast`, which keeps its default history, or none.
    Program {
        keeps_history: bool,
    },
    Peer(&'static Peer),
}

/// The configuration of humphrey_ws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SubjectVariant {
    pub(super) shards: usize,
    /// Whether handlers run on the worker pool only, never on a shard's thread.
    pub(super) pool: bool,
    /// Whether echo handlers borrow their stream.
    pub(super) borrowing: bool,
    /// Whether it writes through io_uring, which needs a separate build of this program.
    pub(super) ring: bool,
}

impl SubjectVariant {
    /// The defaults, but with one shard.
    pub(super) const USUAL: Self = Self {
        shards: 1,
        pool: false,
        borrowing: false,
        ring: false,
    };
}

impl ServerKind {
    pub(super) const FLOOR: Self = Self::Floor(FloorMode::Single);
    pub(super) const SUBJECT: Self = Self::Subject(SubjectVariant::USUAL);

    pub(super) fn is_program(self) -> bool {
        matches!(self, Self::Program { .. })
    }

    pub(super) fn is_ring_build(self) -> bool {
        matches!(self, Self::Subject(SubjectVariant { ring: true, .. }))
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Floor(FloorMode::Single) => "floor".into(),
            Self::Floor(FloorMode::Joined) => "floor, joined".into(),
            Self::Floor(FloorMode::Ring) => "floor, ring".into(),
            Self::Floor(FloorMode::TwoThreads) => "floor, 2 threads".into(),
            Self::Subject(SubjectVariant {
                shards,
                pool,
                borrowing,
                ring,
            }) => {
                let shards = match shards {
                    1 => String::new(),
                    n => format!(", {n} shards"),
                };
                let pool = if pool { ", pool" } else { "" };
                let ring = if ring { ", io_uring" } else { "" };
                let borrowing = if borrowing { ", borrowing" } else { "" };
                format!("humphrey_ws{shards}{pool}{borrowing}{ring}")
            }
            Self::Program {
                keeps_history: false,
            } => "humphrey-broadcast".into(),
            Self::Program {
                keeps_history: true,
            } => "humphrey-broadcast, default history".into(),
            Self::Peer(peer) => peer.name.into(),
        }
    }

    /// The arguments that make this program run as that server.
    pub(super) fn arguments(self, work: &Workload) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut put = |all: &[&str]| args.extend(all.iter().map(|arg| (*arg).to_owned()));
        match self {
            Self::Floor(mode) => {
                put(&["floor", work.job.name()]);
                match mode {
                    FloorMode::Single => {}
                    FloorMode::Joined => put(&["--joined"]),
                    FloorMode::Ring => put(&["--ring"]),
                    FloorMode::TwoThreads => put(&["--two-threads"]),
                }
            }
            Self::Subject(SubjectVariant {
                shards,
                pool,
                borrowing,
                ring,
            }) => {
                put(&["subject", work.job.name(), "--shards", &shards.to_string()]);
                if pool {
                    put(&["--pool"]);
                }
                if borrowing {
                    put(&["--borrowing"]);
                }
                if ring {
                    put(&["--ring"]);
                }
                if let Some(delay) = work.delay {
                    put(&["--micros", &delay.micros.to_string()]);
                    put(&["--one-in", &delay.one_in.to_string()]);
                    if delay.works {
                        put(&["--works"]);
                    }
                }
            }
            Self::Program { .. } | Self::Peer(_) => {}
        }
        args
    }
}

/// The work of a server and its load client.
#[derive(Clone, Copy)]
pub(super) struct Workload {
    pub(super) job: Job,
    pub(super) clients: usize,
    pub(super) window: usize,
    pub(super) size: usize,
    pub(super) rooms: Rooms,
    pub(super) stalled: usize,
    pub(super) blockers: usize,
    pub(super) delay: Option<HandlerDelay>,
}

impl Workload {
    pub(super) const NONE: Self = Self {
        job: Job::Echo,
        clients: 1,
        window: 1,
        size: SIZE,
        rooms: Rooms {
            count: 0,
            first: 0,
            members: 0,
            together: false,
            visitors: 0,
        },
        stalled: 0,
        blockers: 0,
        delay: None,
    };

    /// The plan of the load client. A quick run has a tenth of the rooms or their members.
    pub(super) fn plan(&self, quick: bool, sleep: bool) -> Plan {
        let (mut clients, mut rooms) = (self.clients, self.rooms);
        if quick && rooms.count > 0 {
            clients /= 10;
            match rooms.count {
                1 => rooms.members /= 10,
                _ => rooms.count /= 10,
            }
        }
        Plan {
            job: self.job,
            clients,
            rooms,
            earlier: 0,
            window: self.window,
            size: self.size,
            stalled: self.stalled,
            blockers: self.blockers,
            sleep,
        }
    }

    /// Number of messages in flight.
    pub(super) fn in_flight(&self) -> u64 {
        let publishers = if self.job.is_echo() { self.clients } else { 1 };
        (publishers * self.window) as u64
    }
}
