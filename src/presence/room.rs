//! The presence of one room.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connections::Connections;
use super::member::{Fact, Member};
use super::remote::RemoteNode;
use super::update::{self, Entries, Extent};

/// The shortest time between two messages about a room, to other nodes and to clients.
const INTERVAL: Duration = Duration::from_millis(250);
/// The shortest time in which a node tells all its facts about a room twice, for so many members, and for any number.
const ALL_INTERVAL_MIN: Duration = Duration::from_millis(100);
const ALL_INTERVAL_MAX: Duration = Duration::from_secs(1);
const ALL_INTERVAL_MEMBERS: usize = 1_000;
/// How long after its last message a node repeats the version, so that nodes which have missed it notice.
const REPEAT_AFTER: Duration = Duration::from_secs(5);
/// How long a node that was asked may take to answer. One that doesn't has no members in the room, or is asked again.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// When a node tries again to tell others what it could not.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Changes that follow each other within this time are told together, such as a join and the state that is set then.
pub(super) const COALESCE: Duration = Duration::from_millis(20);
/// More nodes are asked together.
const ASKED_ALONE_MAX: usize = 4;

/// A question to a node.
#[derive(Clone, Copy)]
struct Ask {
    /// When it is asked next.
    at: Instant,
    left: u32,
}

/// How often a node is asked that does not answer: it may have no members in the room any longer.
const ASKED_MAX: u32 = 5;

/// A member with connections on this node.
pub(super) struct LocalMember<C> {
    pub(super) connections: Connections<C>,
    pub(super) state: Bytes,
    pub(super) set_at: u64,
    /// While there is no connection: when the member has left, and the connection that has left last.
    pub(super) leaving: Option<(Instant, C)>,
}

impl<C> Default for LocalMember<C> {
    fn default() -> Self {
        Self {
            connections: Connections::default(),
            state: Bytes::new(),
            set_at: 0,
            leaving: None,
        }
    }
}

impl<C> LocalMember<C> {
    fn fact(&self) -> Fact {
        Fact {
            connections: u32::try_from(self.connections.len()).unwrap_or(u32::MAX),
            state: self.state.clone(),
            set_at: self.set_at,
        }
    }

    /// Takes over a state that was set later on another node, so that it outlives the member's connections there. Returns whether
    /// it was later.
    fn adopt(&mut self, fact: &Fact) -> bool {
        let is_later = fact.is_later_than(self.set_at, &self.state);
        if is_later {
            self.set_at = fact.set_at;
            self.state = fact.state.clone();
        }
        is_later
    }
}

/// The presence of a room.
pub(super) struct RoomPresence<C> {
    pub(super) local: HashMap<Member, LocalMember<C>>,
    /// The members whose joining the room handler was told.
    pub(super) announced: HashSet<Member>,
    /// The last connections of those that have left, which the handler was not told.
    pub(super) departed: HashMap<Member, C>,
    pub(super) remote: HashMap<u32, RemoteNode>,
    /// Whether this node receives what others tell.
    pub(super) is_needed: bool,
    /// Whether clients of this node are told the changes.
    pub(super) is_watched: bool,
    /// The members of this node whose facts have changed since other nodes were told.
    unpublished: HashSet<Member>,
    /// Whether other nodes have to be told all facts.
    pub(super) publishes_all: bool,
    /// The members whose facts on any node have changed since clients were told.
    untold: HashSet<Member>,
    /// The nodes to ask for their facts.
    asks: BTreeMap<u32, Ask>,
    asks_all: bool,
    /// The version of the last message; 0 if there was none.
    version: u64,
    published: Option<Instant>,
    published_all: Option<Instant>,
    told: Option<Instant>,
    repeat_at: Option<Instant>,
    /// When all other nodes were last asked.
    asked: Option<Instant>,
    /// The nodes that have told all their facts since then.
    pub(super) answered: HashSet<u32>,
    /// The nodes that were asked, whose facts may be outdated, and when they have to have answered.
    unconfirmed: HashSet<u32>,
    confirm_by: Option<Instant>,
    /// The entry in the index of the table.
    pub(super) due: Option<Instant>,
}

impl<C> Default for RoomPresence<C> {
    fn default() -> Self {
        Self {
            local: HashMap::new(),
            announced: HashSet::new(),
            departed: HashMap::new(),
            remote: HashMap::new(),
            is_needed: false,
            is_watched: false,
            unpublished: HashSet::new(),
            // The other nodes know nothing to which changes could refer.
            publishes_all: true,
            untold: HashSet::new(),
            asks: BTreeMap::new(),
            asks_all: false,
            version: 0,
            published: None,
            published_all: None,
            told: None,
            repeat_at: None,
            asked: None,
            answered: HashSet::new(),
            unconfirmed: HashSet::new(),
            confirm_by: None,
            due: None,
        }
    }
}

/// How a node reaches the others.
pub(super) struct Publishing<'a> {
    /// The version of the last message about any room.
    pub(super) version: &'a mut u64,
    /// The most bytes of the facts in one message.
    pub(super) bytes_max: usize,
}

impl<C> RoomPresence<C> {
    /// Notes that the facts about a member of this node have changed.
    pub(super) fn changed_here(&mut self, member: &Member) {
        self.unpublished.insert(member.clone());
        self.changed_elsewhere(member.clone());
    }

    /// Notes that the facts about a member of another node have changed.
    pub(super) fn changed_elsewhere(&mut self, member: Member) {
        if self.is_watched {
            self.untold.insert(member);
        }
    }

    /// Gives a member of this node the state that was set last on other nodes, if that was later.
    pub(super) fn adopt_state(&mut self, member: &Member) {
        let Some(local) = self.local.get_mut(member) else {
            return;
        };
        let remote = self.remote.values();
        for fact in remote.filter_map(|node| node.facts.get(member)) {
            if local.adopt(fact) {
                self.unpublished.insert(member.clone());
            }
        }
    }

    /// What all nodes together know about a member; `None` if it is not here.
    fn merged(&self, member: &Member) -> Option<Fact> {
        let local = self.local.get(member).map(LocalMember::fact);
        let remote = self.remote.values();
        let remote = remote.filter_map(|node| node.facts.get(member));
        remote.fold(local, |merged, fact| match merged {
            Some(mut merged) => {
                merged.merge(fact);
                Some(merged)
            }
            None => Some(fact.clone()),
        })
    }

    /// All members, in no particular order.
    pub(super) fn members(&self) -> HashMap<Member, Fact> {
        let local = self.local.iter();
        let mut members: HashMap<_, _> = local
            .map(|(member, local)| (member.clone(), local.fact()))
            .collect();
        for (member, fact) in self.remote.values().flat_map(|node| &node.facts) {
            members.entry(member.clone()).or_default().merge(fact);
        }
        members
    }

    pub(super) fn end_watching(&mut self) {
        self.is_watched = false;
        self.untold.clear();
    }

    /// Asks all other nodes for their facts.
    pub(super) fn ask_all(&mut self) {
        self.asks_all = true;
        self.asked = None;
        self.postpone_confirmation();
    }

    /// Forgets that other nodes were asked, since what they tell is ignored while the room is not needed.
    pub(super) fn forget_answers(&mut self) {
        self.asks.clear();
        self.asks_all = false;
        self.asked = None;
        self.answered.clear();
        self.postpone_confirmation();
    }

    /// Asks a node for its facts, until it answers.
    pub(super) fn ask(&mut self, node: u32, now: Instant) {
        let ask = Ask {
            at: now,
            left: ASKED_MAX,
        };
        self.asks.entry(node).or_insert(ask);
    }

    /// Notes that a node has told all its facts.
    pub(super) fn has_answered(&mut self, node: u32) {
        self.asks.remove(&node);
        if self.asked.is_some() {
            self.answered.insert(node);
        }
    }

    /// When all nodes were last asked; `None` if they have to be asked.
    pub(super) fn asked(&self) -> Option<Instant> {
        self.asked.filter(|_| self.asks.is_empty())
    }

    /// Forgets that a node may have something to answer.
    pub(super) fn ask_no_more(&mut self, node: u32) {
        self.asks.remove(&node);
        self.answered.remove(&node);
        self.unconfirmed.remove(&node);
    }

    /// Notes that a node's facts are not outdated.
    pub(super) fn confirmed(&mut self, node: u32) {
        self.unconfirmed.remove(&node);
    }

    /// Judges no node until the next question to all.
    pub(super) fn postpone_confirmation(&mut self) {
        self.confirm_by = None;
        self.unconfirmed.clear();
    }

    /// Returns the nodes that have not answered in time.
    pub(super) fn take_unconfirmed(&mut self, now: Instant) -> HashSet<u32> {
        if self.confirm_by.is_none_or(|at| at > now) {
            return HashSet::new();
        }
        self.confirm_by = None;
        std::mem::take(&mut self.unconfirmed)
    }

    /// The changes since clients were told, as they are now, if clients may be told now.
    pub(super) fn changes(&mut self, now: Instant) -> Vec<(Member, Option<Fact>)> {
        if self.untold.is_empty() || self.told.is_some_and(|told| now < told + INTERVAL) {
            return Vec::new();
        }
        self.told = Some(now);
        let untold = std::mem::take(&mut self.untold);
        let untold = untold.into_iter();
        untold
            .map(|member| {
                let fact = self.merged(&member);
                (member, fact)
            })
            .collect()
    }

    /// Whether this node has told, or has to tell, something about its members. A node that has said nothing need not say that it
    /// has none.
    fn has_facts_to_publish(&self) -> bool {
        let knows_nothing = self.version == 0 && self.local.is_empty();
        !knows_nothing && (self.publishes_all || !self.unpublished.is_empty())
    }

    /// Nobody hears what this node tells.
    pub(super) fn publish_nothing(&mut self) {
        self.publishes_all = false;
        self.unpublished.clear();
        self.asks.clear();
        self.asks_all = false;
    }

    /// Notes that the last messages were not sent.
    pub(super) fn not_published(&mut self) {
        self.publishes_all = true;
        if self.is_needed {
            self.ask_all();
        }
    }

    /// The messages for the other nodes that are due.
    pub(super) fn updates(&mut self, now: Instant, publishing: Publishing<'_>) -> Vec<Vec<u8>> {
        let mut updates = self.questions(now);
        if self.has_facts_to_publish() {
            if self.publishes_all && self.may_publish_all(now) {
                self.publishes_all = false;
                self.published_all = Some(now);
                self.publish_all(publishing, &mut updates);
                self.published = Some(now);
                self.repeat_at = Some(now + REPEAT_AFTER);
            } else if !self.unpublished.is_empty() && self.may_publish(now) {
                self.publish_changes(publishing, &mut updates);
                self.published = Some(now);
                self.repeat_at = Some(now + REPEAT_AFTER);
            }
        } else if self.repeat_at.is_some_and(|at| at <= now) {
            self.repeat_at = None;
            match self.local.is_empty() {
                // The last word of a node, which may soon have forgotten the version.
                true => self.publish_all(publishing, &mut updates),
                false => updates.push(update::repeat(self.version)),
            }
        }
        updates
    }

    fn questions(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.asks.retain(|_, ask| ask.left > 0 || ask.at > now);
        let due = self.asks.values().filter(|ask| ask.at <= now).count();
        for ask in self.asks.values_mut().filter(|ask| ask.at <= now) {
            ask.left -= 1;
        }
        if std::mem::take(&mut self.asks_all) || due > ASKED_ALONE_MAX {
            self.asked = Some(now);
            self.answered.clear();
            self.unconfirmed = self.remote.keys().copied().collect();
            self.confirm_by = (!self.unconfirmed.is_empty()).then(|| now + ANSWER_MAX);
            for ask in self.asks.values_mut() {
                ask.at = now + ANSWER_MAX;
            }
            return vec![update::ask(None)];
        }
        let asks = self.asks.iter_mut().filter(|(_, ask)| ask.at <= now);
        asks.map(|(&node, ask)| {
            ask.at = now + ANSWER_MAX;
            update::ask(Some(node))
        })
        .collect()
    }

    fn may_publish(&self, now: Instant) -> bool {
        self.published.is_none_or(|at| now >= at + INTERVAL)
    }

    fn may_publish_all(&self, now: Instant) -> bool {
        let at = self.published_all.map(|at| at + self.all_interval());
        at.is_none_or(|at| now >= at)
    }

    fn all_interval(&self) -> Duration {
        let times = 1 + self.local.len() / ALL_INTERVAL_MEMBERS;
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        ALL_INTERVAL_MIN.saturating_mul(times).min(ALL_INTERVAL_MAX)
    }

    /// When this room has something to tell, if anything. `None` also if it only waits for others.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let soon = now + COALESCE;
        let after = |before: Option<Instant>, interval: Duration| {
            before.map_or(soon, |before| soon.max(before + interval))
        };
        let told = (!self.untold.is_empty()).then(|| after(self.told, INTERVAL));
        let publishes = self.has_facts_to_publish();
        let changes = publishes && !self.unpublished.is_empty() && !self.publishes_all;
        let changes = changes.then(|| after(self.published, INTERVAL));
        let all = publishes && self.publishes_all;
        let all = all.then(|| after(self.published_all, self.all_interval()));
        let asks_all = self.asks_all.then_some(soon);
        let asks = self.asks.values().map(|ask| ask.at).min();
        let asks = asks.map(|at| at.max(soon));
        let times = [
            told,
            changes,
            all,
            asks_all,
            asks,
            self.repeat_at,
            self.confirm_by,
        ];
        times.into_iter().flatten().min()
    }

    fn next_version(&mut self, publishing: &mut Publishing<'_>) -> (u64, u64) {
        *publishing.version += 1;
        let previous = std::mem::replace(&mut self.version, *publishing.version);
        (self.version, previous)
    }

    fn publish_changes(&mut self, mut publishing: Publishing<'_>, updates: &mut Vec<Vec<u8>>) {
        let mut members: Vec<_> = std::mem::take(&mut self.unpublished).into_iter().collect();
        while !members.is_empty() {
            let mut entries = Entries::default();
            while entries.has_room(publishing.bytes_max)
                && let Some(member) = members.pop()
            {
                let fact = self.local.get(&member).map(LocalMember::fact);
                entries.put(&member, fact.as_ref());
            }
            let (version, previous) = self.next_version(&mut publishing);
            updates.push(update::update(Extent::Changes, version, previous, &entries));
        }
    }

    fn publish_all(&mut self, mut publishing: Publishing<'_>, updates: &mut Vec<Vec<u8>>) {
        self.unpublished.clear();
        let local = self.local.iter();
        let mut facts: Vec<_> = local
            .map(|(member, local)| (member.clone(), local.fact()))
            .collect();
        let mut is_first = true;
        loop {
            let mut entries = Entries::default();
            while entries.has_room(publishing.bytes_max)
                && let Some((member, fact)) = facts.pop()
            {
                entries.put(&member, Some(&fact));
            }
            let is_last = facts.is_empty();
            let (version, previous) = self.next_version(&mut publishing);
            let extent = Extent::Part { is_first, is_last };
            updates.push(update::update(extent, version, previous, &entries));
            if is_last {
                return;
            }
            is_first = false;
        }
    }

    /// Whether nothing has to be kept.
    pub(super) fn is_unused(&self) -> bool {
        self.local.is_empty()
            && self.announced.is_empty()
            && !self.is_needed
            && !self.has_facts_to_publish()
            && self.repeat_at.is_none()
    }
}
