//! `/events` and `/events/ROOM`: what a WebSocket client gets at `/` and `/ROOM`, as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use humphrey_ws::{Reject, RequestHead, Subscription};

use crate::clients::{Door, bad_request};
use crate::name::RoomName;
use crate::rooms::Form;

/// What a client of an event stream gets. Who comes for the first time begins with what is kept, unless it asks for
/// `?since=now`; who comes again, with what it has missed.
pub(crate) fn subscription(door: &Door, request: &RequestHead) -> Result<Subscription, Reject> {
    let path = request.path().strip_prefix("/events").unwrap_or_default();
    let room = RoomName::of_path(path).map_err(bad_request)?;
    let everyone = RoomName::everyone();
    let library_name = |name, is_announcement| {
        let name = door.rooms.library_name(name, Form::Plain, is_announcement);
        name.filter(|_| door.announces || !is_announcement)
    };
    let mut subscription = match library_name(&everyone, false) {
        Some(name) => Subscription::room(name),
        None => Subscription::broadcasts(),
    };
    for (name, is_announcement) in [(&everyone, true), (&room, false), (&room, true)] {
        if let Some(name) = library_name(name, is_announcement) {
            subscription = subscription.and_room(name);
        }
    }
    Ok(match request.query_param("since").as_deref() {
        Some("now") => subscription,
        _ => subscription.with_history(),
    })
}

/// The same, as the library asks for it; a stream is silent for so long at most.
pub(crate) fn handler(
    door: Arc<Door>,
    keep_alive: Duration,
) -> impl Fn(&RequestHead, Arc<()>) -> Result<Subscription, Reject> + Send + Sync + 'static {
    move |request, _| Ok(subscription(&door, request)?.with_keep_alive(keep_alive))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rooms::{Rooms, Setup};
    use humphrey_ws::AsyncWebsocketApp;

    fn of(path: &str, history: Option<usize>, announces: bool) -> Subscription {
        let app: AsyncWebsocketApp<()> = AsyncWebsocketApp::new();
        let setup = Setup {
            history,
            rooms_max: None,
            announces,
        };
        let on_message = crate::on_message::OnMessage::Echo;
        let door = Door::new(Rooms::new(app.sender(), setup), announces, on_message);
        subscription(&door, &RequestHead::new(path)).unwrap()
    }

    #[test]
    fn it_is_what_a_websocket_client_gets() {
        let broadcasts = Subscription::broadcasts;
        let room = Subscription::room;
        for (path, history, announces, expected) in [
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
            assert_eq!(
                of(path, history, announces),
                expected.clone().with_history(),
                "{path}"
            );
            let now = format!("{path}?since=now");
            assert_eq!(of(&now, history, announces), expected, "{now}");
        }
    }
}
