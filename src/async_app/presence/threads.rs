//! The threads that tell changes of presence: one to other nodes and to clients, one to the room handler, which may block.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::handle::{PresenceHandle, PresentConnection};
use super::watching::frames_of_changes;
use crate::async_app::publish::{AppShared, Blocking, Here};
use crate::engine::PushError;
use crate::message::Message;
use crate::presence::{Announced, Fact, Member};
use crate::sync::lock;

/// The running threads.
pub(in crate::async_app) struct PresenceThreads {
    presence: Arc<PresenceHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl PresenceThreads {
    /// Starts the threads. `announce` calls the room handler, if there is one. They end with the engine.
    ///
    /// # Errors
    ///
    /// If the operating system can't start a thread.
    pub(in crate::async_app) fn start(
        shared: &Arc<AppShared>,
        presence: Arc<PresenceHandle>,
        announce: Option<impl Fn(Announced<PresentConnection>) + Send + 'static>,
    ) -> io::Result<Self> {
        let mut running = Self {
            presence: presence.clone(),
            threads: Vec::new(),
        };
        let (app, telling) = (shared.clone(), presence.clone());
        running.spawn("humphrey_ws presence", move || app.run_presence(&telling))?;
        if let Some(announce) = announce {
            let app = shared.clone();
            let started = running.spawn("humphrey_ws rooms", move || {
                while let Some(announced) = presence.wait_for_announced() {
                    if catch_unwind(AssertUnwindSafe(|| announce(announced))).is_err() {
                        app.count_handler_panic();
                    }
                }
            });
            if let Err(error) = started {
                running.join();
                return Err(error);
            }
        }
        Ok(running)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Ends the threads, once the room handler was told that all members have left. Call it when the engine has stopped.
    pub(in crate::async_app) fn join(mut self) {
        self.presence.stop();
        for thread in self.threads.drain(..) {
            // A panic has been reported by the thread.
            let _ = thread.join();
        }
    }
}

impl AppShared {
    fn run_presence(&self, presence: &PresenceHandle) {
        let Some(hub) = self.engine() else {
            return;
        };
        let release = |PresentConnection(session)| hub.release_session(session);
        let mut not_before = None;
        while presence.wait_until_due(not_before, release, || hub.has_ended()) {
            not_before = self.tell_presence(presence);
        }
    }

    /// Tells the other nodes, and the clients that watch rooms, what has changed. Returns when to go on, if it is not done.
    fn tell_presence(&self, presence: &PresenceHandle) -> Option<Instant> {
        self.end_watching_later(presence);
        let flush = presence.flush(self.cluster_bytes_max(), |room| {
            self.reaches_other_nodes(room)
        });
        for node in flush.nodes_to_ask {
            self.ask_node(node);
        }
        for of_room in flush.rooms {
            if !self.tell_other_nodes(&of_room.room, &of_room.updates) {
                presence.not_published(&of_room.room);
            }
            if !of_room.changes.is_empty() {
                self.tell_watchers(presence, &of_room.room, of_room.changes);
            }
        }
        flush.goes_on_at
    }

    /// Tells clients what has changed. Never waits for a mailbox: what does not fit is told later, with what has changed until then.
    fn tell_watchers(
        &self,
        presence: &PresenceHandle,
        room: &Arc<str>,
        changes: Vec<(Member, Option<Fact>)>,
    ) {
        let Some(hub) = self.running() else {
            return;
        };
        // The lock ensures that the list for a new watcher is not older than the changes before it.
        let mut watchers = lock(&presence.watchers);
        let Some(of_room) = watchers.of(room) else {
            presence.unwatch(room);
            return;
        };
        for frame in frames_of_changes(room, &changes, hub.message_bytes_max()) {
            let message = Message::new_binary(frame.as_slice());
            let here = Some(Here::Room(&of_room));
            let told = self.broadcast_here(hub, here, None, &message, Blocking::Try);
            if told == Err(PushError::Full) {
                presence.not_told(room, changes);
                return;
            }
        }
    }

    /// The longest message to other nodes.
    fn cluster_bytes_max(&self) -> usize {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            return cluster.message_bytes_max();
        }
        usize::MAX
    }

    fn reaches_other_nodes(&self, room: &Arc<str>) -> bool {
        #[cfg(feature = "cluster")]
        return self
            .cluster
            .get()
            .is_some_and(|cluster| cluster.reaches(room));
        #[cfg(not(feature = "cluster"))]
        {
            let _ = room;
            false
        }
    }

    /// Asks a node for the members of all its rooms. If that is not queued, what is missing is noticed later.
    fn ask_node(&self, node: u32) {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            cluster.ask_for_presence(node);
        }
        let _ = node;
    }

    /// Returns whether all updates were queued.
    fn tell_other_nodes(&self, room: &Arc<str>, updates: &[Vec<u8>]) -> bool {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = self.cluster.get() {
            return updates
                .iter()
                .all(|update| cluster.tell_presence(room, update));
        }
        let _ = room;
        updates.is_empty()
    }
}
