//! Wrong credentials of each client address, which limit how fast tokens can be guessed.
//!
//! The time is an argument, and nothing here knows requests.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// The number of different wrong credentials that an address may present within [`WINDOW`]. Afterwards it is blocked.
pub(crate) const FAILURES_MAX: usize = 10;

/// How long a wrong credential counts.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);

/// The number of addresses that are remembered. About 5 MB if all of them are blocked.
const CLIENTS_MAX: usize = 10_000;

/// The addresses with recent wrong credentials.
///
/// The same wrong credential counts once, however often it is presented: repeating it reveals nothing, and a browser repeats
/// an outdated cookie with each request.
#[derive(Debug)]
pub(crate) struct Attempts {
    clients: HashMap<ClientKey, Failures>,
    /// The addresses by the number of their last failure, so that the one that has been quiet for longest is evicted first.
    by_last_failure: BTreeMap<u64, ClientKey>,
    next_failure: u64,
    clients_max: usize,
}

/// An IPv4 address, or an IPv6 network of 64 bits, which is what one customer has at least (RFC 6177).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct ClientKey(IpAddr);

#[derive(Debug)]
struct Failures {
    last_failure: u64,
    /// The times and fingerprints of the wrong credentials, oldest first; at most [`FAILURES_MAX`].
    recent: Vec<(Instant, u64)>,
}

impl ClientKey {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
            v4 => v4,
        })
    }
}

/// Whether a failure at `time` still counts.
fn counts(time: Instant, now: Instant) -> bool {
    now.saturating_duration_since(time) < WINDOW
}

impl Default for Attempts {
    fn default() -> Self {
        Self::with_clients_max(CLIENTS_MAX)
    }
}

impl Attempts {
    fn with_clients_max(clients_max: usize) -> Self {
        Self {
            clients: HashMap::new(),
            by_last_failure: BTreeMap::new(),
            next_failure: 0,
            clients_max,
        }
    }

    /// How long an address is still blocked; `None` if it is not.
    pub(crate) fn blocked_for(&self, address: IpAddr, now: Instant) -> Option<Duration> {
        let recent = &self.clients.get(&ClientKey::of(address))?.recent;
        // The oldest of the last `FAILURES_MAX` failures decides.
        let &(oldest, _) = recent.get(recent.len().checked_sub(FAILURES_MAX)?)?;
        counts(oldest, now).then(|| WINDOW - now.saturating_duration_since(oldest))
    }

    /// Counts a wrong credential. Returns whether the address is blocked from now on.
    pub(crate) fn add_failure(&mut self, address: IpAddr, fingerprint: u64, now: Instant) -> bool {
        let client = ClientKey::of(address);
        let mut recent = match self.clients.remove(&client) {
            Some(failures) => {
                self.by_last_failure.remove(&failures.last_failure);
                failures.recent
            }
            None => Vec::new(),
        };
        recent.retain(|&(time, _)| counts(time, now));
        if !recent.iter().any(|&(_, known)| known == fingerprint) {
            if recent.len() == FAILURES_MAX {
                recent.remove(0);
            }
            recent.push((now, fingerprint));
        }
        let is_blocked = recent.len() >= FAILURES_MAX;
        self.evict(now);
        self.by_last_failure.insert(self.next_failure, client);
        let failures = Failures {
            last_failure: self.next_failure,
            recent,
        };
        self.clients.insert(client, failures);
        self.next_failure += 1;
        is_blocked
    }

    /// Forgets addresses whose failures no longer count, and makes room for another address.
    fn evict(&mut self, now: Instant) {
        while let Some((&failure, client)) = self.by_last_failure.first_key_value() {
            let recent = &self.clients[client].recent;
            let is_outdated = recent.last().is_none_or(|&(time, _)| !counts(time, now));
            if !is_outdated && self.clients.len() < self.clients_max {
                break;
            }
            self.clients.remove(client);
            self.by_last_failure.remove(&failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn tenth_wrong_credential_blocks_until_the_first_is_a_minute_old() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        for n in 0..10 {
            let now = start + seconds(n);
            assert_eq!(attempts.blocked_for(ip(A), now), None, "{n}");
            assert_eq!(attempts.add_failure(ip(A), n, now), n == 9, "{n}");
        }
        let blocked = |after| attempts.blocked_for(ip(A), start + seconds(after));
        assert_eq!(blocked(9), Some(seconds(51)));
        assert_eq!(blocked(59), Some(seconds(1)));
        assert_eq!(blocked(60), None);
        // One has left the window, so one more is allowed.
        assert!(attempts.add_failure(ip(A), 10, start + seconds(60)));
        let blocked = attempts.blocked_for(ip(A), start + seconds(60));
        assert_eq!(blocked, Some(seconds(1)));
    }

    #[test]
    fn repeated_credential_counts_once_until_its_minute_is_over() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        for n in 0..1_000 {
            assert!(!attempts.add_failure(ip(A), 7, start + seconds(n)));
        }
        for n in 0..8 {
            assert!(!attempts.add_failure(ip(A), 100 + n, start + seconds(1_000)));
        }
        assert!(attempts.add_failure(ip(A), 200, start + seconds(1_000)));
    }

    #[test]
    fn other_addresses_are_not_blocked() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..10 {
            attempts.add_failure(ip(A), n, now);
        }
        assert!(attempts.blocked_for(ip(A), now).is_some());
        assert!(attempts.blocked_for(ip("::ffff:192.0.2.1"), now).is_some());
        assert_eq!(attempts.blocked_for(ip(B), now), None);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_blocked_together() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for n in 0..10 {
            attempts.add_failure(ip(&format!("2001:db8:0:1::{n}")), n, now);
        }
        let is_blocked = |address| attempts.blocked_for(ip(address), now).is_some();
        assert!(is_blocked("2001:db8:0:1:ffff::"));
        assert!(!is_blocked("2001:db8:0:2::"));
    }

    #[test]
    fn full_table_forgets_the_address_that_failed_longest_ago() {
        let (mut attempts, now) = (Attempts::with_clients_max(3), Instant::now());
        let address = |n: u64| IpAddr::from([10, 0, 0, n as u8]);
        for n in 0..3 {
            for fingerprint in 0..10 {
                attempts.add_failure(address(n), fingerprint, now);
            }
        }
        // The first address fails again, so the second is evicted.
        attempts.add_failure(address(0), 0, now);
        attempts.add_failure(address(3), 0, now);
        let blocked: Vec<bool> = (0..4)
            .map(|n| attempts.blocked_for(address(n), now).is_some())
            .collect();
        assert_eq!(blocked, [true, false, true, false]);
        for n in 0..1_000 {
            attempts.add_failure(address(n % 250), n, now);
            assert!(attempts.clients.len() <= 3);
            assert_eq!(attempts.clients.len(), attempts.by_last_failure.len());
        }
    }

    #[test]
    fn outdated_addresses_are_forgotten() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        for n in 0..100 {
            attempts.add_failure(IpAddr::from([10, 0, 0, n]), 0, start);
        }
        attempts.add_failure(ip(A), 0, start + WINDOW);
        assert_eq!(attempts.clients.len(), 1);
        assert_eq!(attempts.by_last_failure.len(), 1);
    }
}
