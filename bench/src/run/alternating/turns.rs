//! Loads servers in turn, so that a slowdown of the machine affects all of them alike.

use std::io;
use std::time::{Duration, Instant};

use super::table::Figures;
use crate::run::server::Server;

/// Duration of the load on a server in one pass.
pub(super) const TURN: Duration = Duration::from_millis(250);
/// Maximum duration of a measurement, as a multiple of the requested CPU time.
const TIMES_MAX: f64 = 4.0;

/// The order of the servers in the passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::run) enum TurnOrder {
    /// Each pass reverses it, so that a steady slowdown of the machine affects all servers alike. The first and the last server
    /// then have two turns in succession, the second of which finds the caches filled.
    Reversed,
    /// Each pass repeats it. Every server finds the caches filled by another one.
    Repeated,
}

/// A server that is loaded in turn with others.
pub(super) trait Turns {
    fn server(&self) -> &Server;

    /// The CPU time in seconds that the server has used since its start, with the processes that serve it.
    fn used_in_total(&self) -> io::Result<f64> {
        self.server().cpu_seconds()
    }

    /// The CPU time in seconds that the server has used since its warm-up.
    fn used(&self) -> f64;

    /// Loads the server for this time.
    fn turn(&mut self, time: Duration) -> io::Result<()>;

    /// Ends the measurement and checks that it is valid.
    fn finish(self) -> io::Result<Figures>;
}

/// Loads servers in turn, until each has used `enough` CPU time in seconds. Adds their CPU time to `used`.
pub(super) fn alternate<Run: Turns>(
    mut runs: Vec<io::Result<Run>>,
    enough: f64,
    order: TurnOrder,
    used: &mut f64,
) -> Vec<io::Result<Figures>> {
    let turn = TURN.min(Duration::from_secs_f64(enough / 2.0));
    let end = Instant::now() + Duration::from_secs_f64(enough * TIMES_MAX * runs.len() as f64);
    let mut is_forward = true;
    loop {
        let mut pass: Vec<&mut io::Result<Run>> = runs.iter_mut().collect();
        if !is_forward {
            pass.reverse();
        }
        is_forward = !is_forward || order == TurnOrder::Repeated;
        let mut all_done = true;
        for run in pass {
            if let Ok(under_load) = run
                && under_load.used() < enough
            {
                all_done = false;
                if let Err(error) = under_load.turn(turn) {
                    *run = Err(error);
                }
            }
        }
        if all_done || Instant::now() >= end {
            break;
        }
    }
    runs.into_iter()
        .map(|run| {
            let run = run?;
            *used += run.used_in_total()?;
            run.finish()
        })
        .collect()
}
