//! An index of the usage of a shared resource by connection and address. It finds the connection to evict without
//! visiting all others.
//!
//! The address with the highest usage is chosen first, then its largest connection: a client with many connections must
//! not get others evicted. Connections that use nothing take no entry.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

#[derive(Default)]
pub(crate) struct UsageIndex {
    /// Connections, ordered by address, then by usage.
    connections: BTreeSet<(IpAddr, usize, u32)>,
    totals: HashMap<IpAddr, usize>,
    /// Addresses, ordered by the usage of all their connections.
    addresses: BTreeSet<(usize, IpAddr)>,
    sum: usize,
    /// The number of searches for the largest.
    #[cfg(all(any(test, fuzzing), not(loom)))]
    pub(crate) lookups: u64,
}

impl UsageIndex {
    /// Sets a connection's usage. A slot's `address` must stay the same while it uses anything.
    pub(crate) fn set(&mut self, address: IpAddr, slot: u32, before: usize, now: usize) {
        if before == now {
            return;
        }
        self.sum = self.sum + now - before;
        if before > 0 {
            self.connections.remove(&(address, before, slot));
        }
        if now > 0 {
            self.connections.insert((address, now, slot));
        }
        let total = self.totals.entry(address).or_insert(0);
        if *total > 0 {
            self.addresses.remove(&(*total, address));
        }
        *total = *total + now - before;
        if *total > 0 {
            self.addresses.insert((*total, address));
        } else {
            self.totals.remove(&address);
        }
    }

    /// The usage of all connections.
    pub(crate) fn sum(&self) -> usize {
        self.sum
    }

    /// The largest connection of the address that uses most, and its usage.
    pub(crate) fn largest(&mut self) -> Option<(u32, usize)> {
        #[cfg(all(any(test, fuzzing), not(loom)))]
        {
            self.lookups += 1;
        }
        let &(_, address) = self.addresses.last()?;
        let of_address = (address, 0, 0)..=(address, usize::MAX, u32::MAX);
        let &(_, bytes, slot) = self.connections.range(of_address).next_back()?;
        Some((slot, bytes))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn largest_belongs_to_the_address_that_uses_most() {
        let mut index = UsageIndex::default();
        index.set(address(1), 0, 0, 100);
        for slot in 1..=5 {
            index.set(address(2), slot, 0, 20 + slot as usize);
        }
        let mut order = Vec::new();
        while let Some((slot, bytes)) = index.largest() {
            order.push(slot);
            index.set(address(if slot == 0 { 1 } else { 2 }), slot, bytes, 0);
        }
        // The second address uses 115 at first, and 90 without its largest connection.
        assert_eq!(order, [5, 0, 4, 3, 2, 1]);
        assert_eq!(index.sum(), 0);
        assert!(index.totals.is_empty() && index.addresses.is_empty());
    }

    #[test]
    fn usage_index_after_any_changes_is_exact() {
        let mut index = UsageIndex::default();
        let mut used = [0; 8];
        for step in 0..10_000_usize {
            let slot = step * 7 % 8;
            let now = step * step % 11;
            let of = address(slot as u8 % 3);
            index.set(of, slot as u32, used[slot], now);
            used[slot] = now;
            let total = |of: usize| {
                (0..8)
                    .filter(|s| s % 3 == of)
                    .map(|s| used[s])
                    .sum::<usize>()
            };
            assert_eq!(index.sum(), used.iter().sum::<usize>());
            match index.largest() {
                None => assert_eq!(index.sum(), 0),
                Some((slot, bytes)) => {
                    let slot = slot as usize;
                    assert_eq!(used[slot], bytes);
                    assert_eq!((0..3).map(total).max(), Some(total(slot % 3)));
                    let of_address = (0..8).filter(|s| s % 3 == slot % 3);
                    assert_eq!(of_address.map(|s| used[s]).max(), Some(bytes));
                }
            }
        }
    }
}
