//! Answering inspections: which connections are slow.
//!
//! A shard looks at all its connections for one answer, a part of them in each turn: first it ranks them, and then it
//! reports those that were selected. So the answer is a snapshot of no single instant, and no turn takes long.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::model::inspection::{ConnectionReport, Question, Selection};
use crate::engine::parts::encoding::Encoding;
use crate::engine::parts::id::Key;
use crate::engine::reactor::websocket::WebSocket;
use crate::engine::reactor::{Conn, ConnCx, Core, ShardCx, Stage};
use crate::sync::lock;
use crate::transport::ShardTransport;

/// The maximum work for inspections in one turn, in slots that are looked at: some 20 to 100 µs.
pub(crate) const WORK_PER_TURN: usize = 1_024;

/// The work of reporting a connection, without its rooms. Each room is one more.
const REPORT_WORK: usize = 8;

/// The inspections that a shard has yet to answer, in order.
#[derive(Default)]
pub(super) struct Inspections(VecDeque<Running>);

/// An inspection that is being answered.
struct Running {
    question: Box<Question>,
    step: Step,
    /// The number of connections that were looked at.
    connections: usize,
    reports: Vec<ConnectionReport>,
}

enum Step {
    /// Ranks the connections from this slot on. The heap holds the selected ones of those before, the least slow on top.
    Rank {
        next_slot: u32,
        selected: BinaryHeap<Reverse<Ranked>>,
    },
    /// Reports these connections, the last one first.
    Report(Vec<Reverse<Ranked>>),
}

/// A connection, ordered by how slow it is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked {
    lag: Duration,
    waiting_bytes: usize,
    key: Key,
}

impl Inspections {
    /// `connections`: how many the shard has.
    fn push(&mut self, question: Box<Question>, connections: usize) {
        let step = match question.selection {
            Selection::Slowest(limit) => Step::Rank {
                next_slot: 0,
                selected: BinaryHeap::with_capacity(limit.min(connections)),
            },
            Selection::One(key) => Step::Report(vec![Reverse(Ranked {
                lag: Duration::ZERO,
                waiting_bytes: 0,
                key,
            })]),
        };
        self.0.push_back(Running {
            question,
            step,
            connections: 0,
            reports: Vec::new(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Running {
    /// Looks at the connections of the next slots.
    fn rank<T: ShardTransport>(&mut self, core: &Core<T>, work: &mut usize) {
        let Selection::Slowest(limit) = self.question.selection else {
            return;
        };
        let Step::Rank {
            next_slot,
            selected,
        } = &mut self.step
        else {
            return;
        };
        for (key, conn) in core.conns.slots(*next_slot, *work) {
            let Some(ranked) = Ranked::of(key, conn, &core.cx) else {
                continue;
            };
            self.connections += 1;
            if selected.len() < limit {
                selected.push(Reverse(ranked));
            } else if let Some(mut least) = selected.peek_mut()
                && ranked > least.0
            {
                *least = Reverse(ranked);
            }
        }
        let left = core.conns.slots_len() - *next_slot;
        let looked_at = u32::try_from(*work).map_or(left, |work| work.min(left));
        *next_slot += looked_at;
        *work -= looked_at as usize;
        if *next_slot == core.conns.slots_len() {
            let selected = std::mem::take(selected).into_vec();
            self.reports.reserve_exact(selected.len());
            self.step = Step::Report(selected);
        }
    }

    /// Frees a part of what was collected for a thread that no longer waits. Returns whether that was all.
    fn discard(&mut self, work: &mut usize) -> bool {
        let freed = (*work / REPORT_WORK).min(self.reports.len());
        self.reports.truncate(self.reports.len() - freed);
        *work = match self.reports.is_empty() {
            true => work.saturating_sub(freed * REPORT_WORK),
            false => 0,
        };
        self.reports.is_empty()
    }
}

impl Ranked {
    /// `None` if the connection is no session yet, or no longer.
    fn of<T: ShardTransport>(key: Key, conn: &Conn<T>, shard: &ShardCx<T>) -> Option<Self> {
        match &conn.stage {
            Stage::WebSocket(ws) => Some(Self {
                lag: ws.outbox.age(shard.tick),
                waiting_bytes: ws.waiting_bytes(conn.socket.transport.as_ref()),
                key,
            }),
            Stage::Http(_) | Stage::Lingering(_) => None,
        }
    }
}

impl<T: ShardTransport> Core<T> {
    #[cold] // Keeps it from being inlined into each turn.
    pub(super) fn begin_inspecting(&mut self, question: Box<Question>) {
        self.inspections.push(question, self.conns.len());
    }

    /// Answers inspections, as far as the work of one turn allows.
    #[cold]
    pub(super) fn go_on_inspecting(&mut self) {
        let mut work = WORK_PER_TURN;
        while work > 0
            && let Some(mut running) = self.inspections.0.pop_front()
        {
            if !running.question.is_wanted() {
                if !running.discard(&mut work) {
                    self.inspections.0.push_front(running);
                }
                continue;
            }
            running.rank(self, &mut work);
            self.report(&mut running, &mut work);
            match &running.step {
                Step::Report(selected) if selected.is_empty() => {
                    running
                        .question
                        .answer(running.connections, running.reports);
                }
                _ => self.inspections.0.push_front(running),
            }
        }
    }

    fn report(&mut self, running: &mut Running, work: &mut usize) {
        let Step::Report(selected) = &mut running.step else {
            return;
        };
        while *work > 0
            && let Some(Reverse(ranked)) = selected.pop()
        {
            // It may have ended since it was ranked.
            if let Some(report) = self.with_ws(ranked.key, |ws, cx| ws.report(cx)) {
                *work = work.saturating_sub(REPORT_WORK + report.rooms.len());
                running.reports.push(report);
            } else {
                *work -= 1;
            }
        }
        if let Selection::One(_) = running.question.selection {
            running.connections = running.reports.len();
        }
    }
}

impl WebSocket {
    /// The bytes that wait for the client, with those that are pending in the transport.
    pub(super) fn waiting_bytes<T: ShardTransport>(&self, transport: Option<&T>) -> usize {
        self.outbox.bytes() + transport.map_or(0, T::pending_bytes)
    }

    fn report<T: ShardTransport>(&self, cx: &ConnCx<'_, T>) -> ConnectionReport {
        let (session, shard) = (&self.session, &*cx.shard);
        let now_secs = shard.hub.seconds_since_start(shard.now);
        let connected_secs = now_secs.saturating_sub(session.opened_secs());
        let everyone = &shard.hub.everyone_streams;
        let memberships = lock(&session.rooms);
        let rooms = memberships
            .held()
            .filter(|room| room.is_reported() && !Arc::ptr_eq(room, everyone));
        let rooms = rooms.map(|room| room.name.clone()).collect();
        drop(memberships);
        let target = session.target();
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        let transport = cx.socket.transport.as_ref();
        ConnectionReport {
            id: session.id,
            encoding: session.encoding,
            peer: session.peer(),
            client_ip: session.client_ip(),
            path: path.into(),
            user: session.user_key().cloned(),
            rooms,
            subprotocol: session.subprotocol().map(Into::into),
            waiting_bytes: self.waiting_bytes(transport),
            lag: self.outbox.age(shard.tick),
            connected_for: Duration::from_secs(connected_secs.into()),
            is_closing: !self.is_open(),
            is_tls: transport.is_some_and(T::is_tls),
            is_compressed: session.encoding == Encoding::Frames && self.compression.is_agreed(),
        }
    }
}
