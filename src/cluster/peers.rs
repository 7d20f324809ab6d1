//! The other nodes of a cluster, as this node hears them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::counts::{COUNTS_KEPT, NODES_MAX};

/// After this silence a node is gone, and a connection whose own heartbeats don't come back is replaced.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Another node.
struct Peer {
    heard: Instant,
    /// It has been silent for [`SILENCE_MAX`].
    is_gone: bool,
}

/// The other nodes.
#[derive(Default)]
pub(super) struct Peers(HashMap<u32, Peer>);

/// The outcome of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Known,
    /// The node was unknown or gone.
    New,
    /// There are [`NODES_MAX`] other nodes already.
    TooMany,
}

impl Peers {
    /// Records a heartbeat.
    pub(super) fn heard(&mut self, node: u32, now: Instant) -> Heard {
        let has_room = self.0.len() < NODES_MAX;
        match self.0.get_mut(&node) {
            Some(peer) => {
                peer.heard = now;
                match std::mem::replace(&mut peer.is_gone, false) {
                    true => Heard::New,
                    false => Heard::Known,
                }
            }
            None if has_room => {
                let peer = Peer {
                    heard: now,
                    is_gone: false,
                };
                self.0.insert(node, peer);
                Heard::New
            }
            None => Heard::TooMany,
        }
    }

    /// Removes a node. Returns whether it was known.
    pub(super) fn forget(&mut self, node: u32) -> bool {
        self.0.remove(&node).is_some()
    }

    pub(super) fn is_known(&self, node: u32) -> bool {
        self.0.contains_key(&node)
    }

    /// Whether a node is not gone.
    pub(super) fn is_present(&self, node: u32) -> bool {
        self.0.get(&node).is_some_and(|peer| !peer.is_gone)
    }

    /// The nodes that are not gone.
    pub(super) fn present(&self) -> impl Iterator<Item = u32> + '_ {
        let present = self.0.iter().filter(|(_, peer)| !peer.is_gone);
        present.map(|(&node, _)| node)
    }

    /// Begins the silence of all nodes anew, since it may be this node that did not hear them. Nodes that are gone stay
    /// so until they are heard.
    pub(super) fn excuse_silence(&mut self, now: Instant) {
        for peer in self.0.values_mut().filter(|peer| !peer.is_gone) {
            peer.heard = now;
        }
    }

    /// Does not count a time in which this node stood still as silence of others.
    pub(super) fn excuse(&mut self, time: Duration, now: Instant) {
        for peer in self.0.values_mut() {
            peer.heard = (peer.heard + time).min(now);
        }
    }

    /// Judges the silence of the nodes. Returns those that are gone now, and those to forget.
    pub(super) fn judge(&mut self, now: Instant) -> (Vec<u32>, Vec<u32>) {
        let mut gone = Vec::new();
        let mut forgotten = Vec::new();
        for (&node, peer) in &mut self.0 {
            let silence = now.saturating_duration_since(peer.heard);
            if silence >= SILENCE_MAX && !peer.is_gone {
                peer.is_gone = true;
                gone.push(node);
            }
            // Until then, the counts of its messages tell what was missed of a node that returns.
            if silence >= COUNTS_KEPT {
                forgotten.push(node);
            }
        }
        (gone, forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_nodes_are_bounded_and_forgotten() {
        let mut peers = Peers::default();
        let now = Instant::now();
        for node in 0..NODES_MAX as u32 {
            assert_eq!(peers.heard(node, now), Heard::New);
        }
        assert_eq!(peers.heard(u32::MAX, now), Heard::TooMany);
        assert_eq!(peers.heard(7, now), Heard::Known);
        let later = now + COUNTS_KEPT;
        let (gone, forgotten) = peers.judge(later);
        assert_eq!((gone.len(), forgotten.len()), (NODES_MAX, NODES_MAX));
        assert_eq!(peers.present().count(), 0);
        for node in forgotten {
            assert!(peers.forget(node));
        }
        assert_eq!(peers.heard(u32::MAX, later), Heard::New);
    }

    #[test]
    fn node_that_is_gone_stays_so_until_it_is_heard() {
        let mut peers = Peers::default();
        let mut now = Instant::now();
        peers.heard(1, now);
        now += SILENCE_MAX;
        assert_eq!(peers.judge(now).0, [1]);
        peers.excuse_silence(now);
        assert!(peers.judge(now).0.is_empty());
        assert_eq!(peers.present().count(), 0);
        assert_eq!(peers.heard(1, now), Heard::New);
        assert_eq!(peers.present().count(), 1);
    }
}
