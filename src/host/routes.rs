//! HTTP routes of Humphrey sub-apps on the app's own port.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use humphrey::SubApp;
use humphrey::http::address::Address;
use humphrey::http::date::DateTime;
use humphrey::http::headers::{HeaderType, Headers};
use humphrey::http::method::Method;
use humphrey::krauss::wildcard_match;
use humphrey::route::RouteHandler;

use super::cors::Cors;
use super::file_offers::{FileOffers, OFFER_HEADER, run_with_offers};
use super::rejections::STATUS_HEADER;
use crate::engine::{BodyReader, Request, Response};
use crate::protocol::http::{self, BodyMode, Head, Persistence};
use crate::report::{Limited, limited};
use crate::request::Reject;

/// Rate-limited, because clients can cause it with requests.
static NO_FIRST_PIECE: Limited = Limited::new();

/// Sub-apps whose routes are served.
pub(crate) struct Routes<State> {
    sub_apps: Vec<SubApp<State>>,
    cors: Option<Cors>,
    /// Path patterns, each with the methods of the paths that match it, in the form of `Allow`.
    methods: Vec<(String, String)>,
}

/// A response of a route before it is encoded.
struct RouteAnswer {
    status: u16,
    headers: Vec<(String, String)>,
    body: AnswerBody,
}

enum AnswerBody {
    Whole(Vec<u8>),
    InPieces(BodyReader),
}

impl AnswerBody {
    fn bytes(&self) -> u64 {
        match self {
            Self::Whole(body) => body.len() as u64,
            Self::InPieces(body) => body.bytes(),
        }
    }

    /// Returns the body or its first piece, and the rest of it.
    fn begin(self) -> io::Result<(Vec<u8>, Option<BodyReader>)> {
        match self {
            Self::Whole(body) => Ok((body, None)),
            Self::InPieces(mut body) => {
                let piece = body.next_piece()?;
                Ok((piece, body.has_more().then_some(body)))
            }
        }
    }
}

impl<State> Routes<State> {
    /// Fails if a sub-app needs a feature that mounted routes do not have. The error says what to use instead.
    pub(crate) fn new(
        sub_apps: Vec<SubApp<State>>,
        cors: Option<Cors>,
        methods: Vec<(String, String)>,
    ) -> Result<Self, &'static str> {
        if sub_apps.iter().any(|sub_app| sub_app.cors.is_some()) {
            return Err(
                "a SubApp passed to with_routes has its own Cors, which with_routes can't read: \
                        remove it, and use AsyncWebsocketApp::with_cors",
            );
        }
        if sub_apps
            .iter()
            .any(|sub_app| !sub_app.websocket_routes.is_empty())
        {
            return Err(
                "a SubApp passed to with_routes has WebSocket routes, which would need a thread for each client: \
                        use the app's own handlers, which can distinguish paths with AsyncStream::path",
            );
        }
        let known: Vec<&str> = METHODS.split(", ").collect();
        let mut declared = methods.iter().flat_map(|(_, allow)| allow.split(", "));
        if declared.any(|method| !known.contains(&method)) {
            return Err(
                "a method passed to with_route_methods is not supported by Humphrey's routes: use GET, HEAD, POST, PUT, \
                        DELETE and OPTIONS, in capitals",
            );
        }
        Ok(Self {
            sub_apps,
            cors,
            methods,
        })
    }

    pub(crate) fn serve(&self, request: Request, state: &Arc<State>) -> Response {
        let Request {
            head,
            body,
            peer,
            client,
            keep_alive,
        } = request;
        let answer = self.answer(&head, body, (client, peer), state);
        self.finish(answer, &head, Persistence::keep_alive_if(keep_alive))
    }

    /// Returns the refusal of a request that no route accepts, whatever its body. Runs no code of the program.
    pub(crate) fn refusal(&self, head: &Head) -> Option<Vec<u8>> {
        let refusal = self.route(head).err()?;
        let response = self.finish(refusal, head, Persistence::Close);
        Some([response.head, response.body].concat())
    }

    /// Adds the CORS headers of the route's own response to a rejection of the body guard, so that scripts can read it.
    pub(crate) fn readable(&self, reject: Reject, head: &Head) -> Reject {
        let headers = self
            .cors
            .as_ref()
            .map(|cors| cors.response_headers(head, None));
        let headers = headers.into_iter().flatten();
        headers.fold(reject, |reject, (name, value)| {
            let has_header = reject
                .headers()
                .any(|(other, _)| other.eq_ignore_ascii_case(name));
            match has_header {
                true => reject,
                false => reject.with_header(name, value),
            }
        })
    }

    /// Adds the headers that every response needs, and encodes the response.
    fn finish(&self, mut answer: RouteAnswer, head: &Head, persistence: Persistence) -> Response {
        if let Some(cors) = &self.cors {
            let methods = answer.header("Allow").unwrap_or(METHODS).to_owned();
            let preflight = (head.method == "OPTIONS").then_some(methods.as_str());
            for (name, value) in cors.response_headers(head, preflight) {
                answer.add_if_missing(name, value);
            }
        }
        // A handler can ask for the end of the connection, but can't keep it open.
        let keep_alive = persistence == Persistence::KeepAlive && !answer.wants_close();
        answer
            .headers
            .retain(|(name, _)| !name.eq_ignore_ascii_case("Connection"));
        if keep_alive && head.minor_version == 0 {
            // RFC 9112 §9.3: HTTP/1.0 clients assume that the connection closes.
            answer
                .headers
                .push(("Connection".into(), "keep-alive".into()));
        }
        answer.add_if_missing("Server", "Humphrey".to_owned());
        answer.add_if_missing("Date", DateTime::now().to_string());
        let headers: Vec<(&str, &str)> = answer
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let head = http::response_head(
            answer.status,
            &headers,
            answer.body.bytes(),
            Persistence::keep_alive_if(keep_alive),
            BodyMode::of_method(&head.method),
        );
        let (body, rest) = match head.has_body.then(|| answer.body.begin()) {
            Some(Ok(begun)) => begun,
            Some(Err(error)) => {
                limited!(
                    NO_FIRST_PIECE,
                    error,
                    "a response was replaced with 500, because its body can't be read: {error}"
                );
                return Response::internal_error(false);
            }
            None => (Vec::new(), None),
        };
        Response {
            head: head.bytes,
            // Not appended to the head, because copying a large body is expensive.
            body,
            rest,
            keep_alive,
            charge: None,
        }
    }

    /// Finds Humphrey's method and the route for a request. The error is the response without a route.
    fn route(&self, head: &Head) -> Result<(Method, &RouteHandler<State>), RouteAnswer> {
        if head.target == "*" {
            // RFC 9110 §9.3.7: the request concerns the server as a whole.
            return Err(RouteAnswer::options(METHODS));
        }
        let host = head.header("Host").unwrap_or_default();
        let Some(route) = self.find(host, head.path()) else {
            return Err(RouteAnswer::plain(404, "not found\n"));
        };
        let declared = self.methods.iter();
        let declared = declared
            .map(|(path, allow)| (path, allow.as_str()))
            .find(|(path, _)| wildcard_match(path, head.path()));
        if let Some((_, allow)) = declared
            && !allow.split(", ").any(|known| known == head.method)
        {
            return Err(RouteAnswer::method_not_allowed(allow));
        }
        // HEAD is GET without the body (RFC 9110 §9.3.2); Humphrey has no name for it.
        let name = if head.method == "HEAD" {
            "GET"
        } else {
            &head.method
        };
        match Method::from_name(name) {
            // Like Humphrey's own App, answers OPTIONS for every existing route.
            Ok(Method::Options) => Err(RouteAnswer::options(
                declared.map_or(METHODS, |(_, allow)| allow),
            )),
            Ok(method) => Ok((method, route)),
            Err(_) => Err(RouteAnswer::plain(
                501,
                "this server does not support this method\n",
            )),
        }
    }

    fn answer(
        &self,
        head: &Head,
        body: Vec<u8>,
        (client, peer): (IpAddr, SocketAddr),
        state: &Arc<State>,
    ) -> RouteAnswer {
        let (method, route) = match self.route(head) {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        let address = Address {
            origin_addr: client,
            proxies: if client == peer.ip() {
                Vec::new()
            } else {
                vec![peer.ip()]
            },
            port: peer.port(),
        };
        let mut headers = Headers::new();
        for (name, value) in head.pairs() {
            headers.add(HeaderType::from(name), value);
        }
        let has_body = !body.is_empty() || head.header("Content-Length").is_some();
        let request = humphrey::http::Request {
            method,
            uri: head.path().to_owned(),
            query: head.query().to_owned(),
            version: format!("HTTP/1.{}", head.minor_version),
            headers,
            content: has_body.then_some(body),
            address,
        };
        let (response, offers) = run_with_offers(|| route.handler.serve(request, state.clone()));
        RouteAnswer::of_handler(response, offers)
    }

    /// Finds the first matching route of the sub-apps whose host matches, in the order in which they were mounted.
    fn find(&self, host: &str, path: &str) -> Option<&RouteHandler<State>> {
        self.sub_apps
            .iter()
            .filter(|sub_app| wildcard_match(&sub_app.host, host))
            .flat_map(|sub_app| &sub_app.routes)
            .find(|route| wildcard_match(&route.route, path))
    }
}

/// The methods that Humphrey's routes can have.
const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS";

impl RouteAnswer {
    /// Takes a handler's response, and the file that it refers to. A file is dropped if the handler has decided on another
    /// body after all.
    fn of_handler(response: humphrey::http::Response, mut offers: FileOffers) -> Self {
        let mut answer = Self {
            status: response.status_code.into(),
            headers: response
                .headers
                .iter()
                .map(|header| (header.name.to_string(), header.value))
                .collect(),
            body: AnswerBody::Whole(response.body),
        };
        let status = answer.header(STATUS_HEADER);
        if let Some(Ok(status)) = status.map(str::parse) {
            answer.status = status;
        }
        let file = answer
            .header(OFFER_HEADER)
            .and_then(|number| offers.take(number));
        if let Some(file) = file
            && answer.body.bytes() == 0
        {
            answer.body = AnswerBody::InPieces(file);
        }
        answer.headers.retain(|(name, _)| {
            ![OFFER_HEADER, STATUS_HEADER]
                .iter()
                .any(|own| own.eq_ignore_ascii_case(name))
        });
        answer
    }

    /// Creates a plain-text response that does not come from a route.
    fn plain(status: u16, body: &str) -> Self {
        let headers = [("Content-Type", "text/plain; charset=utf-8")];
        let headers = headers.iter().chain(&http::SAFE_HEADERS);
        let owned = headers.map(|&(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            status,
            headers: owned.collect(),
            body: AnswerBody::Whole(body.into()),
        }
    }

    /// RFC 9110 §15.5.6
    fn method_not_allowed(allow: &str) -> Self {
        let mut answer = Self::plain(405, &format!("this path allows only {allow}\n"));
        answer.headers.push(("Allow".into(), allow.into()));
        answer
    }

    /// RFC 9110 §9.3.7
    fn options(allow: &str) -> Self {
        let mut answer = Self::plain(204, "");
        answer.headers.retain(|(name, _)| name != "Content-Type");
        answer.headers.push(("Allow".into(), allow.into()));
        answer
    }

    fn add_if_missing(&mut self, name: &str, value: String) {
        if self.header(name).is_none() {
            self.headers.push((name.to_owned(), value));
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    fn wants_close(&self) -> bool {
        self.headers.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("Connection")
                && value
                    .split(',')
                    .any(|token| token.trim().eq_ignore_ascii_case("close"))
        })
    }
}
