//! Measures the CPU time of a node that has members in a tenth of the rooms, beside a node that has members in all.

use std::time::Duration;

use super::traffic::Traffic;
use super::{Setup, Site};
use crate::run::members::Members;
use crate::run::node_process::StartError;

const ROOMS: u64 = 1_000;
/// One of this number of rooms has a member on the node with few rooms.
const ONE_IN: u64 = 10;
/// Number of bursts in flight. A burst has a message for each room.
const WINDOW: u64 = 2;
const TURN: Duration = Duration::from_millis(250);
/// Maximum number of turns.
const TURNS_MAX: usize = 200;

/// Measures one round. The figures are the ratio of the CPU times, and microseconds of CPU per message of the node with all
/// rooms, and of the node with a tenth.
pub(super) fn measure(setup: &Setup) -> Result<Vec<f64>, StartError> {
    let site = Site::start(setup, &setup.client_cpu)?;
    let mut sender = site.node(&setup.client_cpu, false)?;
    let mut with_all = site.node(&setup.server_cpu, false)?;
    let mut with_few = site.node(&setup.server_cpu, false)?;
    site.connect([&mut sender, &mut with_all, &mut with_few])?;
    let mut members = Members::new(ROOMS)?;
    let one_each = |rooms: std::ops::Range<u64>| rooms.map(|room| vec![room]);
    members.join(with_all.address, one_each(0..ROOMS).collect())?;
    let few = one_each(0..ROOMS).step_by(ONE_IN as usize);
    members.join(with_few.address, few.collect())?;
    let mut traffic = Traffic::new(members, ROOMS, WINDOW, ROOMS + ROOMS / ONE_IN);
    let turn = if setup.quick { TURN / 10 } else { TURN };
    traffic.run_for(&mut sender, turn)?;
    let before = (with_all.cpu_seconds()?, with_few.cpu_seconds()?);
    let mut messages = 0;
    for _ in 0..TURNS_MAX {
        messages += traffic.run_for(&mut sender, turn)?;
        if with_all.cpu_seconds()? - before.0 >= setup.cpu_seconds {
            break;
        }
    }
    let all = with_all.cpu_seconds()? - before.0;
    let few = with_few.cpu_seconds()? - before.1;
    let micros = |seconds: f64| seconds * 1e6 / messages as f64;
    Ok(vec![few / all, micros(all), micros(few)])
}
