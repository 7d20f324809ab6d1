//! The figures of `bench size` as JSON and as Markdown.

use std::io;

use serde::{Deserialize, Serialize};

use super::site::{BroadcastSample, CpuUse, IdleSample, MemoryUse};
use crate::args::Options;
use crate::run::figures::{self, FigureReport};
use crate::run::report;
use crate::run::results::spread;

/// The name of the marks around the tables in a page.
const MARKS: &str = "size";

/// How a figure is computed from a broadcast.
type Reading<'a> = &'a dyn Fn(&BroadcastSample) -> f64;

/// The samples of one run, from which [`SizeReport`] computes its figures.
pub(super) struct Measured {
    /// Connections of each node, at first and in the end. The memory and the time of those at first do not count.
    pub(super) first_connections: Vec<usize>,
    pub(super) connections: Vec<usize>,
    pub(super) connecting_seconds: f64,
    pub(super) connecting: CpuUse,
    /// With the first connections, with all, and after the broadcasts.
    pub(super) base: MemoryUse,
    pub(super) full: MemoryUse,
    pub(super) later: MemoryUse,
    pub(super) idle: IdleSample,
    pub(super) broadcasts: Vec<BroadcastSample>,
}

/// The results of a run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct SizeReport {
    /// The machine and the method.
    pub(super) head: Vec<String>,
    /// Connections of each node.
    pub(super) connections: Vec<usize>,
    /// Deliveries of all broadcasts, the warm-up included.
    pub(super) expected: u64,
    pub(super) received: u64,
    pub(super) figures: Vec<FigureReport>,
}

impl Measured {
    pub(super) fn figures(&self) -> Vec<FigureReport> {
        let mut figures = vec![
            figure("Connections in total", "", vec![sum(&self.connections)]),
            figure("Connections of a node", "", floats(&self.connections)),
        ];
        figures.extend(self.connecting_figures());
        figures.extend(self.memory_figures());
        figures.extend(self.idle_figures());
        figures.extend(self.broadcast_figures());
        figures
    }

    fn connecting_figures(&self) -> [FigureReport; 3] {
        let opened = sum(&self.connections) - sum(&self.first_connections);
        let seconds = self.connecting_seconds;
        let cpu = self.connecting.all_nodes() * 1e6 / opened;
        [
            figure("Connecting all clients", "seconds", vec![seconds]),
            figure("Connections made", "per second", vec![opened / seconds]),
            figure("Node, for a connection made", "µs of CPU", vec![cpu]),
        ]
    }

    fn memory_figures(&self) -> [FigureReport; 3] {
        let opened = sum(&self.connections) - sum(&self.first_connections);
        // Both ends of each connection are on this machine.
        let kernel = (self.full.slab as f64 - self.base.slab as f64) / (2.0 * opened);
        [
            figure(
                "Memory of a node, per idle connection",
                "bytes",
                self.bytes_per_connection(&self.full),
            ),
            figure(
                "Memory of a node, per connection, after the broadcasts",
                "bytes",
                self.bytes_per_connection(&self.later),
            ),
            figure("Memory of the kernel, per socket", "bytes", vec![kernel]),
        ]
    }

    /// The growth of each node's resident memory, divided by its connections.
    fn bytes_per_connection(&self, memory: &MemoryUse) -> Vec<f64> {
        let opened = self.connections.iter().zip(&self.first_connections);
        let opened = opened.map(|(all, first)| (all - first) as f64);
        let grown = memory.nodes.iter().zip(&self.base.nodes);
        let grown = grown.map(|(full, base)| *full as f64 - *base as f64);
        grown
            .zip(opened)
            .map(|(bytes, count)| bytes / count)
            .collect()
    }

    fn idle_figures(&self) -> [FigureReport; 4] {
        let IdleSample {
            seconds,
            cpu,
            wake_ups,
        } = &self.idle;
        let millis = |cpu: f64| cpu * 1e3 / seconds;
        let each = cpu.nodes.iter().map(|&cpu| millis(cpu)).collect();
        let woken = wake_ups.iter().map(|&count| count as f64 / seconds);
        [
            figure("Node, for an idle second", "ms of CPU", each),
            figure(
                "All nodes, for an idle second",
                "ms of CPU",
                vec![millis(cpu.all_nodes())],
            ),
            figure(
                "Broker, for an idle second",
                "ms of CPU",
                vec![millis(cpu.broker)],
            ),
            figure("Node, idle: wake-ups", "per second", woken.collect()),
        ]
    }

    fn broadcast_figures(&self) -> Vec<FigureReport> {
        let connections = sum(&self.connections);
        let each = |of: Reading| self.broadcasts.iter().map(of).collect();
        let median = |sample: &BroadcastSample| {
            spread(&sample.cpu.nodes).map_or(f64::NAN, |(_, median, _)| median * 1e3)
        };
        let rows: [(&str, &str, Reading); 8] = [
            (
                "From the call of a broadcast to the first client",
                "ms",
                &|s| s.until_first.as_secs_f64() * 1e3,
            ),
            (
                "From the call of a broadcast to the last client",
                "ms",
                &|s| s.until_last.as_secs_f64() * 1e3,
            ),
            ("Deliveries, until the last client", "per second", &|s| {
                connections / s.until_last.as_secs_f64()
            }),
            (
                "Node (the median one), for a broadcast",
                "ms of CPU",
                &median,
            ),
            ("All nodes, for a broadcast", "ms of CPU", &|s| {
                s.cpu.all_nodes() * 1e3
            }),
            ("All nodes, per delivery", "µs of CPU", &|s| {
                s.cpu.all_nodes() * 1e6 / connections
            }),
            ("Broker, for a broadcast", "ms of CPU", &|s| {
                s.cpu.broker * 1e3
            }),
            ("All clients, per delivery", "µs of CPU", &|s| {
                s.cpu.clients * 1e6 / connections
            }),
        ];
        let rows = rows.into_iter();
        rows.map(|(what, unit, of)| figure(what, unit, each(of)))
            .collect()
    }
}

fn figure(what: &str, unit: &str, rounds: Vec<f64>) -> FigureReport {
    FigureReport {
        what: what.into(),
        unit: unit.into(),
        target: None,
        rounds,
    }
}

fn sum(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64
}

fn floats(counts: &[usize]) -> Vec<f64> {
    counts.iter().map(|&count| count as f64).collect()
}

/// Writes `out.json` and `out.md`, inserts the table into a page, and prints the complete report.
pub(super) fn write(results: &SizeReport, options: &Options) -> io::Result<()> {
    let table = figures::table(results.figures.iter()) + "\n";
    let text = results.head.join(" ") + "\n" + &table;
    if let Some(out) = options.text("out") {
        report::write_files(out, results, &[("md", &text)])?;
    }
    if let Some(path) = options.text("page") {
        report::insert(path, MARKS, &table)?;
    }
    print!("{text}");
    Ok(())
}
