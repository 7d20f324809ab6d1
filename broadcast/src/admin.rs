//! `GET /admin/connections` and `POST /admin/connections/ID/close`: which clients are slow, for administrators
//! (`--admin-token-file`).

use std::fmt::Write;

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{
    AsyncSender, CloseCode, ConnectionId, ConnectionInfo, ConnectionKind, Inspect, Inspection,
    RequestHead,
};

use crate::json::push_quoted;
use crate::responses::{json_response, text_response};
use crate::rooms;
use crate::token_access::{Purpose, TokenAccess};

/// What the token is for.
pub(crate) static ADMINISTRATION: Purpose = Purpose {
    path: CONNECTIONS,
    realm: "admin",
    kind: "token for administration",
    needed: "administration needs the header 'Authorization: Bearer TOKEN' with the token of --admin-token-file",
};

pub(crate) const CONNECTIONS: &str = "/admin/connections";

/// The paths of one connection.
pub(crate) const ONE_CONNECTION: &str = "/admin/connections/*";

/// How many connections are listed by default, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 10_000;

/// How much of a path is shown.
const PATH_BYTES_MAX: usize = 256;

/// The close code and reason of a connection that an administrator closes. After this code, the page, `listen` and `send` do
/// not reconnect (RFC 6455 §7.4.1).
const CLOSE_CODE: CloseCode = CloseCode::POLICY_VIOLATION;
const CLOSE_REASON: &str = "closed by an administrator";

/// What administrators may do. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) access: TokenAccess,
    pub(crate) sender: AsyncSender,
}

/// Routes `/admin/connections`, and `/admin/connections/ID/close`.
pub(crate) fn routes(admin: Admin) -> SubApp<()> {
    let of_list = admin.clone();
    SubApp::new()
        .with_stateless_route(CONNECTIONS, move |request: Request| {
            match of_list.access.check(&request) {
                Ok(()) => list(&request, &of_list.sender),
                Err(reject) => reject.into(),
            }
        })
        .with_stateless_route(ONE_CONNECTION, move |request: Request| {
            match admin.access.check(&request) {
                Ok(()) => close(&request, &admin.sender),
                Err(reject) => reject.into(),
            }
        })
}

fn list(request: &Request, sender: &AsyncSender) -> Response {
    match limit_of(&request.query) {
        Ok(limit) => json_response(to_json(&sender.inspect(Inspect::slowest(limit)))),
        Err(why) => text_response(StatusCode::BadRequest, &why),
    }
}

/// The value of `limit` in a query.
fn limit_of(query: &str) -> Result<usize, String> {
    let Some(limit) = RequestHead::new(format!("/?{query}")).query_param("limit") else {
        return Ok(LIMIT_DEFAULT);
    };
    match limit.parse() {
        Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
        _ => Err(format!("limit must be a number from 1 to {LIMIT_MAX}")),
    }
}

fn close(request: &Request, sender: &AsyncSender) -> Response {
    let rest = request.uri.strip_prefix(CONNECTIONS);
    let id = rest.and_then(|rest| rest.strip_prefix('/')?.strip_suffix("/close"));
    let Some(id) = id else {
        let why = format!("there is only POST {CONNECTIONS}/ID/close");
        return text_response(StatusCode::NotFound, &why);
    };
    let id: ConnectionId = match id.parse() {
        Ok(id) => id,
        Err(error) => return text_response(StatusCode::BadRequest, &format!("{error}")),
    };
    let found = sender.inspect(Inspect::connection(id));
    if found.is_complete && found.connections.is_empty() {
        let why =
            format!("this server has no connection {id}: it may have ended, or be another node's");
        return text_response(StatusCode::NotFound, &why);
    }
    sender.close(id, CLOSE_CODE, CLOSE_REASON);
    json_response(format!("{{\"closing\": \"{id}\"}}\n"))
}

/// One connection on each line, for people.
fn to_json(inspection: &Inspection) -> String {
    let mut json = String::with_capacity(64 + 400 * inspection.connections.len());
    let _ = write!(
        json,
        "{{\"connections_total\": {}, \"complete\": {}, \"connections\": [",
        inspection.total, inspection.is_complete
    );
    for (n, connection) in inspection.connections.iter().enumerate() {
        json += if n > 0 { ",\n" } else { "\n" };
        push_connection(&mut json, connection);
    }
    json += "\n]}\n";
    json
}

fn push_connection(json: &mut String, connection: &ConnectionInfo) {
    let _ = write!(
        json,
        "{{\"id\": \"{}\", \"lag_seconds\": {:.3}, \"waiting_bytes\": {}, \"connected_seconds\": {}, \"kind\": \"{}\"",
        connection.id,
        connection.lag.as_secs_f64(),
        connection.waiting_bytes,
        connection.connected_for.as_secs(),
        match connection.kind {
            ConnectionKind::EventStream => "event_stream",
            _ => "websocket",
        }
    );
    let _ = write!(
        json,
        ", \"client_ip\": \"{}\", \"peer_address\": \"{}\", \"path\": ",
        connection.client_ip, connection.peer
    );
    push_quoted(json, beginning(&connection.path));
    json.push_str(", \"rooms\": [");
    let rooms = connection.rooms.iter();
    let rooms = rooms.filter_map(|name| rooms::name_for_users(name));
    for (n, room) in rooms.enumerate() {
        json.push_str(if n > 0 { ", " } else { "" });
        push_quoted(json, room);
    }
    json.push_str("], \"user\": ");
    push_optional(json, connection.user.as_deref());
    json.push_str(", \"subprotocol\": ");
    push_optional(json, connection.subprotocol.as_deref());
    let _ = write!(
        json,
        ", \"tls\": {}, \"compressed\": {}, \"closing\": {}}}",
        connection.is_tls, connection.is_compressed, connection.is_closing
    );
}

/// The beginning of a path, which a client may have made long.
fn beginning(path: &str) -> &str {
    let mut end = path.len().min(PATH_BYTES_MAX);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
}

fn push_optional(json: &mut String, text: Option<&str>) {
    match text {
        Some(text) => push_quoted(json, text),
        None => json.push_str("null"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_a_number_within_its_bounds() {
        for (query, limit) in [
            ("", 100),
            ("other=1", 100),
            ("limit=1", 1),
            ("limit=10000", 10_000),
            ("a=b&limit=7", 7),
        ] {
            assert_eq!(limit_of(query), Ok(limit), "{query}");
        }
        for query in [
            "limit=",
            "limit=0",
            "limit=10001",
            "limit=-1",
            "limit=1.5",
            "limit=all",
            "limit=99999999999999999999",
        ] {
            assert!(limit_of(query).is_err(), "{query}");
        }
    }

    #[test]
    fn long_path_is_cut_at_a_character() {
        for (path, len) in [("", 0), ("/web", 4), (&*"/".repeat(999), 256)] {
            assert_eq!(beginning(path).len(), len);
        }
        let path = format!("/{}", "ü".repeat(200));
        assert_eq!(beginning(&path), &path[..255]);
    }

    #[test]
    fn answer_without_connections_is_json() {
        let json = to_json(&Inspection::default());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["connections"].as_array().unwrap().len(), 0);
        assert_eq!(json["complete"], false);
    }
}
