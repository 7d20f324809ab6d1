//! `/events` and `/events/ROOM`: server-sent events with the messages that WebSocket clients get at `/` and `/ROOM`.

use std::sync::Arc;
use std::time::Duration;

use humphrey_ws::{Reject, RequestHead, Subscription};

use crate::admission::{Admission, bad_request};
use crate::room_name::RoomName;
use crate::rooms::MessageForm;

/// The subscription of an event stream. The first connection begins with the kept messages if the client asks for them with
/// `?since=all`; a reconnect replays the missed messages.
pub(crate) fn subscription(
    admission: &Admission,
    request: &RequestHead,
) -> Result<Subscription, Reject> {
    let path = request.path().strip_prefix("/events").unwrap_or_default();
    let room = RoomName::from_path(path).map_err(bad_request)?;
    let everyone = RoomName::everyone();
    let rooms = &admission.rooms;
    let announcements = |name| {
        let name = rooms.announcement_name(name, MessageForm::Plain);
        name.filter(|_| admission.announces_clients)
    };
    let mut subscription = match rooms.library_name(&everyone) {
        Some(name) => Subscription::room(name),
        None => Subscription::broadcasts(),
    };
    let second = rooms.second_library_name(&room);
    let others = [announcements(&everyone), second, announcements(&room)];
    for name in others.into_iter().flatten() {
        subscription = subscription.and_room(name);
    }
    Ok(match request.query_param("since").as_deref() {
        Some("all" | "") => subscription.with_history(),
        Some("now") | None => subscription,
        Some(other) => {
            return Err(bad_request(format_args!(
                "{other:?} is not a start of an event stream: use since=all or since=now; a browser resumes by itself"
            )));
        }
    })
}

/// The handler for [`subscription`]. A keep-alive comment follows `keep_alive` without a message.
pub(crate) fn handler(
    admission: Arc<Admission>,
    keep_alive: Duration,
) -> impl Fn(&RequestHead, Arc<()>) -> Result<Subscription, Reject> + Send + Sync + 'static {
    move |request, _| Ok(subscription(&admission, request)?.with_keep_alive(keep_alive))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rooms::{RoomSettings, Rooms};
    use humphrey_ws::AsyncWebsocketApp;

    fn of(path: &str, history: Option<usize>, announces_clients: bool) -> Subscription {
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
        let settings = RoomSettings {
            history,
            rooms_max: None,
            announces_clients,
            is_clustered: false,
            sources: None,
        };
        let on_message = crate::on_message::OnMessage::Echo;
        let admission = Admission::new(
            Rooms::new(app.sender(), &settings),
            announces_clients,
            on_message,
        );
        subscription(&admission, &RequestHead::new(path)).unwrap()
    }

    #[test]
    fn subscription_matches_a_websocket_client() {
        let broadcasts = Subscription::broadcasts;
        let room = Subscription::room;
        for (path, history, announces_clients, expected) in [
            ("/events", None, true, broadcasts()),
            ("/events/", None, false, broadcasts()),
            ("/events/a", None, true, broadcasts().and_room("plain/a")),
            ("/events/", Some(1), false, room("plain/")),
            (
                "/events/a%2Fb",
                Some(1),
                true,
                room("plain/")
                    .and_room("new/plain/")
                    .and_room("plain/a/b")
                    .and_room("new/plain/a/b"),
            ),
        ] {
            let all = format!("{path}?since=all");
            assert_eq!(
                of(&all, history, announces_clients),
                expected.clone().with_history(),
                "{all}"
            );
            for query in ["", "?since=now"] {
                let path = format!("{path}{query}");
                assert_eq!(of(&path, history, announces_clients), expected, "{path}");
            }
        }
    }
}
