//! The web page, and the routes that it fetches.

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::procedures::CLIENT_JS;

use crate::room_name::RoomName;
use crate::rooms::{Members, Rooms};

/// The page, with its style and script inline.
const PAGE: &str = include_str!("page.html");

/// Allows the page's inline style and script by hash, and scripts and connections of the same origin.
///
/// The hashes are constants, since a program that serves one fixed page needs no SHA-256. The test below prints them
/// when the page has changed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    style-src 'sha256-a2YXVPG0jOvevL/PvEwNXzrIa3E5lK64xEV8rdu4z0s='; \
    script-src 'self' 'sha256-DwTeOT+Jf6fNGBcesqJ31X/ukUq2PeMVeMAcPbeXltQ='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The answer of `/check` to a page that is allowed to connect but has no WebSocket connection.
const CHECK_PASSED: &str = "The server answers, and this page may connect. If the WebSocket fails anyway, a proxy in front of this server \
    probably removes the headers Upgrade and Connection: configure the proxy to forward them.\n";

/// Routes `/`, `/client.js`, `/clients`, `/clients/ROOM` and `/check`. Browsers hide why a handshake was refused; a
/// request to `/check` is refused for the same reason, with a readable body.
pub(crate) fn routes(rooms: Rooms) -> SubApp<()> {
    let all = rooms.clone();
    SubApp::new()
        .with_stateless_route("/", |_| embedded_file(PAGE, "html"))
        .with_stateless_route("/client.js", |_| embedded_file(CLIENT_JS, "javascript"))
        .with_stateless_route("/check", |_| {
            with_security_headers(Response::new(StatusCode::OK, CHECK_PASSED))
                .with_header("Content-Type", "text/plain; charset=utf-8")
                .with_header("Cache-Control", "no-store")
        })
        .with_stateless_route("/clients", move |_| {
            client_counts(all.members(&RoomName::everyone()), None)
        })
        .with_stateless_route("/clients/*", move |request: Request| {
            let path = request.uri.strip_prefix("/clients").unwrap_or_default();
            match RoomName::from_path(path) {
                Ok(room) => {
                    let in_room = (!room.is_everyone()).then(|| rooms.members(&room));
                    client_counts(rooms.members(&RoomName::everyone()), in_room)
                }
                Err(error) => {
                    let answer = Response::new(StatusCode::BadRequest, format!("{error}\n"));
                    with_security_headers(answer)
                        .with_header("Content-Type", "text/plain; charset=utf-8")
                }
            }
        })
}

/// Adds headers that forbid MIME sniffing, framing and embedding in other sites.
pub(crate) fn with_security_headers(response: Response) -> Response {
    response
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Cross-Origin-Resource-Policy", "same-origin")
        .with_header("Content-Security-Policy", "frame-ancestors 'none'")
}

fn embedded_file(content: &'static str, kind: &str) -> Response {
    Response::new(StatusCode::OK, content)
        .with_header("Content-Type", format!("text/{kind}; charset=utf-8"))
        .with_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Cross-Origin-Resource-Policy", "same-origin")
        .with_header("Referrer-Policy", "no-referrer")
        // The next version of the program may serve another page.
        .with_header("Cache-Control", "no-cache")
}

fn client_counts(all: Members, in_room: Option<Members>) -> Response {
    let in_room = in_room.map_or_else(String::new, |members| {
        format!(", \"room\": {}", members.count)
    });
    let json = format!(
        "{{\"clients\": {}{in_room}{}}}\n",
        all.count,
        all.nodes_json()
    );
    with_security_headers(Response::new(StatusCode::OK, json))
        .with_header("Content-Type", "application/json")
        .with_header("Cache-Control", "no-store")
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use sha2::{Digest, Sha256};

    /// The content of the only element of that name.
    fn element(name: &str) -> &'static str {
        let (open, close) = (format!("<{name}"), format!("</{name}>"));
        assert_eq!(PAGE.matches(&open).count(), 1, "{name}");
        let open = PAGE.find(&open).unwrap();
        let from = open + PAGE[open..].find('>').unwrap() + 1;
        &PAGE[from..PAGE.find(&close).unwrap()]
    }

    #[test]
    fn policy_allows_the_style_and_script_of_the_page() {
        for (directive, name) in [("style-src", "style"), ("script-src", "script")] {
            let hash = base64::engine::general_purpose::STANDARD
                .encode(Sha256::digest(element(name).as_bytes()));
            let own = if name == "script" { "'self' " } else { "" };
            let expected = format!("{directive} {own}'sha256-{hash}'");
            assert!(
                CONTENT_SECURITY_POLICY.contains(&expected),
                "the page has changed; CONTENT_SECURITY_POLICY must now say: {expected}"
            );
        }
    }

    #[test]
    fn page_loads_nothing_from_other_origins() {
        for elsewhere in ["http://", "https://", "src=", "@import", "url("] {
            let allowed = PAGE.matches("http://www.w3.org/2000/svg").count();
            let found = PAGE.matches(elsewhere).count();
            let expected = if elsewhere == "http://" { allowed } else { 0 };
            assert_eq!(found, expected, "{elsewhere}");
        }
        let imports: Vec<&str> = PAGE
            .lines()
            .filter(|line| line.contains("import ") || line.contains("import("))
            .collect();
        assert_eq!(imports, [r#"import { connect } from "./client.js";"#]);
    }

    #[test]
    fn page_never_renders_a_message_as_markup() {
        for markup in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
        ] {
            assert!(!PAGE.contains(markup), "{markup}");
        }
    }
}
