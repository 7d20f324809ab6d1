//! `/login`, `/session` and `/logout`: how a browser gets a session, prolongs it, and ends it.
//!
//! The form needs no script. Its action is its own address, so that browsers keep the fragment, which names the room, from the
//! link over the form to the page. The query, with the page's filters, is passed on.

use std::sync::Arc;
use std::time::Duration;

use humphrey::SubApp;
use humphrey::http::method::Method;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{Reject, RequestHead};

use crate::attempt_limiter::{Denied, too_many_words, whole_seconds};
use crate::read_access::{NEEDED, ReadAccess, redirect, redirect_with_query, wants_html};
use crate::responses::with_security_headers;

/// The form, with its style inline.
const FORM: &str = include_str!("login.html");

/// Where the form shows what went wrong.
const PROBLEM_MARK: &str = "<!-- PROBLEM -->\n";

/// Opens the page from a document of this site. Browsers do not send the cookie, which is `SameSite=Strict`, when a link on
/// another site leads here; with this request, they do. A redirect would still count as the other site's.
const OPEN_PAGE: &str = "location.replace(\"./\" + location.search + location.hash)";

/// Allows the form's inline style, and the script if there is one, by hash. The test below prints the hashes.
const STYLE_HASH: &str = "sha256-7qJTkkhfjqjDD97KHH27a6IbKQ1cdekkcTP253pEB1c=";
const SCRIPT_HASH: &str = "sha256-lchHI8fFcbQMv3wBs2UyCK5tu0Yzrlf0GycmHi9Juug=";

/// Why the form is shown again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    NoToken,
    WrongToken,
    TooMany { wait: Duration },
}

/// Routes `/login`, `/session` and `/logout`.
pub(crate) fn routes(access: Arc<ReadAccess>) -> SubApp<()> {
    let (of_logout, of_session) = (access.clone(), access.clone());
    SubApp::new()
        .with_stateless_route("/session", move |request: Request| {
            prolong(&of_session, &request)
        })
        .with_stateless_route("/login", move |request: Request| match request.method {
            Method::Post => sign_in(&access, &request),
            _ => form(&access, &request),
        })
        .with_stateless_route("/logout", move |request: Request| {
            let cookies = of_logout.end_session(&request).into_iter();
            cookies.fold(redirect("login"), |response, cookie| {
                response.with_header("Set-Cookie", cookie)
            })
        })
}

/// Prolongs the session, also that of open connections: the page calls `$refresh` with the proof in the body.
fn prolong(access: &ReadAccess, request: &Request) -> Response {
    let plain = |status: StatusCode, words: String| {
        with_security_headers(Response::new(status, words))
            .with_header("Content-Type", "text/plain; charset=utf-8")
            .with_header("Cache-Control", "no-store")
    };
    match access.prolong_session(request) {
        Ok(Some((cookie, proof))) => plain(StatusCode::OK, proof).with_header("Set-Cookie", cookie),
        Ok(None) => plain(
            StatusCode::BadRequest,
            "there is no session: a token does not expire\n".to_owned(),
        ),
        Err(denied) => denied.reject("read", NEEDED).into(),
    }
}

fn form(access: &ReadAccess, request: &Request) -> Response {
    match access.reader_of_request(request) {
        Ok(_) => redirect_with_query("./", request),
        Err(Denied::TooMany { wait }) => problem(request, Problem::TooMany { wait }),
        Err(_) => {
            let from_elsewhere = request
                .headers
                .get("Sec-Fetch-Site")
                .is_some_and(|site| ["cross-site", "same-site"].contains(&site));
            let (html, policy) = match from_elsewhere {
                true => (with_script(), content_security_policy(Some(SCRIPT_HASH))),
                false => (
                    FORM.replace(PROBLEM_MARK, ""),
                    content_security_policy(None),
                ),
            };
            let headers = html_headers(&policy).into_iter();
            headers.fold(
                Response::new(StatusCode::OK, html),
                |response, (name, value)| response.with_header(name, value),
            )
        }
    }
}

fn sign_in(access: &ReadAccess, request: &Request) -> Response {
    let Some(token) = token_of_form(request) else {
        return problem(request, Problem::NoToken);
    };
    match access.admit_token(request, &token) {
        Ok(()) => match access.begin_session(request) {
            Ok(cookie) => redirect_with_query("./", request).with_header("Set-Cookie", cookie),
            Err(error) => {
                log::error!("a session can't be signed: {error}");
                Reject::new(500).with_body("internal server error\n").into()
            }
        },
        Err(Denied::TooMany { wait }) => problem(request, Problem::TooMany { wait }),
        Err(_) => problem(request, Problem::WrongToken),
    }
}

/// The token that the form contains. Whitespace around it, as from a copied line, is ignored.
fn token_of_form(request: &Request) -> Option<String> {
    let body = std::str::from_utf8(request.content.as_deref()?).ok()?;
    // A form is encoded like a query (URL Standard, §5).
    let fields = RequestHead::new(format!("/?{body}"));
    let token = fields.query_param("token")?;
    let token = token.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

/// The response if a browser could not sign in: the form again, or plain text.
fn problem(request: &Request, problem: Problem) -> Response {
    let reject = Reject::new(problem.status());
    let reject = match problem {
        Problem::NoToken => reject,
        // RFC 9110 §15.5.2 requires a challenge. Browsers show the form, since they do not know this scheme.
        Problem::WrongToken => reject.with_header("WWW-Authenticate", "Bearer realm=\"read\""),
        Problem::TooMany { wait } => {
            reject.with_header("Retry-After", whole_seconds(wait).to_string())
        }
    };
    let words = problem.words();
    if !wants_html(request) {
        let reject = reject.with_header("Cache-Control", "no-store");
        return reject.with_body(format!("{words}\n")).into();
    }
    let policy = content_security_policy(None);
    let headers = html_headers(&policy).into_iter();
    let reject = headers.fold(reject, |reject, (name, value)| {
        reject.with_header(name, value)
    });
    reject.with_body(with_problem(&words)).into()
}

impl Problem {
    fn status(self) -> u16 {
        match self {
            Self::NoToken => 400,
            Self::WrongToken => 401,
            Self::TooMany { .. } => 429,
        }
    }

    /// One sentence, without markup.
    fn words(self) -> String {
        match self {
            Self::NoToken => "Enter the token.".to_owned(),
            Self::WrongToken => "That is not this server's token.".to_owned(),
            Self::TooMany { wait } => {
                let words = too_many_words(wait);
                let first = words[..1].to_ascii_uppercase();
                format!("{first}{}.", &words[1..])
            }
        }
    }
}

/// The form with a problem, which screen readers announce.
fn with_problem(words: &str) -> String {
    FORM.replace(
        PROBLEM_MARK,
        &format!("<p id=\"problem\" role=\"alert\">{words}</p>\n"),
    )
    .replace(
        "aria-describedby=\"hint\"",
        "aria-invalid=\"true\" aria-describedby=\"hint problem\"",
    )
}

fn with_script() -> String {
    FORM.replace(PROBLEM_MARK, "")
        .replace("</head>", &format!("<script>{OPEN_PAGE}</script>\n</head>"))
}

fn content_security_policy(script_hash: Option<&str>) -> String {
    let script = script_hash.map_or_else(String::new, |hash| format!("script-src '{hash}'; "));
    format!(
        "default-src 'none'; img-src data:; style-src '{STYLE_HASH}'; {script}base-uri 'none'; form-action 'self'; \
         frame-ancestors 'none'"
    )
}

fn html_headers(content_security_policy: &str) -> [(&'static str, &str); 6] {
    [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", content_security_policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        // With "no-referrer", browsers would send the form with "Origin: null".
        ("Referrer-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    fn hash(content: &str) -> String {
        format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
    }

    #[test]
    fn policy_allows_the_style_and_script_of_the_form() {
        let (_, style) = FORM.split_once("<style>").unwrap();
        let (style, _) = style.split_once("</style>").unwrap();
        assert_eq!(STYLE_HASH, hash(style), "the form has changed");
        assert_eq!(SCRIPT_HASH, hash(OPEN_PAGE), "the script has changed");
        assert!(with_script().contains(&format!("<script>{OPEN_PAGE}</script>")));
        let policy = content_security_policy(None);
        assert!(!policy.contains("script-src") && policy.contains("default-src 'none'"));
    }

    #[test]
    fn form_loads_nothing_and_needs_no_script() {
        for elsewhere in [
            "https://", "src=", "@import", "url(", "action=", "<script", " style=",
        ] {
            assert!(!FORM.contains(elsewhere), "{elsewhere}");
        }
        for (part, count) in [
            (PROBLEM_MARK, 1),
            ("aria-describedby=\"hint\"", 1),
            ("</head>", 1),
        ] {
            assert_eq!(FORM.matches(part).count(), count, "{part}");
        }
    }

    #[test]
    fn problem_is_announced_with_the_field() {
        let html = with_problem(&Problem::WrongToken.words());
        assert!(
            html.contains("<p id=\"problem\" role=\"alert\">That is not this server's token.</p>")
        );
        assert!(html.contains("aria-invalid=\"true\" aria-describedby=\"hint problem\""));
        let wait = Duration::from_secs(1);
        assert_eq!(
            Problem::TooMany { wait }.words(),
            "Too many wrong tokens from your address: try again in 1 second."
        );
    }
}
