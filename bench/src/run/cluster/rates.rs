//! Measures how many messages per second pass through one broker server.

use std::time::Instant;

use super::traffic::Traffic;
use super::{Setup, Site};
use crate::node::NodeCommand;
use crate::run::members::Members;
use crate::run::node_process::StartError;

/// Number of rooms, to which the messages go in turn.
const ROOMS: u64 = 16;
/// Number of messages in a burst, and of bursts in flight, if the messages are received. All of them fit into the queues of
/// the sending node, the broker and the receiving node.
const BURST: u64 = 1_024;
const WINDOW: u64 = 16;

/// Measures publishes that no other node receives. The figures are publishes per second, and microseconds of the broker's CPU for
/// each.
pub(super) fn publishes(setup: &Setup) -> Result<Vec<f64>, StartError> {
    let site = Site::start(setup, &setup.all_cpus)?;
    let mut sender = site.node(&setup.all_cpus, false)?;
    site.connect([&mut sender])?;
    let count = setup.messages(500_000);
    let publish = |count| NodeCommand::Publish {
        count,
        rooms: ROOMS,
    };
    sender.ask(&publish(count / 10))?;
    let before = site.broker.cpu_seconds()?;
    let nanos = sender.ask(&publish(count))?;
    let used = site.broker.cpu_seconds()? - before;
    Ok(vec![
        count as f64 * 1e9 / nanos as f64,
        used * 1e6 / count as f64,
    ])
}

/// Measures publishes that a member of all rooms on another node receives. The figures are those of [`publishes`].
pub(super) fn received_publishes(setup: &Setup) -> Result<Vec<f64>, StartError> {
    received(setup, false, setup.messages(300_000))
}

/// Measures messages of rooms with a history, like [`received_publishes`].
pub(super) fn appends(setup: &Setup) -> Result<Vec<f64>, StartError> {
    received(setup, true, setup.messages(200_000))
}

fn received(setup: &Setup, has_history: bool, count: u64) -> Result<Vec<f64>, StartError> {
    let site = Site::start(setup, &setup.all_cpus)?;
    let mut sender = site.node(&setup.all_cpus, has_history)?;
    let mut receiver = site.node(&setup.all_cpus, has_history)?;
    site.connect([&mut sender, &mut receiver])?;
    let mut members = Members::new(ROOMS)?;
    members.join(receiver.address, vec![(0..ROOMS).collect()])?;
    let mut traffic = Traffic::new(members, BURST, WINDOW, BURST);
    traffic.run_messages(&mut sender, count / 10)?;
    let before = site.broker.cpu_seconds()?;
    let begun = Instant::now();
    let count = traffic.run_messages(&mut sender, count)? as f64;
    let seconds = begun.elapsed().as_secs_f64();
    let used = site.broker.cpu_seconds()? - before;
    Ok(vec![count / seconds, used * 1e6 / count])
}
