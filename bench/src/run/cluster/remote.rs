//! Measures what a message of another node costs the node that receives it, beside a local broadcast to the same members.

use std::io;
use std::time::Duration;

use super::traffic::Traffic;
use super::{Setup, Site};
use crate::node::NodeCommand;
use crate::run::members::Members;
use crate::run::node_process::{NodeProcess, StartError};

/// Number of members of the room.
const MEMBERS: u64 = 2;
/// Duration of the load on a node in one pass.
const TURN: Duration = Duration::from_millis(250);
/// Maximum number of passes.
const PASSES_MAX: usize = 200;

/// How many messages are in flight.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Several bursts of 64.
    Batched,
    /// One message at a time.
    Alone,
}

/// The work of a node: CPU time in seconds, and messages.
#[derive(Clone, Copy, Default)]
struct Work {
    cpu: f64,
    messages: u64,
}

impl Work {
    fn micros_per_message(self) -> f64 {
        self.cpu * 1e6 / self.messages as f64
    }
}

pub(super) fn batched(setup: &Setup) -> Result<Vec<f64>, StartError> {
    measure(setup, Pace::Batched)
}

pub(super) fn alone(setup: &Setup) -> Result<Vec<f64>, StartError> {
    measure(setup, Pace::Alone)
}

/// Measures one round. The figures are those of `REMOTE_BATCHED` in `scenarios`.
fn measure(setup: &Setup, pace: Pace) -> Result<Vec<f64>, StartError> {
    let site = Site::start(setup, &setup.client_cpu)?;
    let mut sender = site.node(&setup.client_cpu, false)?;
    let mut receiver = site.node(&setup.server_cpu, false)?;
    let mut lone = setup.lone_node(&setup.server_cpu)?;
    site.connect([&mut sender, &mut receiver])?;
    let mut traffic = members_of(&receiver, pace)?;
    let mut lone_traffic = members_of(&lone, pace)?;
    // The first turns are the warm-up.
    let turn = if setup.quick { TURN / 10 } else { TURN };
    traffic.run_for(&mut sender, turn)?;
    traffic.run_for(&mut receiver, turn)?;
    lone_traffic.run_for(&mut lone, turn)?;
    let [mut remote, mut link, mut local, mut without] = [Work::default(); 4];
    for _ in 0..PASSES_MAX {
        let before = (
            receiver.serving_cpu_seconds()?,
            receiver.link_cpu_seconds()?,
        );
        remote.messages += traffic.run_for(&mut sender, turn)?;
        remote.cpu += receiver.serving_cpu_seconds()? - before.0;
        link.cpu += receiver.link_cpu_seconds()? - before.1;
        local.add_local(&mut traffic, &mut receiver, turn)?;
        without.add_local(&mut lone_traffic, &mut lone, turn)?;
        if remote.cpu >= setup.cpu_seconds {
            break;
        }
    }
    link.messages = remote.messages;
    let [remote, link, local, without] =
        [remote, link, local, without].map(Work::micros_per_message);
    Ok(vec![
        remote - local,
        remote - without,
        remote,
        link,
        local,
        without,
    ])
}

impl Work {
    /// Lets a node broadcast to its own members. Its CPU time includes that of the broadcasts, but not that of receiving
    /// the commands, since a program has its own reasons to broadcast.
    fn add_local(
        &mut self,
        traffic: &mut Traffic,
        node: &mut NodeProcess,
        turn: Duration,
    ) -> io::Result<()> {
        let used = |node: &mut NodeProcess| -> io::Result<f64> {
            let broadcasting = node.ask(&NodeCommand::Cpu)? as f64 / 1e9;
            Ok(node.serving_cpu_seconds()? + broadcasting)
        };
        let before = used(node)?;
        self.messages += traffic.run_for(node, turn)?;
        self.cpu += used(node)? - before;
        Ok(())
    }
}

fn members_of(node: &NodeProcess, pace: Pace) -> io::Result<Traffic> {
    let mut members = Members::new(1)?;
    members.join(node.address, (0..MEMBERS).map(|_| vec![0]).collect())?;
    let (burst, window) = match pace {
        Pace::Batched => (64, 4),
        Pace::Alone => (1, 1),
    };
    Ok(Traffic::new(members, burst, window, burst * MEMBERS))
}
