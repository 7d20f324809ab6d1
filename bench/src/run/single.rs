//! Measurements that are made on one server after the other.

use std::io;
use std::time::{Duration, Instant};

use super::cost::{ServerUnderLoad, foreign_since};
use super::{Measurement, Sample, Scenario, Setup, Side, Workload};
use crate::args::Job;
use crate::histogram::Summary;
use crate::load::driven::{LoadProcess, LoadReport};
use crate::machine;

/// Connections that have echoed before the baseline of resident memory is read, so that code and stacks used for the first
/// time do not count as the cost of connections.
const BASE: usize = 64;
/// Rooms that each member joins.
const ROOMS_EACH: u64 = 10;
/// Rate of lone messages: one every 10 ms.
const LONE_PER_SECOND: f64 = 100.0;
/// Messages per second of the other clients while some handlers block.
const BESIDE_PER_SECOND: f64 = 5_000.0;
/// Messages of a fan-out that are sent one after the other, to find the possible rate.
const ALONE: u64 = 100;
/// Messages before the buffers of a stalled reader are full, and after: many times what they hold.
const BEFORE_STALL: u64 = 40;
const WITH_STALL: u64 = 300;

pub(super) fn measure(setup: &Setup, scenario: &Scenario, side: &Side) -> io::Result<Sample> {
    let machine = machine::all_cpus()?;
    let (mut sample, used) = match scenario.test {
        Measurement::Idle => idle(setup, scenario, side),
        Measurement::Memberships => memberships(setup, scenario, side),
        Measurement::Connect => connect(setup, scenario, side),
        Measurement::Blocked => blocked(setup, scenario, side),
        Measurement::Stalled => stalled(setup, scenario, side),
        Measurement::Lone => lone(setup, scenario, side),
        Measurement::Loaded => loaded(setup, scenario, side),
        Measurement::Rate | Measurement::Cost => rate(setup, scenario, side),
    }?;
    sample.foreign = foreign_since(machine, used)?;
    Ok(sample)
}

/// The sample, and the CPU time that server and client have used.
type Measured = io::Result<(Sample, f64)>;

fn settle(setup: &Setup) {
    std::thread::sleep(Duration::from_millis(if setup.quick { 200 } else { 1_000 }));
}

fn sample(value: f64, state: LoadReport) -> Sample {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let LoadReport {
        expected,
        received,
        latency: Summary { p50, p99, max, .. },
        ..
    } = state;
    Sample {
        value,
        expected,
        received,
        p50: micros(p50),
        p99: micros(p99),
        max: micros(max),
        ..Sample::default()
    }
}

/// Starts a server with a few connections that have all echoed.
fn warm(setup: &Setup, scenario: &Scenario, side: &Side) -> io::Result<ServerUnderLoad> {
    let base = Workload {
        clients: BASE,
        window: 1,
        ..side.work
    };
    let mut loaded = ServerUnderLoad::with(setup, scenario, side, &base, true)?;
    loaded.client.deliver(200 * BASE as u64)?;
    settle(setup);
    Ok(loaded)
}

/// Measures the memory of idle connections, and how often the server wakes up while they are idle.
fn idle(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = warm(setup, scenario, side)?;
    let pid = loaded.server.pid();
    let base = machine::resident(pid)?;
    loaded.client.hold(side.work.clients)?;
    settle(setup);
    let full = machine::resident(pid)?;

    let (since, before) = (Instant::now(), machine::wake_ups(pid)?);
    settle(setup);
    settle(setup);
    let woken = machine::wake_ups(pid)? - before;
    let seconds = since.elapsed().as_secs_f64();

    let state = loaded.client.finish()?;
    let value = (full as f64 - base as f64) / side.work.clients as f64;
    let sample = Sample {
        wake_ups: Some(woken as f64 / seconds),
        resident: Some(full),
        ..sample(value, state)
    };
    Ok((sample, loaded.used()))
}

/// Measures the memory of room memberships.
fn memberships(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let joining = Workload {
        job: Job::Echo,
        ..side.work
    };
    // Earlier messages occupy every handler thread.
    let mut first = ServerUnderLoad::with(
        setup,
        scenario,
        side,
        &Workload {
            clients: BASE,
            ..joining
        },
        true,
    )?;
    first.client.deliver(2 * BASE as u64)?;
    drop(first.client);
    let (_, client_cpus) = setup.cpus(scenario);
    let plan = joining.plan(setup.quick, true);
    let mut client = LoadProcess::connect(
        &setup.program,
        first.server.address,
        &plan,
        client_cpus,
        None,
    )?;
    let members = plan.clients as u64;
    // The first message of each client joins no room, but takes the same work otherwise.
    client.deliver(members)?;
    settle(setup);
    let base = machine::resident(first.server.pid())?;
    client.deliver(ROOMS_EACH * members)?;
    settle(setup);
    let full = machine::resident(first.server.pid())?;
    let state = client.finish()?;
    let value = (full as f64 - base as f64) / (ROOMS_EACH * members) as f64;
    Ok((
        sample(value, state),
        machine::cpu_time(first.server.pid())?.total(),
    ))
}

/// Measures the CPU time of accepting a connection and answering its handshake.
fn connect(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = warm(setup, scenario, side)?;
    let pid = loaded.server.pid();
    let before = machine::cpu_time(pid)?;
    loaded.client.hold(side.work.clients)?;
    let spent = machine::cpu_time(pid)? - before;
    let each = |seconds: f64| seconds * 1e6 / side.work.clients as f64;
    let state = loaded.client.finish()?;
    let sample = Sample {
        user: each(spent.user),
        system: each(spent.system),
        cpu_seconds: spent.total(),
        ..sample(each(spent.total()), state)
    };
    Ok((sample, loaded.used()))
}

fn seconds(setup: &Setup, seconds: f64) -> f64 {
    if setup.quick { 0.2 } else { seconds }
}

/// Measures how blocking handlers affect the latency of other clients.
fn blocked(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = ServerUnderLoad::start(setup, scenario, side)?;
    let messages = (BESIDE_PER_SECOND * seconds(setup, 1.5)) as u64;
    let client = &mut loaded.client;
    client.deliver(side.work.clients as u64)?;
    client.pace(messages / 5, BESIDE_PER_SECOND)?;
    client.clear_latencies()?;
    client.pace(messages, BESIDE_PER_SECOND)?;
    let unhindered = client.latency()?;
    client.clear_latencies()?;
    client.block()?;
    client.pace(messages, BESIDE_PER_SECOND)?;
    hindered(loaded, unhindered)
}

/// Measures how a stalled reader affects the latency of the others.
fn stalled(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = ServerUnderLoad::start(setup, scenario, side)?;
    let client = &mut loaded.client;
    client.deliver(10)?;
    client.clear_latencies()?;
    client.deliver(BEFORE_STALL)?;
    let unhindered = client.latency()?;
    client.clear_latencies()?;
    client.deliver(if setup.quick {
        BEFORE_STALL
    } else {
        WITH_STALL
    })?;
    hindered(loaded, unhindered)
}

fn hindered(mut loaded: ServerUnderLoad, unhindered: Summary) -> Measured {
    let state = loaded.client.finish()?;
    let p99 = |summary: Summary| summary.p99.as_secs_f64() * 1e6;
    let sample = Sample {
        unhindered_p99: Some(p99(unhindered)),
        resident: Some(machine::resident(loaded.server.pid())?),
        ..sample(p99(state.latency), state)
    };
    Ok((sample, loaded.used()))
}

/// Measures the latency of a message to an idle server.
fn lone(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = ServerUnderLoad::start(setup, scenario, side)?;
    loaded.client.pace(20, LONE_PER_SECOND)?;
    loaded.client.clear_latencies()?;
    let messages = (LONE_PER_SECOND * seconds(setup, 2.0)) as u64;
    loaded.client.pace(messages, LONE_PER_SECOND)?;
    let state = loaded.client.finish()?;
    let sample = sample(state.latency.p50.as_secs_f64() * 1e6, state);
    Ok((sample, loaded.used()))
}

/// Measures the latency of a fan-out at half of the rate that is possible if each message is sent when all clients have the
/// one before.
fn loaded(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = ServerUnderLoad::start(setup, scenario, side)?;
    let client = &mut loaded.client;
    client.deliver(ALONE)?;
    let begun = Instant::now();
    for _ in 0..ALONE {
        client.deliver(1)?;
    }
    let rate = 0.5 * ALONE as f64 / begun.elapsed().as_secs_f64();
    client.clear_latencies()?;
    client.pace((rate * seconds(setup, 5.0)).ceil() as u64, rate)?;
    let state = loaded.client.finish()?;
    let sample = sample(state.latency.p999.as_secs_f64() * 1e6, state);
    Ok((sample, loaded.used()))
}

/// Measures the throughput of echoes.
fn rate(setup: &Setup, scenario: &Scenario, side: &Side) -> Measured {
    let mut loaded = ServerUnderLoad::start(setup, scenario, side)?;
    let seconds = seconds(setup, 0.5);
    let mut messages = 2 * side.work.clients as u64;
    // Grow the batch until it takes long enough; earlier batches warm the server up.
    let value = loop {
        let begun = Instant::now();
        loaded.client.deliver(messages)?;
        let took = begun.elapsed().as_secs_f64();
        if took >= seconds {
            break messages as f64 / took;
        }
        messages = (messages as f64 * (1.2 * seconds / took).clamp(1.2, 10.0)) as u64;
    };
    let state = loaded.client.finish()?;
    Ok((sample(value, state), loaded.used()))
}
