//! The account of a scenario: what was sent, delivered, counted as lost by cause, and missed after a gap.

use std::collections::HashMap;
use std::fmt;

use crate::check::{Failure, Outcome, ensure};
use crate::cluster::NODES;
use crate::cluster::accounts::Accounts;
use crate::cluster::fleet::Member;
use crate::cluster::node::PLAIN;
use crate::server::Figures;

/// A node process at its end. Of one that was killed, nothing is known.
pub(super) struct Ended {
    pub(super) sender: u32,
    pub(super) figures: Option<Figures>,
}

/// What happened to the messages of rooms with a history, and to those of rooms without.
#[derive(Debug, Default)]
pub(super) struct Account {
    rooms: u64,
    /// Messages that nodes have sent to rooms with a history, apart from nodes that were killed.
    pub(super) sent: u64,
    /// Those of them that some client has received.
    pub(super) delivered: u64,
    /// Messages of nodes that were killed, as far as clients have received them.
    pub(super) delivered_of_killed: u64,
    pub(super) killed: u64,
    pub(super) unconfirmed: u64,
    pub(super) dropped_broker: u64,
    pub(super) dropped_full: u64,
    pub(super) not_running: u64,
    pub(super) gaps_lost: u64,
    pub(super) gaps_server_changed: u64,
    /// The same gaps of each node.
    pub(super) gaps_of_nodes: Vec<(u64, u64)>,
    /// Gaps that clients were told of: while they were members, and in replays.
    pub(super) told: u64,
    pub(super) told_most: u64,
    pub(super) told_least: u64,
    pub(super) told_in_replays: u64,
    /// Messages that a client has missed, and another client of the room has received; each once for each such client.
    pub(super) missed_after_gaps: u64,
    pub(super) connections_ended: u64,
    /// How often clients were told that their room is silent.
    pub(super) silences: u64,
    /// Of rooms without a history: sent, received by each node's clients from other nodes, and missed there.
    pub(super) plain: Option<PlainAccount>,
}

#[derive(Debug, Default)]
pub(super) struct PlainAccount {
    pub(super) sent: u64,
    pub(super) arrived: u64,
    pub(super) missed_remote: u64,
}

/// Makes the account, and checks what holds after any fault.
pub(super) fn account(
    members: &[Member],
    accounts: &Accounts,
    nodes: Vec<Ended>,
    rooms: u32,
    plain: bool,
) -> Outcome<Account> {
    let mut account = Account {
        rooms: rooms.into(),
        ..Account::default()
    };
    for node in &nodes {
        account.add(node, accounts)?;
    }
    ensure!(
        account.delivered <= account.sent - account.dropped_broker.min(account.sent) || plain,
        "a message that was counted as dropped has arrived: {account}"
    );
    have_equal_accounts(members)?;
    account.told_least = u64::MAX;
    for (index, member) in members.iter().enumerate() {
        ensure!(
            !member.is_silent,
            "client {index} was told that its room is silent, and not that it no longer is"
        );
        account.silences += member.silences;
        let delivered = accounts.delivered_in[member.room as usize];
        let missed = delivered.checked_sub(member.kept.received);
        let gaps = member.gaps + member.replay_gaps;
        match missed {
            Some(missed) if gaps > 0 => account.missed_after_gaps += missed,
            _ => ensure!(
                gaps > 0 || missed == Some(0),
                "client {index} has received {} of {delivered} messages, and was told of no gap",
                member.kept.received
            ),
        }
        account.told += member.gaps;
        account.told_most = account.told_most.max(member.gaps);
        account.told_least = account.told_least.min(member.gaps);
        account.told_in_replays += member.replay_gaps;
        account.connections_ended += member.ended;
    }
    if plain {
        account.plain = Some(plain_account(accounts, &nodes)?);
    }
    Ok(account)
}

impl Account {
    fn add(&mut self, node: &Ended, accounts: &Accounts) -> Outcome {
        let delivered = accounts.delivered_of(node.sender);
        let Some(figures) = &node.figures else {
            self.killed += 1;
            self.delivered_of_killed += delivered;
            let messages = accounts.delivered.get(&node.sender);
            let newest = messages.and_then(|numbers| numbers.iter().max());
            // Redis executes the commands of a connection in order.
            ensure!(
                newest.copied().unwrap_or(0) == delivered,
                "of the first {newest:?} messages of a killed node, {delivered} have arrived"
            );
            return Ok(());
        };
        let sent = figures.get("kept_sent");
        let newest = accounts.delivered.get(&node.sender);
        let newest = newest.and_then(|numbers| numbers.iter().max());
        ensure!(
            newest.is_none_or(|newest| *newest <= sent),
            "message {newest:?} of sender {} has arrived, which has sent {sent}",
            node.sender
        );
        for name in ["dropped_full", "bad_envelopes", "slow_consumers"] {
            ensure!(
                figures.get(name) == 0,
                "{name} of sender {} is {}",
                node.sender,
                figures.get(name)
            );
        }
        self.sent += sent;
        self.delivered += delivered;
        self.unconfirmed += figures.get("unconfirmed");
        self.dropped_broker += figures.get("dropped_broker");
        self.dropped_full += figures.get("dropped_full");
        self.not_running += figures.get("dropped_not_running");
        self.gaps_lost += figures.get("gaps_lost");
        self.gaps_server_changed += figures.get("gaps_server_changed");
        let gaps = (figures.get("gaps_lost"), figures.get("gaps_server_changed"));
        self.gaps_of_nodes.push(gaps);
        Ok(())
    }

    /// Messages that were lost without being counted by the node that sent them.
    fn uncounted(&self) -> u64 {
        let counted = self.unconfirmed + self.dropped_broker + self.not_running;
        (self.sent - self.delivered).saturating_sub(counted)
    }

    /// Everything that was sent has arrived everywhere, and no gap was told.
    pub(super) fn is_whole(&self) -> Outcome {
        ensure!(
            self.delivered + self.not_running == self.sent,
            "messages were lost"
        );
        ensure!(
            self.unconfirmed + self.dropped_broker == 0,
            "messages were counted as lost"
        );
        let gaps = self.gaps_lost + self.gaps_server_changed;
        ensure!(
            gaps + self.told + self.told_in_replays == 0,
            "gaps were told"
        );
        Ok(())
    }

    /// No message was refused, or waited for too long.
    pub(super) fn has_dropped_nothing(&self) -> Outcome {
        ensure!(self.dropped_broker == 0, "messages were dropped");
        Ok(())
    }

    /// Everything that was sent has arrived at some client, or was counted by the node that has sent it.
    pub(super) fn is_accounted(&self) -> Outcome {
        ensure!(
            self.uncounted() == 0,
            "{} messages were lost and not counted",
            self.uncounted()
        );
        Ok(())
    }

    /// What has not arrived and was not counted was lost with histories that Redis has evicted: their members were told of
    /// gaps.
    pub(super) fn has_gaps_for_losses(&self) -> Outcome {
        ensure!(
            self.uncounted() == 0 || self.gaps_lost > 0,
            "{} messages were lost, not counted, and no gap was told",
            self.uncounted()
        );
        Ok(())
    }

    /// Each room was told of one gap on each node, because Redis has restarted.
    pub(super) fn has_one_gap_each(&self) -> Outcome {
        let each = (0, self.rooms);
        ensure!(
            self.gaps_of_nodes == [each; NODES],
            "the nodes' gaps are {:?} instead of {each:?}",
            self.gaps_of_nodes
        );
        ensure!(
            (self.told_least, self.told_most, self.told_in_replays) == (1, 1, 0),
            "clients were told of {} to {} gaps instead of one",
            self.told_least,
            self.told_most
        );
        Ok(())
    }
}

/// All clients of a room that have stayed on one node have received the same, and were told of the same gaps.
fn have_equal_accounts(members: &[Member]) -> Outcome {
    let mut of_room = HashMap::new();
    for member in members.iter().filter(|member| member.ended == 0) {
        let own = (member.kept.received, member.plain.received, member.gaps);
        let first = *of_room.entry((member.room, member.node)).or_insert(own);
        ensure!(
            first == own,
            "two clients of room {} on node {} have received (with ids, without, gaps) {first:?} and {own:?}",
            member.room,
            member.node
        );
    }
    Ok(())
}

/// Each message to a room without a history has arrived at every other node, or was counted there as missed.
fn plain_account(accounts: &Accounts, nodes: &[Ended]) -> Outcome<PlainAccount> {
    let mut account = PlainAccount::default();
    let figures = |node: &Ended| -> Outcome<(u32, u64, u64)> {
        let figures = node.figures.as_ref();
        let figures = figures.ok_or_else(|| Failure::new("a node was killed"))?;
        let (sent, missed) = (figures.get("plain_sent"), figures.get("missed_remote"));
        Ok((node.sender, sent, missed))
    };
    let nodes = nodes.iter().map(figures).collect::<Outcome<Vec<_>>>()?;
    for &(own, sent, missed) in &nodes {
        // In these scenarios, the nodes' senders are their indices.
        let arrived_of = |sender: u32| {
            let numbers = accounts.plain[own as usize].get(&(sender + PLAIN));
            numbers.map_or(0, |numbers| numbers.len() as u64)
        };
        ensure!(
            arrived_of(own) == sent,
            "of {sent} messages to rooms without a history, {} have arrived on node {own} itself",
            arrived_of(own)
        );
        let others = nodes.iter().filter(|(sender, ..)| *sender != own);
        let (expected, arrived) = others.fold((0, 0), |(expected, arrived), &(sender, sent, _)| {
            (expected + sent, arrived + arrived_of(sender))
        });
        ensure!(
            arrived + missed == expected,
            "node {own}: of {expected} messages of other nodes to rooms without a history, {arrived} have arrived and {missed} \
             were counted as missed"
        );
        account.sent += sent;
        account.arrived += arrived;
        account.missed_remote += missed;
    }
    Ok(account)
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} delivered", self.sent, self.delivered)?;
        let lost = self.sent - self.delivered;
        write!(
            f,
            ", {lost} lost (counted: {} unconfirmed, {} dropped_broker, {} dropped_full, {} not_running)",
            self.unconfirmed, self.dropped_broker, self.dropped_full, self.not_running
        )?;
        if self.killed > 0 {
            write!(
                f,
                ", {} delivered of {} killed (what it had sent is not known)",
                self.delivered_of_killed, self.killed
            )?;
        }
        write!(
            f,
            "; gaps of nodes: {} lost, {} server changed; told to clients: {} live, {} in replays; {} missed after them; {} \
             reconnects; {} told of silence",
            self.gaps_lost,
            self.gaps_server_changed,
            self.told,
            self.told_in_replays,
            self.missed_after_gaps,
            self.connections_ended,
            self.silences
        )?;
        if let Some(plain) = &self.plain {
            write!(
                f,
                "; without a history: {} sent, {} arrived at other nodes, {} missed_remote",
                plain.sent, plain.arrived, plain.missed_remote
            )?;
        }
        Ok(())
    }
}
