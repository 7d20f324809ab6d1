//! Tests across the modules of the program: which routes need which token, and the printed summary.

use super::*;
use crate::protection::PUBLIC_ROUTES;
use crate::read_access::ReadAccess;
use crate::session::LIFETIME_DEFAULT;
use crate::token::Token;
use crate::token_access::Purpose;
use humphrey::http::Request;
use humphrey::http::address::Address;
use humphrey::http::headers::Headers;
use humphrey::http::method::Method;
use humphrey::route::RouteHandler;

/// What tests of routes need.
struct Server {
    app: App,
    settings: RoomSettings,
    limiter: Arc<AttemptLimiter>,
}

impl Server {
    fn new() -> Self {
        Self {
            app: AsyncWebsocketApp::new_with_config((), 1, 1),
            settings: RoomSettings {
                history: Some(9),
                rooms_max: None,
                announces_clients: false,
                is_clustered: false,
                sources: None,
            },
            limiter: Arc::default(),
        }
    }

    fn access(&self, token: &str, purpose: &'static Purpose) -> TokenAccess {
        TokenAccess::new(Token::new(token).unwrap(), &self.limiter, purpose)
    }

    fn admin(&self) -> Admin {
        Admin {
            access: self.access("admin", &admin::ADMINISTRATION),
            sender: self.app.sender(),
        }
    }

    fn probes(&self) -> Probes {
        Probes::new(self.app.sender(), &self.settings, Arc::default())
    }
}

/// The routes of a server with every token, by their patterns.
fn all_routes(read_token: Option<&str>) -> Vec<SubApp<()>> {
    let server = Server::new();
    let sender = server.app.sender();
    let page = PageSettings {
        title: "x".into(),
        on_message: OnMessage::Echo,
        needs_token: read_token.is_some(),
    };
    let read_token = read_token.map(|text| Token::new(text).unwrap());
    let protection = Protection::new(
        (read_token, LIFETIME_DEFAULT),
        false,
        &server.limiter,
        sender.clone(),
    );
    routes(
        &Rooms::new(sender, &server.settings),
        &page,
        &server.probes(),
        &protection,
        Tokens {
            publish: Some(&server.access("publisher", &publish::PUBLISHING)),
            admin: Some(&server.admin()),
        },
    )
}

/// The routes that need the token of administrators.
fn admin_routes(all: Vec<SubApp<()>>) -> Vec<RouteHandler<()>> {
    let routes = all.into_iter().flat_map(|app| app.routes);
    routes
        .filter(|route| route.route.starts_with("/admin"))
        .collect()
}

fn request(path: &str, method: Method, headers: &[(&str, &str)]) -> Request {
    let mut request = Request {
        method,
        uri: path.to_owned(),
        query: String::new(),
        version: "HTTP/1.1".to_owned(),
        headers: Headers::new(),
        content: None,
        address: Address::new("127.0.0.1:1").unwrap(),
    };
    for &(name, value) in headers {
        request.headers.add(name, value);
    }
    request
}

#[test]
fn every_route_without_credentials_is_refused_unless_public() {
    let mut public = Vec::new();
    let mut refused = 0;
    for route in all_routes(Some("s3cret"))
        .into_iter()
        .flat_map(|app| app.routes)
    {
        let path = route.route.replace('*', "room");
        let status = |method, headers: &[(&str, &str)]| {
            let request = request(&path, method, headers);
            u16::from(route.handler.serve(request, Arc::default()).status_code)
        };
        let right = [("Authorization", "Bearer s3cret")];
        for headers in [
            &[][..],
            &[("Authorization", "Basic s3cret")],
            &[("Authorization", "Bearer publisher")],
            &[("Cookie", "humphrey-broadcast=s3cret")],
        ] {
            for method in [Method::Get, Method::Post, Method::Put, Method::Delete] {
                match PUBLIC_ROUTES.contains(&route.route.as_str()) {
                    true => public.push(route.route.clone()),
                    false => assert_eq!(status(method, headers), 401, "{path} {headers:?}"),
                }
            }
        }
        if !PUBLIC_ROUTES.contains(&route.route.as_str()) {
            refused += 1;
            // A reader with the token has no session to prolong.
            let expected = if path == "/session" { 400 } else { 200 };
            assert_eq!(status(Method::Get, &right), expected, "{path}");
        }
    }
    public.sort();
    public.dedup();
    assert_eq!(public, PUBLIC_ROUTES, "every exception is a route");
    assert!(refused >= 4, "{refused}");
}

#[test]
fn every_admin_route_without_its_token_is_refused() {
    let server = Server::new();
    let of_metrics = metrics::routes(server.app.sender(), &server.probes(), Some(&server.admin()));
    let names = |routes: &[SubApp<()>]| -> Vec<String> {
        let routes = routes.iter().flat_map(|app| &app.routes);
        routes.map(|route| route.route.clone()).collect()
    };
    let public = ["/metrics", "/health", "/ready"];
    assert_eq!(
        names(&of_metrics),
        [&public[..], &[admin::CONNECTIONS, admin::ONE_CONNECTION]].concat()
    );
    for routes in [all_routes(Some("s3cret")), all_routes(None), of_metrics] {
        let routes = admin_routes(routes);
        assert_eq!(routes.len(), 2);
        for route in routes {
            let path = route.route.replace('*', "0-0-0/close");
            let status = |method, headers: &[(&str, &str)]| {
                let request = request(&path, method, headers);
                u16::from(route.handler.serve(request, Arc::default()).status_code)
            };
            for headers in [
                &[][..],
                &[("Authorization", "Basic admin")],
                &[("Authorization", "Bearer s3cret")],
                &[("Authorization", "Bearer publisher")],
                &[("Cookie", "humphrey-broadcast=admin")],
            ] {
                for method in [Method::Get, Method::Post, Method::Put, Method::Delete] {
                    assert_eq!(status(method, headers), 401, "{path} {headers:?}");
                }
            }
            let right = [("Authorization", "Bearer admin")];
            let expected = if route.route == admin::CONNECTIONS {
                200
            } else {
                404
            };
            assert_eq!(status(Method::Post, &right), expected, "{path}");
        }
    }
}

#[test]
fn every_route_without_a_token_for_reading_is_open() {
    let routes = all_routes(None).into_iter().flat_map(|app| app.routes);
    let routes: Vec<_> = routes.map(|route| (route.route, route.handler)).collect();
    assert!(routes.iter().all(|(route, _)| route != "/login"));
    for path in ["/", "/clients", "/check"] {
        let (_, handler) = routes.iter().find(|(route, _)| route == path).unwrap();
        let response = handler.serve(request(path, Method::Get, &[]), Arc::default());
        assert_eq!(u16::from(response.status_code), 200, "{path}");
    }
}

/// What would bypass the protection: only `build_app`, which protects what it adds, may add to the app. The metrics have an
/// address of their own.
#[test]
fn routes_and_streams_are_added_in_one_place() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".rs") || ["metrics.rs", "tests.rs"].contains(&&*name) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let count = |call: &str| code.matches(call).count();
        let (routes, streams, handshakes) = match name.as_str() {
            "main.rs" => (1, 2, 1),
            _ => (0, 0, 0),
        };
        assert_eq!(count(".with_routes("), routes, "{name}");
        assert_eq!(count(".with_event_stream("), streams, "{name}");
        assert_eq!(count(", streams())"), streams, "{name}");
        let both = count(".on_handshake(move") + count(".with_handshake_handler(");
        assert_eq!(both, handshakes, "{name}");
    }
}

#[test]
fn summary_without_losses_or_event_streams_omits_them() {
    let mut metrics = Metrics::default();
    metrics.connections_opened = 1;
    metrics.messages_out = 2;
    assert_eq!(summary(1, &metrics), "1 line, 1 client, 2 messages sent");
    metrics.event_streams_opened = 1;
    assert_eq!(
        summary(2, &metrics),
        "2 lines, 1 client, 1 event stream, 2 messages sent"
    );
    metrics.event_streams_opened = 0;
    metrics.connections_opened = 12;
    metrics.dropped.slow_consumer = 78;
    metrics.dropped.no_recipient = 3;
    assert_eq!(
        summary(0, &metrics),
        "0 lines, 12 clients, 2 messages sent, 78 dropped (slow clients), 3 without a recipient (no client connected)"
    );
}

#[test]
fn proof_of_a_prolonged_session_is_for_its_own_connections() {
    let server = Server::new();
    let reading = (Token::new("s3cret").unwrap(), LIFETIME_DEFAULT);
    let access = ReadAccess::new(reading, false, server.limiter.clone(), server.app.sender());
    let [one, other] = [(); 2].map(|()| {
        let set = access
            .begin_session(&request("/", Method::Get, &[]))
            .unwrap();
        let cookie = set.split(';').next().unwrap().to_owned();
        let browser = request("/session", Method::Post, &[("Cookie", &cookie)]);
        let (_, proof) = access.prolong_session(&browser).unwrap().unwrap();
        // The user of the connections, as the cookie names it.
        let user = cookie.split('.').nth(1).unwrap().to_owned();
        (user, proof)
    });
    assert!(access.end_of_prolonged(&one.0, &one.1).is_some());
    assert_eq!(access.end_of_prolonged(&one.0, &other.1), None);
    assert_eq!(access.end_of_prolonged("", &one.1), None);
    assert_eq!(access.end_of_prolonged(&one.0, "x"), None);
    // A session of TLS stays one, also if a proxy does not say now that there is TLS.
    let host = ("Host", "live.example.com");
    let set = access
        .begin_session(&request("/", Method::Get, &[host]))
        .unwrap();
    let value = set.split(['=', ';']).nth(1).unwrap();
    let cookie = format!("__Host-humphrey-broadcast={value}");
    let browser = request("/session", Method::Post, &[host, ("Cookie", &cookie)]);
    let (set, _) = access.prolong_session(&browser).unwrap().unwrap();
    assert!(set.starts_with("__Host-humphrey-broadcast=") && set.ends_with("; Secure"));
}
