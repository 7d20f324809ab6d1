//! Decides by its credentials whether a request may read: it needs the token, or a session that began with it.

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use humphrey::http::headers::HeaderType;
use humphrey::http::{Request, Response, StatusCode};
use humphrey_ws::{Accept, AsyncSender, CloseCode, RequestHead, Subscription};

use crate::attempt_limiter::{AttemptLimiter, Denied, Judged};
use crate::cookies::{self, Channel};
use crate::responses::with_security_headers;
use crate::session::{InvalidSession, Session, SessionKey, SessionSet};
use crate::token::{Token, bearer};

/// Which credential is needed. With what precedes it, it fits the 200 characters that `listen` and `send` print.
pub(crate) const NEEDED: &str = "reading needs the header 'Authorization: Bearer TOKEN' with the token of --read-token-file; browsers sign \
    in at /login";

/// The kinds of wrong credentials.
const TOKEN: &str = "token for reading";
const SESSION: &str = "session";

/// Checks the credentials of readers.
pub(crate) struct ReadAccess {
    token: Token,
    sessions: SessionKey,
    proofs: SessionKey,
    /// The sessions of browsers that have signed out: an answer of `/session` may have been on its way meanwhile.
    signed_out: Mutex<SessionSet>,
    /// How long a session is valid.
    lifetime: Duration,
    /// Whether the server speaks TLS itself.
    is_tls: bool,
    limiter: Arc<AttemptLimiter>,
    sender: AsyncSender,
}

/// A client that may read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reader {
    /// The session of a browser that has signed in.
    session: Option<Session>,
}

/// The parts of a request that identify its reader.
struct Presented<'a> {
    authorization: Option<&'a str>,
    cookies: Vec<&'a str>,
    client: IpAddr,
}

impl Reader {
    /// Has an event stream end with the reader's session.
    pub(crate) fn limit_stream(self, subscription: Subscription) -> Subscription {
        match self.session {
            Some(session) => subscription
                .user(session.user())
                .expires_at(session.expires_at),
            None => subscription,
        }
    }

    /// Has a connection end with the reader's session.
    pub(crate) fn limit_connection<S>(self, accept: Accept<S>) -> Accept<S> {
        match self.session {
            Some(session) => accept.user(session.user()).expires_at(session.expires_at),
            None => accept,
        }
    }
}

impl ReadAccess {
    pub(crate) fn new(
        (token, lifetime): (Token, Duration),
        is_tls: bool,
        limiter: Arc<AttemptLimiter>,
        sender: AsyncSender,
    ) -> Self {
        Self {
            sessions: SessionKey::new(&token),
            proofs: SessionKey::for_proofs(&token),
            signed_out: Mutex::default(),
            token,
            lifetime,
            is_tls,
            limiter,
            sender,
        }
    }

    /// Checks a handshake, a request for an event stream, or one whose body is still to be read.
    pub(crate) fn reader_of_head(&self, request: &RequestHead) -> Result<Reader, Denied> {
        let all = |name: &'static str| {
            let headers = request.headers();
            headers
                .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
                .map(|(_, value)| value)
        };
        let is_proxied = request.client_ip() != request.peer_addr().ip();
        let channel = self.channel(is_proxied, all("X-Forwarded-Proto").last());
        self.reader(&Presented {
            authorization: request.header("Authorization"),
            cookies: cookies::candidates(all("Cookie"), request.header("Host"), channel),
            client: request.client_ip(),
        })
    }

    /// Checks a request for a route.
    pub(crate) fn reader_of_request(&self, request: &Request) -> Result<Reader, Denied> {
        self.reader(&Presented {
            authorization: request.headers.get(HeaderType::Authorization),
            cookies: self.candidates(request),
            client: request.address.origin_addr,
        })
    }

    /// The cookies of a request that may be a session.
    fn candidates<'a>(&self, request: &'a Request) -> Vec<&'a str> {
        candidates_on(request, self.channel_of(request))
    }

    /// How the browser that has sent a request is connected.
    pub(crate) fn channel_of(&self, request: &Request) -> Channel {
        // The library lists a proxy only if it is trusted.
        let is_proxied = !request.address.proxies.is_empty();
        let protocols = request.headers.get_all("X-Forwarded-Proto");
        self.channel(is_proxied, protocols.last().copied())
    }

    /// Believes only a trusted proxy. If there are several, the last one has written the last protocol.
    fn channel(&self, is_proxied: bool, forwarded_protocol: Option<&str>) -> Channel {
        let protocol = forwarded_protocol.and_then(|protocols| protocols.rsplit(',').next());
        // Some proxies name the protocol of a handshake.
        let is_secure = protocol.is_some_and(|protocol| {
            let protocol = protocol.trim();
            ["https", "wss"]
                .iter()
                .any(|tls| protocol.eq_ignore_ascii_case(tls))
        });
        match self.is_tls || (is_proxied && is_secure) {
            true => Channel::Tls,
            false => Channel::Plain,
        }
    }

    fn reader(&self, presented: &Presented<'_>) -> Result<Reader, Denied> {
        let mut judged = Judged::default();
        if let Some(token) = presented.authorization.and_then(bearer) {
            match self.token.is(token) {
                true => judged.is_right = true,
                false => judged.wrong.push((TOKEN, token)),
            }
        }
        // A guess of the token counts as one, also beside a session.
        if !judged.is_right && judged.wrong.is_empty() {
            let now = SystemTime::now();
            for cookie in &presented.cookies {
                match self.sessions.verify(cookie, now) {
                    Ok(session) if self.has_signed_out(&session) => judged.has_expired = true,
                    Ok(session) => {
                        judged.is_right = true;
                        judged.session = Some(session);
                        break;
                    }
                    Err(InvalidSession::Expired) => judged.has_expired = true,
                    Err(InvalidSession::Unknown) => judged.wrong.push((SESSION, cookie)),
                }
            }
        }
        self.limiter
            .admit(presented.client, &judged, Instant::now())?;
        let session = judged.session;
        Ok(Reader { session })
    }

    /// Whether the browser has signed out. Each server remembers it for itself, until it ends.
    fn has_signed_out(&self, session: &Session) -> bool {
        self.signed_out().contains(session)
    }

    fn signed_out(&self) -> MutexGuard<'_, SessionSet> {
        let signed_out = self.signed_out.lock();
        signed_out.unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks the token that a browser has sent with the form.
    pub(crate) fn admit_token(&self, request: &Request, token: &str) -> Result<(), Denied> {
        let mut judged = Judged::default();
        match self.token.is(token) {
            true => judged.is_right = true,
            false => judged.wrong.push((TOKEN, token)),
        }
        let client = request.address.origin_addr;
        self.limiter.admit(client, &judged, Instant::now())
    }

    /// Begins a session. Returns the `Set-Cookie` header.
    ///
    /// # Errors
    ///
    /// The error of the operating system's random source.
    pub(crate) fn begin_session(&self, request: &Request) -> io::Result<String> {
        let session = self.sessions.issue(SystemTime::now(), self.lifetime)?;
        Ok(self.cookie(request, self.channel_of(request), &session))
    }

    /// The `Set-Cookie` header that stores a session.
    fn cookie(&self, request: &Request, channel: Channel, session: &str) -> String {
        let host = request.headers.get(HeaderType::Host);
        cookies::set(host, channel, session, self.lifetime)
    }

    /// Prolongs the browser's session. Returns the `Set-Cookie` header, and a proof with which the page's connections are
    /// prolonged, too ([`Self::end_of_prolonged`]). `None` if the reader has no session, but the token.
    pub(crate) fn prolong_session(
        &self,
        request: &Request,
    ) -> Result<Option<(String, String)>, Denied> {
        let reader = self.reader_of_request(request)?;
        let now = SystemTime::now();
        let prolonged = |session: Session| {
            // A session that has begun over TLS stays there, also if a proxy does not say now that there is TLS.
            let is_it = |text: &&str| self.sessions.verify(text, now) == Ok(session);
            let channel = match candidates_on(request, Channel::Tls).iter().any(is_it) {
                true => Channel::Tls,
                false => self.channel_of(request),
            };
            let session = session.until(now + self.lifetime);
            let cookie = self.cookie(request, channel, &self.sessions.text_of(&session));
            (cookie, self.proofs.text_of(&session))
        };
        Ok(reader.session.map(prolonged))
    }

    /// When the session of a connection's user ends, by a proof that it was prolonged.
    pub(crate) fn end_of_prolonged(&self, user: &str, proof: &str) -> Option<SystemTime> {
        let session = self.proofs.verify(proof, SystemTime::now()).ok()?;
        let is_of_user = session.user() == user && !self.has_signed_out(&session);
        is_of_user.then_some(session.expires_at)
    }

    /// Ends the browser's session: closes its connections. Returns the `Set-Cookie` headers that remove its cookies.
    pub(crate) fn end_session(&self, request: &Request) -> Vec<String> {
        let now = SystemTime::now();
        // Not counted as attempts, since the response does not depend on whether a cookie is valid.
        for cookie in self.candidates(request) {
            if let Ok(session) = self.sessions.verify(cookie, now) {
                let user = session.user();
                // Before its connections are closed, so that none of them is prolonged or replaced.
                self.signed_out().insert(&session);
                self.sender
                    .close_user(&user, CloseCode::UNAUTHORIZED, "signed out");
            }
        }
        let host = request.headers.get(HeaderType::Host);
        let channels = match self.channel_of(request) {
            Channel::Tls => &[Channel::Tls][..],
            Channel::Plain => &[Channel::Plain, Channel::Tls],
        };
        let clear = |&channel| cookies::clear(host, channel);
        channels.iter().map(clear).collect()
    }
}

/// The cookies of a request that may be a session, if its browser is connected like this.
fn candidates_on(request: &Request, channel: Channel) -> Vec<&str> {
    let host = request.headers.get(HeaderType::Host);
    let lines = request.headers.get_all(HeaderType::Cookie);
    cookies::candidates(lines.into_iter(), host, channel)
}

/// The response that has a browser open another path, which is relative: a proxy may serve the program under a path.
pub(crate) fn redirect(to: &str) -> Response {
    with_security_headers(Response::empty(StatusCode::SeeOther))
        .with_header("Location", to)
        .with_header("Cache-Control", "no-store")
}

/// [`redirect`] with the query of the request: the filters of the page, which a link may name.
pub(crate) fn redirect_with_query(to: &str, request: &Request) -> Response {
    match &*request.query {
        // The query comes from the client, and only printable ASCII without spaces is safe in the header.
        query if !query.is_empty() && query.bytes().all(|byte| byte.is_ascii_graphic()) => {
            redirect(&format!("{to}?{query}"))
        }
        _ => redirect(to),
    }
}

/// Whether the client is a browser that shows the response to its user.
pub(crate) fn wants_html(request: &Request) -> bool {
    let accept = request.headers.get(HeaderType::Accept);
    accept.is_some_and(|types| types.to_ascii_lowercase().contains("text/html"))
}
