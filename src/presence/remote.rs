//! The facts of another node about a room.

use std::collections::HashMap;

use super::member::{Fact, MEMBER_BYTES, Member};

pub(super) type Facts = HashMap<Member, Fact>;

/// Another node, as it tells of its members of a room.
#[derive(Default)]
pub(super) struct RemoteNode {
    /// The version of the last message; 0 if there was none.
    version: u64,
    pub(super) facts: Facts,
    /// The parts of all facts that have arrived, until the last one has.
    parts: Option<Facts>,
    /// About the memory that both take, and the node itself.
    facts_bytes: usize,
    parts_bytes: usize,
    /// The facts take too much memory, so they are not kept.
    pub(super) is_refused: bool,
}

/// What a message has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) changed: Vec<Member>,
    pub(super) outcome: Outcome,
}

/// What a message says about those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    /// None is missing.
    #[default]
    Current,
    /// All facts have arrived.
    All,
    /// A message is missing: the node has to be asked for all its facts.
    Gap,
    /// It was executed late, after the connection that it was sent on was lost, so it says nothing new.
    Late,
}

impl Applied {
    fn nothing(outcome: Outcome) -> Self {
        Self {
            changed: Vec::new(),
            outcome,
        }
    }
}

impl RemoteNode {
    /// The node says that its last message had this version.
    pub(super) fn repeated(&self, version: u64) -> Applied {
        Applied::nothing(match version > self.version {
            true => Outcome::Gap,
            false => Outcome::Current,
        })
    }

    /// Applies changes that follow the message `previous`.
    pub(super) fn change(
        &mut self,
        version: u64,
        previous: u64,
        facts: Vec<(Member, Option<Fact>)>,
    ) -> Applied {
        if version <= self.version {
            return Applied::nothing(Outcome::Late);
        }
        if previous != self.version || self.parts.is_some() {
            return Applied::nothing(Outcome::Gap);
        }
        self.version = version;
        let mut changed = Vec::with_capacity(facts.len());
        for (member, fact) in facts {
            let now = weight(&member, fact.as_ref());
            let before = match fact.clone() {
                Some(fact) => self.facts.insert(member.clone(), fact),
                None => self.facts.remove(&member),
            };
            self.facts_bytes = self.facts_bytes + now - weight(&member, before.as_ref());
            if before != fact {
                changed.push(member);
            }
        }
        Applied {
            changed,
            outcome: Outcome::Current,
        }
    }

    /// Collects a part of all facts. With the last one, they replace those that were known.
    pub(super) fn part(
        &mut self,
        (version, previous): (u64, u64),
        (is_first, is_last): (bool, bool),
        facts: Vec<(Member, Option<Fact>)>,
    ) -> Applied {
        if version <= self.version {
            return Applied::nothing(Outcome::Late);
        }
        if is_first {
            self.parts = Some(Facts::new());
            self.parts_bytes = 0;
        } else if previous != self.version {
            self.parts = None;
            self.parts_bytes = 0;
        }
        let Some(parts) = &mut self.parts else {
            return Applied::nothing(Outcome::Gap);
        };
        self.version = version;
        for (member, fact) in facts {
            let Some(fact) = fact else { continue };
            self.parts_bytes += weight(&member, Some(&fact));
            if let Some(before) = parts.insert(member.clone(), fact) {
                self.parts_bytes -= weight(&member, Some(&before));
            }
        }
        if !is_last {
            return Applied::nothing(Outcome::Current);
        }
        let all = self.parts.take().unwrap_or_default();
        self.facts_bytes = std::mem::take(&mut self.parts_bytes);
        let before = std::mem::replace(&mut self.facts, all);
        let is_other = |(member, fact): &(&Member, &Fact)| before.get(member) != Some(fact);
        let now = self.facts.iter().filter(is_other);
        let mut changed: Vec<_> = now.map(|(member, _)| member.clone()).collect();
        let gone = before.into_keys();
        changed.extend(gone.filter(|member| !self.facts.contains_key(member)));
        Applied {
            changed,
            outcome: Outcome::All,
        }
    }

    /// Keeps no facts of this node any longer. Returns those that were known.
    pub(super) fn refuse(&mut self) -> Facts {
        let facts = std::mem::take(&mut self.facts);
        *self = Self {
            is_refused: true,
            ..Self::default()
        };
        facts
    }

    /// About the memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        MEMBER_BYTES + self.facts_bytes + self.parts_bytes
    }
}

fn weight(member: &Member, fact: Option<&Fact>) -> usize {
    fact.map_or(0, |fact| member.weight() + fact.state.len())
}
