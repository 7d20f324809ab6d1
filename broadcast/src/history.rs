//! `/history` and `/history/ROOM`: kept messages as JSON, for clients that have skipped some. `/rooms`: the rooms that the
//! program itself sends lines to, with the ids of their last messages, so that a page can count what it has not shown.

use std::fmt::Write;

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{HistoryId, RequestHead};

use crate::json::{push_id, push_quoted};
use crate::responses::{json_response, text_response};
use crate::room_name::RoomName;
use crate::rooms::Rooms;

/// The most rooms that a request to `/rooms` may ask for.
const ASKED_MAX: usize = 12;

/// Routes `/history`, `/history/ROOM` and `/rooms`.
pub(crate) fn routes(rooms: Rooms) -> SubApp<()> {
    let [of_everyone, of_room] = [rooms.clone(), rooms.clone()];
    SubApp::new()
        .with_stateless_route("/history", move |request: Request| {
            history(&of_everyone, RoomName::EVERYONE_PATH, &request)
        })
        .with_stateless_route("/history/*", move |request: Request| {
            let path = request.uri.strip_prefix("/history").unwrap_or_default();
            history(&of_room, path, &request)
        })
        .with_stateless_route("/rooms", move |request: Request| list(&rooms, &request))
}

/// The parameters of a request.
fn head(request: &Request) -> RequestHead {
    RequestHead::new(format!("{}?{}", request.uri, request.query))
}

/// The kept messages after `after`, and before `before` if that is given. With `of=sources`, those of all sources.
fn history(rooms: &Rooms, path: &str, request: &Request) -> Response {
    match kept(rooms, path, &head(request)) {
        Ok(json) => json_response(json),
        Err((status, why)) => text_response(status, &why),
    }
}

fn kept(rooms: &Rooms, path: &str, head: &RequestHead) -> Result<String, (StatusCode, String)> {
    let bad = |why: String| (StatusCode::BadRequest, why);
    let room = RoomName::from_path(path).map_err(|error| bad(error.to_string()))?;
    let name = match head.query_param("of").as_deref() {
        None => rooms.library_name(&room),
        Some("sources") => rooms.second_library_name(&RoomName::everyone()),
        Some(other) => return Err(bad(format!("of={other}: only of=sources is known"))),
    };
    let id = |name: &str| match head.query_param(name) {
        None => Ok(None),
        Some(text) => match text.parse::<HistoryId>() {
            Ok(id) => Ok(Some(id)),
            Err(error) => Err(bad(format!("{name}: {error}"))),
        },
    };
    let (after, before) = (id("after")?, id("before")?);
    let Some(name) = name.filter(|_| rooms.has_history()) else {
        let why = "this server keeps no messages here (see its --history)";
        return Err((StatusCode::NotFound, why.into()));
    };
    let (is_complete, messages) = rooms.kept_after(&name, after);
    let is_before = |id: &HistoryId| {
        before.is_none_or(|end| id.epoch() == end.epoch() && id.sequence() < end.sequence())
    };
    let mut json = format!("{{\"complete\":{is_complete},\"messages\":[");
    let wanted = messages.iter().filter(|(id, _)| is_before(id));
    for (at, (_, message)) in wanted.enumerate() {
        if at > 0 {
            json.push(',');
        }
        json += message.text().unwrap_or("null");
    }
    json += "]}\n";
    Ok(json)
}

/// The rooms of sources, and those that the request names, each with the id of its last message.
fn list(rooms: &Rooms, request: &Request) -> Response {
    let head = head(request);
    let mut names = rooms
        .sources()
        .map_or_else(Vec::new, |sources| sources.listed());
    let own = names.len();
    let pairs = head.query().split('&');
    // Of a parameter that is repeated, `query_param` returns the first value only.
    let values = pairs.filter_map(|pair| RequestHead::new(format!("/?{pair}")).query_param("room"));
    let asked = values.filter_map(|name| name.parse().ok());
    // In a cluster, asking for a room makes it on this node, which a stranger must not be able to do.
    let asked_max = if rooms.is_clustered() { 0 } else { ASKED_MAX };
    names.extend(asked.take(asked_max));
    let mut json = "{\"rooms\":[".to_owned();
    for (at, name) in names.iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        json += "{\"name\":";
        push_quoted(&mut json, name.as_str());
        let _ = write!(json, ",\"source\":{}", at < own);
        let last = rooms.library_name(name).filter(|_| rooms.has_history());
        push_id(
            &mut json,
            ",\"last\":",
            last.and_then(|name| rooms.last_id(&name)),
        );
        json.push('}');
    }
    json += "]}\n";
    json_response(json)
}
