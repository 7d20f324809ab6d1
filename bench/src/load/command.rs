//! `bench load`: runs one job against a running server, or executes the commands of a parent process ([`driven`]).

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::{Load, Plan, Rooms, driven};
use crate::args::{self, Job, OptionSpec, Options};
use crate::machine;

pub(crate) const OPTIONS: &[OptionSpec] = &[
    args::value("address"),
    args::value("clients"),
    args::value("size"),
    args::value("window"),
    args::value("rooms"),
    args::value("first-room"),
    args::value("earlier"),
    args::value("members"),
    args::value("visitors"),
    args::value("stalled"),
    args::value("blockers"),
    args::value("feed"),
    args::flag("together"),
    args::value("messages"),
    args::value("rate"),
    args::value("hold"),
    args::value("cpu"),
    args::flag("sleep"),
    args::flag("driven"),
];

pub(crate) fn command(options: &Options) -> io::Result<()> {
    let idle = options.word() == Some("idle");
    let plan = Plan {
        job: if idle { Job::Echo } else { Job::of(options)? },
        clients: options.number("clients", if idle { 5_000 } else { 100 })?,
        rooms: Rooms {
            count: options.number("rooms", 0)?,
            first: options.number("first-room", 0)?,
            members: options.number("members", 0)?,
            together: options.flag("together"),
            visitors: options.number("visitors", 0)?,
        },
        earlier: options.number("earlier", 0)?,
        window: options.number("window", 1)?,
        size: options.number("size", 32)?,
        stalled: options.number("stalled", 0)?,
        blockers: options.number("blockers", 0)?,
        sleep: options.flag("sleep"),
    };
    let Some(address) = options.text("address") else {
        return Err(args::invalid("--address IP:PORT is missing".into()));
    };
    let address = address.parse().map_err(|_| args::bad("address", address))?;
    let messages = options.number("messages", if idle { 0 } else { 10_000 })?;
    let rate: f64 = options.number("rate", 0.0)?;
    let feed = match options.text("feed") {
        Some(path) => Some(File::options().write(true).open(path)?),
        None => None,
    };
    if let Some(cpus) = options.cpus("cpu")? {
        machine::pin(&cpus)?;
    }

    if options.flag("driven") {
        machine::die_with_parent()?;
        return driven::run_commands(Load::connect(address, plan, feed)?);
    }
    let mut load = Load::connect(address, plan, feed)?;
    if idle {
        let hold: u64 = options.number("hold", 60)?;
        println!("{} connections held for {hold} s", plan.clients);
        return load.expect_nothing_more(Duration::from_secs(hold));
    }
    let start = Instant::now();
    match rate > 0.0 {
        true => {
            load.block();
            load.pace(messages, rate)?;
        }
        false => load.deliver(messages)?,
    }
    let took = start.elapsed();
    load.expect_nothing_more(Duration::from_millis(50))?;
    let (expected, received) = load.counts();
    let summary = load.latencies().summary();
    println!(
        "{received} of {expected} deliveries in {took:.2?}: {:.3} µs each; latency p50 {:.1?}, p99 {:.1?}, max {:.1?}",
        took.as_secs_f64() * 1e6 / received.max(1) as f64,
        summary.p50,
        summary.p99,
        summary.max
    );
    Ok(())
}
