//! Protected reading over real sockets: tokens, the login form, sessions, and the limit of attempts. The file is long because a
//! token, the session that begins with it, and the attempts that count are tested with the same server and browser.
#![cfg(unix)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rustix::process::Signal;
use sha2::Sha256;
use support::events::Events;
use support::{Client, DEADLINE, Program, TempFile, eventually, http};
use tungstenite::Message;
use tungstenite::protocol::frame::coding::CloseCode;

const TOKEN: &str = "s3cret-for-readers";
const BEARER: &str = "Authorization: Bearer s3cret-for-readers\r\n";
const HTML: &str = "Accept: text/html,application/xhtml+xml;q=0.9\r\n";

/// A protected server, and the file with its token.
struct Protected {
    program: Program,
    token_file: TempFile,
}

impl Protected {
    /// `name` must be unique among all tests.
    fn start(name: &str, arguments: &[&str]) -> Self {
        let token_file = TempFile::new(&format!("login-{name}"), TOKEN.as_bytes());
        let options = ["--no-welcome", "--read-token-file", token_file.path()];
        let program = Program::start(&[&options, arguments].concat());
        Self {
            program,
            token_file,
        }
    }

    fn address(&self) -> SocketAddr {
        self.program.address()
    }

    fn get(&self, path: &str, headers: &str) -> Response {
        Response::of(http(self.address(), "GET", path, headers, b""))
    }

    fn post(&self, path: &str, headers: &str, body: &str) -> Response {
        Response::of(http(self.address(), "POST", path, headers, body.as_bytes()))
    }

    /// Sends the form, as a browser does.
    fn sign_in(&self, token: &str) -> Response {
        let origin = format!("Origin: http://{}\r\n", self.address());
        self.post(
            "/login",
            &format!("{HTML}{origin}{FORM}"),
            &format!("token={token}"),
        )
    }

    /// Signs in. Returns the `Cookie` header.
    fn cookie(&self) -> String {
        let response = self.sign_in(TOKEN);
        assert_eq!(response.status, 303, "{response:?}");
        cookie_header(&response)
    }
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn of((status, head, body): (u16, String, String)) -> Self {
        Self { status, head, body }
    }

    fn headers(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).first().copied()
    }
}

/// The `Cookie` header of a browser that has received the response.
fn cookie_header(response: &Response) -> String {
    let set = response.header("Set-Cookie").unwrap();
    format!("Cookie: {}\r\n", set.split(';').next().unwrap())
}

fn value_of(header_line: &str) -> &str {
    header_line.split_once(": ").unwrap().1.trim_end()
}

/// A session as the program makes it, which must not change: an update would end all sessions.
fn session(token: &str, expires_at: u64) -> String {
    let mac = |key: &[u8], text: &[u8]| {
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.chain_update(text).finalize().into_bytes()
    };
    let purpose = b"humphrey-broadcast session of a reader, version 1";
    let signed = format!("{expires_at}.{}", URL_SAFE_NO_PAD.encode([7; 16]));
    let mac = mac(&mac(token.as_bytes(), purpose), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac))
}

const YEAR_2100: u64 = 4_102_444_800;

#[test]
fn page_without_a_session_leads_to_the_form() {
    let server = Protected::start("form", &[]);
    let page = server.get("/", HTML);
    assert_eq!(page.status, 303, "{page:?}");
    assert_eq!(page.header("Location"), Some("login"));
    assert_eq!(page.header("Cache-Control"), Some("no-store"));

    let form = server.get("/login", HTML);
    assert_eq!(form.status, 200);
    for part in [
        "<form method=\"post\">",
        "<label for=\"token\">",
        "type=\"password\"",
        "autocomplete=\"current-password\"",
    ] {
        assert!(form.body.contains(part), "{part}: {}", form.body);
    }
    assert!(!form.body.contains("<script"), "{}", form.body);
    let policy = form.header("Content-Security-Policy").unwrap();
    for part in [
        "default-src 'none'",
        "style-src 'sha256-",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(
        !policy.contains("script-src") && !policy.contains("unsafe"),
        "{policy}"
    );
    // Browsers send the form without a usable Origin otherwise.
    assert_eq!(form.header("Referrer-Policy"), Some("same-origin"));
    assert_eq!(form.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(form.header("Set-Cookie"), None);

    // Programs get the reason.
    let page = server.get("/", "Accept: */*\r\n");
    assert_eq!(page.status, 401);
    assert!(page.body.contains("--read-token-file") && page.body.contains("/login"));
    assert_eq!(
        page.header("WWW-Authenticate"),
        Some("Bearer realm=\"read\"")
    );
}

#[test]
fn right_token_sets_a_cookie_that_does_not_contain_it() {
    let server = Protected::start("cookie", &[]);
    for wrong in ["wr0ng", "S3cret-for-readers", "s3cret-for-reader", "%00"] {
        let response = server.sign_in(wrong);
        assert_eq!(response.status, 401, "{wrong}");
        assert!(
            response
                .body
                .contains("role=\"alert\">That is not this server's token.")
        );
        assert!(!response.body.contains(wrong), "{}", response.body);
        assert_eq!(response.header("Set-Cookie"), None);
        assert!(response.header("WWW-Authenticate").is_some());
    }
    for nothing in ["", "%20"] {
        let response = server.sign_in(nothing);
        assert_eq!(response.status, 400, "{nothing:?}");
        assert!(response.body.contains("Enter the token."));
    }
    // With surrounding whitespace, as a copied line may have.
    let response = server.sign_in(&format!("+{TOKEN}%0D%0A"));
    assert_eq!(response.status, 303, "{response:?}");
    assert_eq!(response.header("Location"), Some("./"));
    assert_eq!(response.header("Cache-Control"), Some("no-store"));
    let set = response.header("Set-Cookie").unwrap();
    let (name, value) = set.split(';').next().unwrap().split_once('=').unwrap();
    assert_eq!(
        name,
        format!("humphrey-broadcast-{}", server.address().port())
    );
    assert!(
        !value.contains("s3cret") && value.matches('.').count() == 2,
        "{value}"
    );
    let attributes: Vec<&str> = set.split("; ").skip(1).collect();
    assert_eq!(
        attributes,
        ["Path=/", "Max-Age=2592000", "HttpOnly", "SameSite=Strict"]
    );
    // Programs get words instead of markup.
    let response = server.post("/login", FORM, "token=wrong");
    assert_eq!(
        (response.status, response.body.as_str()),
        (401, "That is not this server's token.\n")
    );
}

#[test]
fn cookie_or_bearer_opens_everything() {
    let mut server = Protected::start("opens", &["--history", "9"]);
    let cookie = server.cookie();
    let address = server.address();
    for credential in [cookie.as_str(), BEARER] {
        let (name, value) = match credential == BEARER {
            true => ("Authorization", value_of(credential)),
            false => ("Cookie", value_of(credential)),
        };
        let mut client = Client::connect_with(address, "/room", &[(name, value)]).unwrap();
        let mut events = Events::open(&server.program, "/events?since=now", credential);
        server.program.write(format!("for {name}\n").as_bytes());
        while client.text() != format!("for {name}") {}
        assert_eq!(events.next().0, format!("data: for {name}"));
        for path in ["/", "/clients", "/clients/room"] {
            assert_eq!(server.get(path, credential).status, 200, "{path}");
        }
        assert_eq!(server.post("/check", credential, "").status, 200);
    }
    // A browser that is signed in already needs no form.
    let form = server.get("/login", &format!("{HTML}{cookie}"));
    assert_eq!((form.status, form.header("Location")), (303, Some("./")));
    // Among other cookies, and beside the password that a proxy in front asks for.
    let other = format!(
        "Authorization: Basic dTpw\r\nCookie: a=b; {}; c\r\n",
        value_of(&cookie)
    );
    assert_eq!(server.get("/clients", &other).status, 200);
}

#[test]
fn every_path_without_credentials_is_refused() {
    let server = Protected::start(
        "refused",
        &["--publish-token", "publisher", "--history", "9"],
    );
    let (cookie, publisher) = (
        "Cookie: humphrey-broadcast=x; a=b\r\n",
        "Authorization: Bearer publisher\r\n",
    );
    for credentials in ["", "Authorization: Basic dTpw\r\n", publisher, cookie] {
        for path in [
            "/",
            "/clients",
            "/clients/room",
            "/events",
            "/events/room",
            "/events?since=now",
        ] {
            for method in ["GET", "HEAD"] {
                let (status, head, body) = http(server.address(), method, path, credentials, b"");
                assert_eq!(status, 401, "{method} {path}: {head}");
                let words = "reading needs the header 'Authorization: Bearer TOKEN'";
                assert!(method == "HEAD" || body.contains(words), "{body}");
            }
        }
        for path in [
            "/",
            "/room",
            "/health",
            "/login",
            "/publish",
            "/a/b",
            "/%ff",
            "/?since=now",
        ] {
            let (name, value) = match credentials.split_once(": ") {
                Some((name, value)) => (name, value.trim_end()),
                None => ("X-None", "x"),
            };
            let name = ["Authorization", "Cookie", "X-None"]
                .into_iter()
                .find(|known| *known == name);
            let refused = Client::connect_with(server.address(), path, &[(name.unwrap(), value)]);
            assert_eq!(refused.unwrap_err(), 401, "{path}");
        }
        // The page shows this to say why its handshake was refused.
        let check = server.post("/check", credentials, "");
        assert_eq!(check.status, 401);
        assert!(check.body.contains("/login"), "{}", check.body);
    }
    for path in ["/login", "/health", "/ready", "/client.js"] {
        assert_eq!(server.get(path, "").status, 200, "{path}");
    }
    assert_eq!(server.program.publish("", publisher, b"hi").0, 200);
    assert_eq!(server.program.publish("", BEARER, b"hi").0, 401);
}

#[test]
fn request_without_credentials_is_refused_before_its_body_is_read() {
    let server = Protected::start("body", &[]);
    for path in ["/check", "/clients"] {
        let mut socket = TcpStream::connect(server.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let method = if path == "/check" { "POST" } else { "GET" };
        write!(
            socket,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        .unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 401");
    }
}

#[test]
fn changed_expired_or_foreign_session_is_refused() {
    let server = Protected::start("sessions", &[]);
    let port = server.address().port();
    let status = |session: &str| {
        let cookie = format!("humphrey-broadcast-{port}={session}");
        let clients = server.get("/clients", &format!("Cookie: {cookie}\r\n"));
        let websocket = Client::connect_with(server.address(), "/", &[("Cookie", &cookie)]);
        assert_eq!(websocket.err().unwrap_or(200), clients.status, "{session}");
        (clients.status, clients.body)
    };
    let valid = session(TOKEN, YEAR_2100);
    assert_eq!(status(&valid).0, 200);
    assert_eq!(status(&format!("\"{valid}\"")).0, 200);
    let (code, words) = status(&session(TOKEN, 1_700_000_000));
    assert_eq!(code, 401);
    assert!(words.starts_with("the session has expired: "), "{words}");
    let later = valid.replace("4102444800", "4102444801");
    for wrong in [
        session("another token", YEAR_2100).as_str(),
        &later,
        &valid[1..],
        &valid[..valid.len() - 1],
        TOKEN,
    ] {
        let (code, words) = status(wrong);
        assert_eq!(code, 401, "{wrong}");
        assert!(words.starts_with("the credential is wrong: "), "{words}");
    }
}

#[test]
fn ten_wrong_credentials_block_their_address_only() {
    let server = Protected::start(
        "limit",
        &[
            "--trusted-proxy",
            "127.0.0.1",
            "--publish-token",
            "publisher",
        ],
    );
    let from = |n: u8| format!("X-Forwarded-For: 198.51.100.{n}\r\n");
    let own = format!("Origin: http://{}\r\n", server.address());
    let sign_in = |n: u8, token: &str| {
        server.post(
            "/login",
            &format!("{HTML}{own}{}{FORM}", from(n)),
            &format!("token={token}"),
        )
    };
    let known = cookie_header(&sign_in(1, TOKEN));
    let unknown = cookie_header(&sign_in(2, TOKEN));
    let bearer = |n: u8, token: &str| format!("{}Authorization: Bearer {token}\r\n", from(n));
    assert_eq!(
        server
            .get("/clients", &format!("{}{known}", from(1)))
            .status,
        200
    );
    // Missing credentials, and those of another kind, do not count; the same wrong one counts once.
    for _ in 0..20 {
        for headers in [
            from(1),
            from(1) + "Authorization: Basic dTpw\r\n",
            bearer(1, "wrong"),
        ] {
            assert_eq!(server.get("/clients", &headers).status, 401);
        }
    }
    // With the one above, ten in all: in the form, for publishing, in cookies and in headers.
    for n in 0..3 {
        assert_eq!(sign_in(1, &format!("wrong-{n}")).status, 401);
        let publish = bearer(1, &format!("wrong-{n}"));
        assert_eq!(server.program.publish("", &publish, b"no").0, 401);
        let cookie = format!("humphrey-broadcast-{}=wrong-{n}", server.address().port());
        let headers = format!("{}Cookie: {cookie}\r\n", from(1));
        assert_eq!(server.get("/clients", &headers).status, 401);
    }
    let expect_429 = |response: Response| {
        assert_eq!(response.status, 429, "{response:?}");
        let seconds: u64 = response.header("Retry-After").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert!(
            response
                .body
                .contains("oo many wrong tokens from your address")
        );
        assert_eq!(response.header("Set-Cookie"), None);
        response
    };
    // Right credentials are not accepted either, or guesses would go on.
    let form = expect_429(sign_in(1, TOKEN));
    assert!(form.body.contains("<form method=\"post\">") && form.body.contains("role=\"alert\""));
    expect_429(server.get("/clients", &bearer(1, TOKEN)));
    expect_429(server.get("/events", &bearer(1, TOKEN)));
    expect_429(server.get("/clients", &format!("{}{unknown}", from(1))));
    let publish = bearer(1, "publisher");
    assert_eq!(server.program.publish("", &publish, b"no").0, 429);
    expect_429(server.post("/publish", &publish, ""));
    let forwarded = "198.51.100.1";
    let headers = [
        ("X-Forwarded-For", forwarded),
        ("Authorization", value_of(BEARER)),
    ];
    assert_eq!(
        Client::connect_with(server.address(), "/", &headers).unwrap_err(),
        429
    );
    // A session that was used before goes on, and so do other addresses.
    assert_eq!(
        server
            .get("/clients", &format!("{}{known}", from(1)))
            .status,
        200
    );
    let headers = [("X-Forwarded-For", forwarded), ("Cookie", value_of(&known))];
    Client::connect_with(server.address(), "/", &headers).unwrap();
    assert_eq!(
        server
            .get("/clients", &format!("{}{unknown}", from(2)))
            .status,
        200
    );
    assert_eq!(server.get("/clients", &bearer(3, TOKEN)).status, 200);
    assert_eq!(sign_in(4, TOKEN).status, 303);
    let mut program = server.program;
    let said = program.expect_line("10 wrong tokens or sessions from 198.51.100.1");
    assert!(
        said.contains("warning: ") && !said.contains("wrong-"),
        "{said}"
    );
}

#[test]
fn session_is_prolonged_by_its_browser_only() {
    let server = Protected::start("prolonged", &["--session-lifetime", "3600"]);
    let cookie = server.cookie();
    let prolonged = server.post("/session", &cookie, "");
    assert_eq!(prolonged.status, 200, "{prolonged:?}");
    let set = prolonged.header("Set-Cookie").unwrap();
    assert!(
        set.contains("; Max-Age=3600; HttpOnly; SameSite=Strict"),
        "{set}"
    );
    assert_eq!(prolonged.header("Cache-Control"), Some("no-store"));
    let again = cookie_header(&prolonged);
    assert_eq!(server.get("/clients", &again).status, 200);
    // Of the same session.
    let nonce = |cookie: &str| cookie.split('.').nth(1).map(str::to_owned);
    assert_eq!(nonce(&again), nonce(&cookie));
    // The proof, which scripts can read, is no session.
    let name = value_of(&cookie).split('=').next().unwrap();
    let proof = format!("Cookie: {name}={}\r\n", prolonged.body);
    assert_eq!(server.get("/clients", &proof).status, 401);
    assert_eq!(server.post("/session", &proof, "").status, 401);
    assert_eq!(server.post("/session", "", "").status, 401);
    assert_eq!(server.post("/session", BEARER, "").status, 400);
    assert_eq!(server.get("/session", &cookie).status, 405);
    // A guess of the token counts, also beside a session.
    let guess = format!("{cookie}Authorization: Bearer guess\r\n");
    assert_eq!(server.post("/session", &guess, "").status, 401);
    // A page of another site may not.
    let foreign = format!("{cookie}Origin: https://example.com\r\n");
    assert_eq!(server.post("/session", &foreign, "").status, 403);
}

#[test]
fn session_that_was_signed_out_is_neither_valid_nor_prolonged() {
    let server = Protected::start("signed-out", &[]);
    let (cookie, other) = (server.cookie(), server.cookie());
    // Its answer may arrive after that of the sign-out.
    let prolonged = cookie_header(&server.post("/session", &cookie, ""));
    assert_eq!(server.get("/clients", &prolonged).status, 200);
    assert_eq!(server.post("/logout", &cookie, "").status, 303);
    for cookie in [&cookie, &prolonged] {
        let refused = server.get("/clients", cookie);
        assert_eq!(refused.status, 401);
        assert!(refused.body.starts_with("the session has expired"));
        assert_eq!(server.post("/session", cookie, "").status, 401);
    }
    assert_eq!(server.get("/clients", &other).status, 200);
}

#[test]
fn session_survives_a_restart_until_the_token_changes() {
    let server = Protected::start("restart", &[]);
    let cookie = server.cookie();
    let address = server.address().to_string();
    let Protected {
        mut program,
        token_file,
    } = server;
    program.signal(Signal::TERM);
    program.expect_exit(0);
    let options = ["--read-token-file", token_file.path()];
    let mut program = Program::start_at(&address, &options);
    assert_eq!(
        http(program.address(), "GET", "/clients", &cookie, b"").0,
        200
    );
    program.signal(Signal::TERM);
    program.expect_exit(0);
    std::fs::write(token_file.path(), "another token".replace(' ', "-")).unwrap();
    let program = Program::start_at(&address, &options);
    assert_eq!(
        http(program.address(), "GET", "/clients", &cookie, b"").0,
        401
    );
}

#[test]
fn programs_on_one_host_keep_their_sessions_apart() {
    let one = Protected::start("ports-one", &[]);
    let other = Protected::start("ports-other", &[]);
    let (first, second) = (one.cookie(), other.cookie());
    // A browser sends both to both.
    let both = format!("Cookie: {}; {}\r\n", value_of(&first), value_of(&second));
    assert_ne!(first.split('=').next(), second.split('=').next());
    for server in [&one, &other] {
        assert_eq!(server.get("/clients", &both).status, 200);
    }
    // Nodes with the same token accept each other's sessions: behind a balancer, the browser sees one port.
    let host = format!("Host: live.example\r\n{FORM}");
    let nodes =
        ["node-one", "node-other"].map(|name| Protected::start(name, &["--allow-host", "*"]));
    let ask = |node: &Protected, line: &str, headers: &str, body: &str| {
        let mut socket = TcpStream::connect(node.address()).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        write!(socket, "{line} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let mut response = String::new();
        socket.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head[9..12].parse().unwrap();
        Response::of((status, head.to_owned(), body.to_owned()))
    };
    let signed_in = ask(&nodes[0], "POST /login", "", &format!("token={TOKEN}"));
    let cookie = cookie_header(&signed_in);
    assert!(
        cookie.starts_with("Cookie: humphrey-broadcast="),
        "{cookie}"
    );
    assert_eq!(ask(&nodes[1], "GET /clients", &cookie, "").status, 200);
}

#[test]
fn sign_out_removes_the_cookie_and_closes_connections() {
    let server = Protected::start("logout", &[]);
    let (cookie, other) = (server.cookie(), server.cookie());
    let connect = |cookie: &str| {
        Client::connect_with(server.address(), "/", &[("Cookie", value_of(cookie))]).unwrap()
    };
    let (mut stays, closed) = (connect(&other), connect(&cookie));
    eventually("both are connected", || {
        server
            .get("/clients", &cookie)
            .body
            .contains("\"clients\": 2")
    });
    let response = server.post("/logout", &cookie, "");
    assert_eq!(
        (response.status, response.header("Location")),
        (303, Some("login"))
    );
    let name = format!("humphrey-broadcast-{}", server.address().port());
    let removed = response.headers("Set-Cookie");
    assert!(
        removed.len() == 2
            && removed
                .iter()
                .all(|set| set.contains("=; ") && set.contains("Max-Age=0")),
        "{removed:?}"
    );
    assert!(
        removed.iter().any(|set| set.starts_with(&name)),
        "{removed:?}"
    );
    closed.expect_close(CloseCode::Iana(3000));
    stays.send(Message::text("still here"));
    assert_eq!(stays.text(), "still here");
    // Without a session there is nothing to end.
    assert_eq!(server.post("/logout", "", "").status, 303);
    assert_eq!(server.get("/logout", "").status, 405);
}

#[test]
fn other_sites_cannot_sign_in_or_out() {
    let server = Protected::start("sites", &[]);
    let form = format!("token={TOKEN}");
    for headers in [
        "Origin: https://evil.example\r\n",
        "Origin: null\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\n",
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
    ] {
        for path in ["/login", "/logout"] {
            let response = server.post(path, &format!("{headers}{FORM}"), &form);
            assert_eq!(response.status, 403, "{path} {headers}");
            assert_eq!(response.header("Set-Cookie"), None);
        }
    }
    // A link on another site opens the page, for which browsers first send no cookie. The form's script opens it again.
    let link =
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    let page = server.get("/", &format!("{HTML}{link}"));
    assert_eq!((page.status, page.header("Location")), (303, Some("login")));
    let form = server.get("/login", &format!("{HTML}{link}"));
    assert_eq!(form.status, 200);
    assert!(
        form.body.contains(
            "<script>location.replace(\"./\" + location.search + location.hash)</script>"
        )
    );
    let policy = form.header("Content-Security-Policy").unwrap();
    assert!(
        policy.contains("script-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
}

#[test]
fn trusted_proxy_with_tls_gets_a_secure_cookie() {
    let server = Protected::start(
        "proxy",
        &[
            "--trusted-proxy",
            "127.0.0.1",
            "--allow-host",
            "live.example",
        ],
    );
    let plain = Protected::start("no-proxy", &["--allow-host", "live.example"]);
    let sign_in = |server: &Protected, headers: &str| {
        let response = server.post(
            "/login",
            &format!("{headers}{FORM}"),
            &format!("token={TOKEN}"),
        );
        assert_eq!(response.status, 303, "{response:?}");
        response.header("Set-Cookie").unwrap().to_owned()
    };
    let port = server.address().port();
    let client = "X-Forwarded-For: 198.51.100.1\r\n";
    let https = format!("{client}X-Forwarded-Proto: https\r\n");
    let set = sign_in(&server, &https);
    assert!(
        set.starts_with(&format!("__Host-humphrey-broadcast-{port}=")),
        "{set}"
    );
    assert!(set.ends_with("; Secure"), "{set}");
    let cookie = format!("Cookie: {}\r\n", set.split(';').next().unwrap());
    assert_eq!(
        server.get("/clients", &format!("{https}{cookie}")).status,
        200
    );
    // A proxy that does not say so for each request.
    assert_eq!(
        server.get("/clients", &format!("{client}{cookie}")).status,
        200
    );
    // Over TLS, a cookie without the prefix may come from another host of the domain.
    let without = cookie.replace("__Host-", "");
    assert_eq!(
        server.get("/clients", &format!("{https}{without}")).status,
        401
    );
    for headers in [
        client.to_owned(),
        format!("{client}X-Forwarded-Proto: https, http\r\n"),
    ] {
        assert!(!sign_in(&server, &headers).contains("Secure"), "{headers}");
    }
    // Nobody else is believed.
    assert!(!sign_in(&plain, &https).contains("Secure"));
}
