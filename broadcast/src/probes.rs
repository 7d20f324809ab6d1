//! `/health` and `/ready`: the probes of orchestrators and load balancers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use humphrey::SubApp;
use humphrey::http::StatusCode;
use humphrey_ws::AsyncSender;

use crate::responses::text_response;
use crate::rooms::RoomSettings;

/// Answers the probes.
#[derive(Clone)]
pub(crate) struct Probes {
    sender: AsyncSender,
    /// Set before the shutdown begins.
    stopping: Arc<AtomicBool>,
    /// Whether there are rooms that get no messages without the broker.
    needs_broker: bool,
}

impl Probes {
    pub(crate) fn new(
        sender: AsyncSender,
        settings: &RoomSettings,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self {
            sender,
            stopping,
            needs_broker: settings.is_clustered && settings.history.is_some(),
        }
    }

    /// Routes `/health`, which is 200 while the process runs, and `/ready`, which is 503 while a load balancer should send
    /// no new clients.
    pub(crate) fn routes(&self) -> SubApp<()> {
        let probes = self.clone();
        SubApp::new()
            .with_stateless_route("/health", |_| text_response(StatusCode::OK, "ok"))
            .with_stateless_route("/ready", move |_| match probes.obstacle() {
                None => text_response(StatusCode::OK, "ready"),
                Some(why) => text_response(StatusCode::ServiceUnavailable, why),
            })
    }

    /// Why the server is not ready. `None` if it is.
    fn obstacle(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::SeqCst) {
            Some("not ready: the server is stopping")
        } else if self.sender.is_ready() {
            None
        } else if self.needs_broker {
            Some(
                "not ready: the server is not connected to all servers of --cluster, without which rooms with a history get no \
                 messages; its log says why",
            )
        } else {
            Some("not ready: the server is starting")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use humphrey_ws::AsyncWebsocketApp;
    use std::time::Duration;

    #[test]
    fn obstacle_names_what_is_missing() {
        let settings = |history, is_clustered| RoomSettings {
            history,
            rooms_max: None,
            announces_clients: false,
            is_clustered,
            sources: None,
        };
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new_with_config((), 1, 1);
        let stopping = Arc::new(AtomicBool::new(false));
        let of = |settings: RoomSettings| Probes::new(app.sender(), &settings, stopping.clone());
        let (plain, kept) = (of(settings(Some(1), false)), of(settings(Some(1), true)));
        let says = |probes: &Probes, part: &str| {
            let obstacle = probes.obstacle().unwrap();
            assert!(obstacle.contains(part), "{obstacle}");
        };
        says(&plain, "starting");
        says(&of(settings(None, true)), "starting");
        says(&kept, "--cluster");
        let running = app.with_address("127.0.0.1:0").start().unwrap();
        assert_eq!(plain.obstacle(), None);
        stopping.store(true, Ordering::SeqCst);
        says(&plain, "stopping");
        says(&kept, "stopping");
        running.shutdown(Duration::ZERO);
    }
}
