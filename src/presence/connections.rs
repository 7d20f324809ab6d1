//! The connections of a member. Most have one.

use std::collections::HashMap;

use super::member::ConnectionKey;

/// Connections by their key.
pub(super) struct Connections<C> {
    first: Option<(ConnectionKey, C)>,
    others: HashMap<ConnectionKey, C>,
}

impl<C> Default for Connections<C> {
    fn default() -> Self {
        Self {
            first: None,
            others: HashMap::new(),
        }
    }
}

impl<C> Connections<C> {
    pub(super) fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn is_first(&self, key: &ConnectionKey) -> bool {
        self.first.as_ref().is_some_and(|(first, _)| first == key)
    }

    pub(super) fn contains(&self, key: &ConnectionKey) -> bool {
        self.is_first(key) || self.others.contains_key(key)
    }

    /// Any of them.
    pub(super) fn any(&self) -> Option<&C> {
        let first = self.first.as_ref().map(|(_, connection)| connection);
        first.or_else(|| self.others.values().next())
    }

    /// Adds a connection that is not contained.
    pub(super) fn insert(&mut self, key: ConnectionKey, connection: C) {
        match &self.first {
            None => self.first = Some((key, connection)),
            Some(_) => drop(self.others.insert(key, connection)),
        }
    }

    pub(super) fn remove(&mut self, key: &ConnectionKey) -> Option<C> {
        if self.is_first(key) {
            return self.first.take().map(|(_, connection)| connection);
        }
        let removed = self.others.remove(key);
        if self.others.is_empty() {
            self.others = HashMap::new();
        }
        removed
    }

    /// Removes all.
    pub(super) fn take(&mut self) -> Vec<C> {
        let others = std::mem::take(&mut self.others).into_values();
        let first = self.first.take().map(|(_, connection)| connection);
        first.into_iter().chain(others).collect()
    }
}
