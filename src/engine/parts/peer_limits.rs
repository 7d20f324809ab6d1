//! Limits for each address: the number of connections, and the rate of handshakes.
//!
//! Addresses are counted only if such a limit is set. An address is stored while it has connections or has recently
//! begun handshakes. So the memory is bounded by the number of open connections and of those within the last second.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::limits::Limits;
use crate::sync::lock;

/// A sweep removes unused addresses when there are this many more than after the last sweep.
const SWEEP_EVERY: usize = 1024;

/// The burst that is allowed: the handshakes of one second may arrive at once.
const BURST: Duration = Duration::from_secs(1);

pub(crate) struct PeerLimits {
    connections_max: Option<usize>,
    /// The time between two handshakes at the highest rate.
    handshake_takes: Option<Duration>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    peers: HashMap<IpAddr, AddressCounts>,
    sweep_at: usize,
}

#[derive(Default)]
struct AddressCounts {
    connections: usize,
    /// When the handshakes so far would have ended at the highest rate.
    paid_until: Option<Instant>,
}

/// Counts a connection for an address until it is dropped.
pub(crate) struct PeerSlot {
    peers: Arc<PeerLimits>,
    address: IpAddr,
}

impl PeerLimits {
    /// Creates the counts, or returns `None` if no such limit is set.
    pub(crate) fn new(limits: &Limits) -> Option<Arc<Self>> {
        let (connections, handshakes) = (
            limits.peer_connections_max,
            limits.peer_handshakes_per_second_max,
        );
        if connections.is_none() && handshakes.is_none() {
            return None;
        }
        Some(Arc::new(Self {
            connections_max: connections,
            handshake_takes: handshakes.map(|n| BURST.checked_div(n).unwrap_or(Duration::MAX)),
            known: Mutex::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        lock(&self.known)
    }

    /// Counts a connection for an address. `None` if the address has as many as allowed.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr, now: Instant) -> Option<Box<PeerSlot>> {
        let address = counted_as(address);
        let mut known = self.lock();
        known.sweep(now);
        let peer = known.peers.entry(address).or_default();
        if self
            .connections_max
            .is_some_and(|max| peer.connections >= max)
        {
            return None;
        }
        peer.connections += 1;
        Some(Box::new(PeerSlot {
            peers: self.clone(),
            address,
        }))
    }

    /// Counts a handshake for an address. Returns false if there were too many lately.
    pub(crate) fn count_handshake(&self, address: IpAddr, now: Instant) -> bool {
        let Some(takes) = self.handshake_takes else {
            return true;
        };
        let mut known = self.lock();
        known.sweep(now);
        let peer = known.peers.entry(counted_as(address)).or_default();
        let paid_until = peer.paid_until.map_or(now, |until| until.max(now));
        match paid_until.checked_add(takes) {
            Some(until) if until <= now + BURST => {
                peer.paid_until = Some(until);
                true
            }
            _ => false,
        }
    }
}

impl Known {
    fn sweep(&mut self, now: Instant) {
        if self.peers.len() >= self.sweep_at {
            self.peers.retain(|_, peer| {
                peer.connections > 0 || peer.paid_until.is_some_and(|until| until > now)
            });
            self.sweep_at = 2 * self.peers.len() + SWEEP_EVERY;
        }
    }
}

impl Drop for PeerSlot {
    fn drop(&mut self) {
        let mut known = self.peers.lock();
        if let Some(peer) = known.peers.get_mut(&self.address) {
            peer.connections -= 1;
            if peer.connections == 0 && peer.paid_until.is_none() {
                known.peers.remove(&self.address);
            }
        }
    }
}

/// The address that a client is counted as: for IPv6 the /64 network, since every subscriber has one at least.
pub(crate) fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn peers(connections: Option<usize>, handshakes: Option<u32>) -> Arc<PeerLimits> {
        PeerLimits::new(&Limits {
            peer_connections_max: connections,
            peer_handshakes_per_second_max: handshakes,
            ..Limits::default()
        })
        .unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_without_limits_are_not_counted() {
        assert!(PeerLimits::new(&Limits::default()).is_none());
    }

    #[test]
    fn address_at_its_limit_gets_room_when_a_connection_ends() {
        let peers = peers(Some(2), None);
        let now = Instant::now();
        let first = peers.enter(ip("192.0.2.1"), now).unwrap();
        let _second = peers.enter(ip("::ffff:192.0.2.1"), now).unwrap();
        assert!(peers.enter(ip("192.0.2.1"), now).is_none());
        assert!(peers.enter(ip("192.0.2.2"), now).is_some());
        drop(first);
        assert!(peers.enter(ip("192.0.2.1"), now).is_some());
    }

    #[test]
    fn ipv6_network_of_64_bits_counts_as_one_address() {
        let peers = peers(Some(1), None);
        let now = Instant::now();
        let _place = peers.enter(ip("2001:db8:0:1::1"), now).unwrap();
        assert!(peers.enter(ip("2001:db8:0:1:ffff::2"), now).is_none());
        assert!(peers.enter(ip("2001:db8:0:2::1"), now).is_some());
    }

    #[test]
    fn handshakes_within_rate_and_burst_are_allowed() {
        let peers = peers(None, Some(10));
        let address = ip("192.0.2.1");
        let start = Instant::now();
        let passed = |at: Instant| {
            (0..100)
                .filter(|_| peers.count_handshake(address, at))
                .count()
        };
        assert_eq!(passed(start), 10);
        assert_eq!(passed(start + Duration::from_millis(99)), 0);
        assert_eq!(passed(start + Duration::from_millis(100)), 1);
        assert_eq!(passed(start + Duration::from_millis(600)), 5);
        assert_eq!(passed(start + Duration::from_secs(60)), 10);
        assert!(peers.count_handshake(ip("192.0.2.2"), start));
    }

    #[test]
    fn handshake_rate_of_zero_refuses_every_client() {
        let peers = peers(None, Some(0));
        assert!(!peers.count_handshake(ip("192.0.2.1"), Instant::now()));
    }

    #[test]
    fn addresses_without_connections_are_swept_out() {
        let peers = peers(Some(1), Some(10));
        let start = Instant::now();
        for n in 0..100_000_u32 {
            let now = start + Duration::from_millis(n.into());
            let address = IpAddr::from(n.to_be_bytes());
            assert!(peers.count_handshake(address, now));
            drop(peers.enter(address, now));
        }
        let known = peers.lock().peers.len();
        assert!(known < 2 * SWEEP_EVERY + 2_000, "{known}");
    }
}
