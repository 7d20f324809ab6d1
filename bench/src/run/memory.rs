//! Resident memory: what an idle connection takes, and what its being in a room adds.

use std::io;
use std::time::Duration;

use super::server::Kind;
use super::{Pair, Setup, scenario::SIZE};
use crate::args::Job;
use crate::load::{Load, Plan, Rooms};
use crate::machine;

pub(super) const IDLE: &str = "idle 5,000";
const IDLE_CLIENTS: usize = 5_000;
/// Resident bytes per idle connection.
const IDLE_TARGET: f64 = 700.0;
/// Connections that have already echoed when the resident memory of "none" is read, so that code
/// and thread stacks used for the first time are not taken for the cost of connections.
const BASE: usize = 64;

pub(super) const MEMBERSHIPS: &str = "memberships";
const MEMBERS: usize = 10_000;
/// Rooms that everyone is spread over; each connection is in one of each such set.
const ROOMS: usize = 1_000;
/// Sets of them.
const ROOMS_EACH: usize = 10;
/// Resident bytes per membership.
const MEMBERSHIP_TARGET: f64 = 64.0;

/// What was added to a server, and what that took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Added {
    pub(super) base: u64,
    pub(super) full: u64,
    pub(super) things: usize,
    pub(super) expected: u64,
    pub(super) received: u64,
}

impl Added {
    pub(super) fn each(&self) -> f64 {
        (self.full as f64 - self.base as f64) / self.things as f64
    }
}

/// The rounds of one server, and what is aimed at.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) server: &'static str,
    pub(super) rounds: Vec<Added>,
    pub(super) target: Option<f64>,
}

impl Line {
    fn new(name: impl Into<String>, server: &'static str, target: Option<f64>) -> Self {
        Self {
            name: name.into(),
            server,
            rounds: Vec::new(),
            target,
        }
    }

    fn push(&mut self, setup: &Setup, added: Added) {
        self.rounds.push(added);
        eprintln!(
            "{}, round {} of {}, {}: {:.0} bytes each",
            self.name,
            self.rounds.len(),
            setup.rounds,
            self.server,
            added.each()
        );
    }
}

pub(super) fn idle(setup: &Setup) -> io::Result<Vec<Line>> {
    let mut floor = Line::new(IDLE, Kind::Floor.name(), None);
    let mut subject = Line::new(IDLE, Kind::Subject.name(), Some(IDLE_TARGET));
    for _ in 0..setup.rounds {
        let pair = Pair::of(|kind| hold(setup, kind))?;
        floor.push(setup, pair.floor);
        subject.push(setup, pair.subject);
    }
    Ok(vec![floor, subject])
}

fn settle(setup: &Setup) -> Duration {
    Duration::from_millis(if setup.quick { 200 } else { 1_000 })
}

fn plan(clients: usize, rooms: usize) -> Plan {
    Plan {
        job: Job::Echo,
        clients,
        rooms: Rooms {
            count: rooms,
            ..Rooms::default()
        },
        window: 1,
        size: SIZE,
        sleep: true,
    }
}

/// One server with many connections: its resident memory, and then one echo on each of them.
fn hold(setup: &Setup, kind: Kind) -> io::Result<Added> {
    let server = setup.start(kind, Job::Echo)?;
    let base = Plan {
        window: 4,
        ..plan(BASE, 0)
    };
    let mut base_load = Load::connect(server.address, base)?;
    base_load.deliver(200 * BASE as u64)?;
    base_load.expect_nothing_more(settle(setup))?;
    let base = machine::resident(server.pid())?;

    let mut load = Load::connect(server.address, plan(IDLE_CLIENTS, 0))?;
    load.expect_nothing_more(settle(setup))?;
    let full = machine::resident(server.pid())?;

    load.deliver(IDLE_CLIENTS as u64)?;
    load.expect_nothing_more(Duration::from_millis(50))?;
    let (expected, received) = load.counts();
    Ok(Added {
        base,
        full,
        things: IDLE_CLIENTS,
        expected,
        received,
    })
}

pub(super) fn memberships(setup: &Setup) -> io::Result<Vec<Line>> {
    let line = |each| {
        let name = format!("{MEMBERSHIPS}, {each} each, 10 in a room");
        Line::new(name, Kind::Subject.name(), Some(MEMBERSHIP_TARGET))
    };
    let mut lines = vec![line(1), line(ROOMS_EACH)];
    for _ in 0..setup.rounds {
        let added = join(setup)?;
        for (line, added) in lines.iter_mut().zip(added) {
            line.push(setup, added);
        }
    }
    Ok(lines)
}

/// One server whose connections join one room each, and then more.
fn join(setup: &Setup) -> io::Result<[Added; 2]> {
    let server = setup.start(Kind::Subject, Job::Rooms)?;
    let mut first = Load::connect(server.address, plan(BASE, 1))?;
    first.deliver(2 * BASE as u64)?;
    first.expect_nothing_more(settle(setup))?;
    drop(first);

    let (members, rooms) = match setup.quick {
        true => (MEMBERS / 10, ROOMS / 10),
        false => (MEMBERS, ROOMS),
    };
    let mut load = Load::connect(server.address, plan(members, rooms))?;
    let mut step = |joins: usize| {
        load.deliver((joins * members) as u64)?;
        load.expect_nothing_more(settle(setup))?;
        let (expected, received) = load.counts();
        Ok::<_, io::Error>((machine::resident(server.pid())?, expected, received))
    };
    // The first message of each joins nothing, and is as much work otherwise.
    let (base, ..) = step(1)?;
    let (one, expected, received) = step(1)?;
    let added = |full, each, expected, received| Added {
        base,
        full,
        things: each * members,
        expected,
        received,
    };
    let single = added(one, 1, expected, received);
    let (all, expected, received) = step(ROOMS_EACH - 1)?;
    Ok([single, added(all, ROOMS_EACH, expected, received)])
}
