//! The web page, and the routes that it fetches.

use humphrey::SubApp;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::procedures::CLIENT_JS;

use crate::on_message::OnMessage;
use crate::responses::{json_response, text_response};
use crate::room_name::RoomName;
use crate::rooms::{Members, Rooms};

/// The page, with its style and script inline. It is built from the directory `page` beside `src`.
const PAGE: &str = include_str!("page.html");

/// Allows the page's inline style and script by hash, and scripts and connections of the same origin.
///
/// The hashes are constants, since a program that serves one fixed page needs no SHA-256. The test below prints them
/// when the page has changed, and `page/build.mjs` writes them.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; connect-src 'self'; img-src data:; \
    style-src 'sha256-dhIHvhl3u0pwzruOwcrJqsIIY/zz6xf/Y8wK+SW9qpA='; \
    script-src 'sha256-bx9CI9/FCEgB1hOu0tPGPi+sLEHLS+cAoPFFrjrkwRI='; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The answer of `/check` to a page that is allowed to connect but has no WebSocket connection.
const CHECK_PASSED: &str = "The server answers, and this page may connect. If the WebSocket fails anyway, a proxy in front of this server \
    probably removes the headers Upgrade and Connection: configure the proxy to forward them.";

/// What the page is told about the program, in attributes of its root element and in its title.
pub(crate) struct PageSettings {
    /// The title (`--title`).
    pub(crate) title: String,
    pub(crate) on_message: OnMessage,
    /// Whether reading needs a token, so that a browser has a session that it can end.
    pub(crate) needs_token: bool,
}

impl PageSettings {
    /// The page with these settings. Its style and script, whose hashes the policy contains, are the same for all settings.
    fn page(&self) -> String {
        let access = if self.needs_token { "token" } else { "open" };
        PAGE.replace("{{on_message}}", self.on_message.name())
            .replace("{{access}}", access)
            // Last, since it may contain anything.
            .replace("{{title}}", &escaped(&self.title))
    }
}

/// Text as the content of an element or an attribute in quotes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// Routes `/`, `/client.js`, `/clients`, `/clients/ROOM` and `/check`. Browsers hide why a handshake was refused; a
/// request to `/check` is refused for the same reason, with a readable body.
pub(crate) fn routes(rooms: Rooms, settings: &PageSettings) -> SubApp<()> {
    let all = rooms.clone();
    let page = settings.page();
    // The next version of the program may serve another page. After signing out, the Back button must not show this one.
    let caching = match settings.needs_token {
        true => "no-store",
        false => "no-cache",
    };
    SubApp::new()
        .with_stateless_route("/", move |_| embedded_file(&page, "html", caching))
        .with_stateless_route("/client.js", |_| {
            embedded_file(CLIENT_JS, "javascript", "no-cache")
        })
        .with_stateless_route("/check", |_| text_response(StatusCode::OK, CHECK_PASSED))
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
                Err(error) => text_response(StatusCode::BadRequest, &error.to_string()),
            }
        })
}

fn embedded_file(content: &str, kind: &str, caching: &str) -> Response {
    Response::new(StatusCode::OK, content)
        .with_header("Content-Type", format!("text/{kind}; charset=utf-8"))
        .with_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        .with_header("X-Content-Type-Options", "nosniff")
        .with_header("Cross-Origin-Resource-Policy", "same-origin")
        .with_header("Referrer-Policy", "no-referrer")
        .with_header("Cache-Control", caching)
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
    json_response(json)
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
            let expected = format!("{directive} 'sha256-{hash}'");
            assert!(
                CONTENT_SECURITY_POLICY.contains(&expected),
                "the page has changed; CONTENT_SECURITY_POLICY must now say: {expected}"
            );
        }
    }

    #[test]
    fn page_loads_nothing() {
        let own = PAGE.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in [
            "http://", "https://", "src=", "@import", "url(", "import{", "import(",
        ] {
            assert!(!own.contains(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn settings_are_escaped_in_the_page() {
        let settings = PageSettings {
            title: "<b>\"a\" & 'b'".into(),
            on_message: OnMessage::Ignore,
            needs_token: false,
        };
        let page = settings.page();
        assert!(page.contains("<title>&lt;b&gt;&quot;a&quot; &amp; &#39;b&#39;</title>"));
        assert!(page.contains("data-on-message=\"ignore\" data-access=\"open\""));
        assert!(!page.contains("{{"));
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
