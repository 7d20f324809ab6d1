//! Measures how soon a node has all of its rooms again after its Redis has restarted.

use std::time::Instant;

use super::{Setup, Site};
use crate::node::NodeCommand;
use crate::run::node_process::StartError;

/// As many as the default of `Limits::rooms_max`.
const ROOMS: u64 = 100_000;

/// The figures are the seconds, and the microseconds of CPU of the node and of Redis for each room.
pub(super) fn measure(setup: &Setup) -> Result<Vec<f64>, StartError> {
    let mut site = Site::start(setup, &setup.all_cpus)?;
    let mut node = site.node(&setup.all_cpus, true)?;
    site.connect([&mut node])?;
    let rooms = setup.messages(ROOMS);
    let read = node.ask(&NodeCommand::Open { rooms })?;
    let node_before = node.cpu_seconds()?;
    site.broker.restart()?;
    let begun = Instant::now();
    node.ask(&NodeCommand::Reads {
        count: read + rooms,
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    let micros = |seconds: f64| seconds * 1e6 / rooms as f64;
    Ok(vec![
        seconds,
        micros(node.cpu_seconds()? - node_before),
        micros(site.broker.cpu_seconds()?),
    ])
}
