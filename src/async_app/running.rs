//! A handle for an app that runs in the background.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::presence::PresenceThreads;
use super::publish::AppShared;
use super::sender::AsyncSender;
use crate::drain::Drain;
use crate::engine::Engine;

/// An app that was started with [`AsyncWebsocketApp::start`](crate::AsyncWebsocketApp::start).
///
/// Dropping it does not stop the app.
#[must_use = "the app runs on, but nothing will wait for its end"]
pub struct RunningApp {
    pub(super) engine: Engine,
    pub(super) shared: Arc<AppShared>,
    /// `None` if no room has presence.
    pub(super) presence: Option<PresenceThreads>,
    pub(super) address: Option<SocketAddr>,
}

impl RunningApp {
    /// Returns the address that the app listens on, or `None` if a Humphrey or axum app listens for it.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Returns a handle that sends to clients from any thread.
    pub fn sender(&self) -> AsyncSender {
        AsyncSender(self.shared.clone())
    }

    /// Waits until the app has stopped.
    pub fn join(self) {
        self.engine.join();
        if let Some(presence) = self.presence {
            presence.join();
        }
        #[cfg(feature = "cluster")]
        self.shared.end_cluster();
    }

    /// Closes all connections evenly over a time ([`AsyncSender::shutdown_over`]), and waits until the app has stopped.
    pub fn shutdown_over(self, drain: impl Into<Drain>) {
        self.shared.shutdown_over(drain.into());
        self.join();
    }

    /// Shuts the app down ([`AsyncSender::shutdown`]) and waits until it has stopped.
    pub fn shutdown(self, wait: Duration) {
        self.shared.shutdown(wait);
        self.join();
    }
}

impl std::fmt::Debug for RunningApp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningApp")
            .field("local_addr", &self.address)
            .finish_non_exhaustive()
    }
}
