//! `POST /publish` and `POST /publish/ROOM`, authorised with a bearer token.

use humphrey::SubApp;
use humphrey::http::headers::HeaderType;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{Message, SendErrorReason};

use crate::responses::{json_response, text_response};
use crate::room_name::RoomName;
use crate::rooms::Rooms;
use crate::token_access::{Purpose, TokenAccess};

/// What the token is for.
pub(crate) static PUBLISHING: Purpose = Purpose {
    path: "/publish",
    realm: "publish",
    kind: "token for publishing",
    needed: "publishing needs the header 'Authorization: Bearer TOKEN' with the token of --publish-token or \
        --publish-token-file",
};

/// Routes `/publish` and `/publish/ROOM`.
pub(crate) fn routes(rooms: Rooms, access: TokenAccess) -> SubApp<()> {
    let to_everyone = (rooms.clone(), access.clone());
    SubApp::new()
        .with_stateless_route("/publish", move |request: Request| {
            let (rooms, access) = &to_everyone;
            publish(&request, RoomName::EVERYONE_PATH, rooms, access)
        })
        .with_stateless_route("/publish/*", move |request: Request| {
            let path = request.uri.strip_prefix("/publish");
            publish(&request, path.unwrap_or_default(), &rooms, &access)
        })
}

fn publish(request: &Request, path: &str, rooms: &Rooms, access: &TokenAccess) -> Response {
    if let Err(reject) = access.check(request) {
        return reject.into();
    }
    let room = match RoomName::from_path(path) {
        Ok(room) => room,
        Err(error) => return text_response(StatusCode::BadRequest, &error.to_string()),
    };
    let body = request.content.as_deref().unwrap_or_default();
    let message = if is_binary(request) {
        Message::new_binary(body)
    } else if std::str::from_utf8(body).is_ok() {
        Message::new(body)
    } else {
        let why = "the body is not UTF-8: send it with Content-Type: application/octet-stream";
        return text_response(StatusCode::BadRequest, why);
    };
    let members = rooms.members(&room);
    if let Err(reason) = rooms.channel(&room).publish_confirmed(message) {
        return not_published(reason);
    }
    let json = format!(
        "{{\"members\": {}{}}}\n",
        members.count,
        members.nodes_json()
    );
    json_response(json)
}

/// The response if a room did not keep a message.
fn not_published(reason: SendErrorReason) -> Response {
    let why = match reason {
        SendErrorReason::Rooms => {
            "the server has as many occupied rooms as --max-rooms allows, so this room cannot keep the message: retry later, or raise --max-rooms"
        }
        SendErrorReason::TooLarge => {
            let why = "the message is longer than a message between the nodes of a cluster may be";
            return text_response(StatusCode::RequestEntityTooLarge, why);
        }
        #[cfg(feature = "cluster")]
        SendErrorReason::Broker => {
            "the broker of the cluster can't be reached, so it is not known whether the message was kept: retry later"
        }
        _ => "the server is stopping: retry later",
    };
    text_response(StatusCode::ServiceUnavailable, why).with_header("Retry-After", "5")
}

fn is_binary(request: &Request) -> bool {
    let content_type = request.headers.get(HeaderType::ContentType);
    let media_type = content_type.and_then(|value| value.split(';').next());
    media_type.is_some_and(|media_type| {
        media_type
            .trim()
            .eq_ignore_ascii_case("application/octet-stream")
    })
}
