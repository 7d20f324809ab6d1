//! Protects what the server shows (`--read-token-file`).
//!
//! Every way to read goes through a [`Protection`]: handshakes, event streams, and the routes, all of which it wraps except
//! those in [`PUBLIC_ROUTES`]. A test in `main.rs` asks every route.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use humphrey::SubApp;
use humphrey::http::Request;
use humphrey::route::RouteHandler;
use humphrey_ws::procedures::CallError;
use humphrey_ws::{AsyncSender, AsyncStream, Reject, RequestHead, Subscription};

use crate::admin;
use crate::attempt_limiter::AttemptLimiter;
use crate::login;
use crate::read_access::{NEEDED, ReadAccess, Reader, redirect_with_query, wants_html};
use crate::token::Token;
use crate::token_access::is_below;

/// The routes that need no token: they show no messages, or have a token of their own.
pub(crate) const PUBLIC_ROUTES: [&str; 9] = [
    admin::CONNECTIONS,
    admin::ONE_CONNECTION,
    "/client.js",
    "/health",
    "/login",
    "/logout",
    "/publish",
    "/publish/*",
    "/ready",
];

/// Protects every way to read, if there is a token for reading.
#[derive(Clone)]
pub(crate) struct Protection(Option<Arc<ReadAccess>>);

impl Protection {
    /// With `None` instead of a token, every client may read.
    pub(crate) fn new(
        (token, session_lifetime): (Option<Token>, Duration),
        is_tls: bool,
        limiter: &Arc<AttemptLimiter>,
        sender: AsyncSender,
    ) -> Self {
        Self(token.map(|token| {
            let (limiter, reading) = (limiter.clone(), (token, session_lifetime));
            Arc::new(ReadAccess::new(reading, is_tls, limiter, sender))
        }))
    }

    /// The handler that prolongs the sessions of connections, if there is a token: the page calls it with the answer of
    /// `POST /session`.
    pub(crate) fn refresh_handler<S>(
        &self,
    ) -> Option<
        impl Fn(&AsyncStream<S>, &str) -> Result<SystemTime, CallError> + Send + Sync + 'static,
    >
    where
        S: Send + Sync + Default + 'static,
    {
        let access = self.0.clone()?;
        Some(move |stream: &AsyncStream<S>, proof: &str| {
            let user = stream.user().unwrap_or_default();
            let end = access.end_of_prolonged(user, proof);
            end.ok_or_else(|| CallError::refused("the session was not prolonged"))
        })
    }

    /// Protects the routes of a sub-app, except those in [`PUBLIC_ROUTES`].
    pub(crate) fn routes(&self, mut routes: SubApp<()>) -> SubApp<()> {
        let Some(access) = &self.0 else {
            return routes;
        };
        let protected = |route: RouteHandler<()>| {
            if PUBLIC_ROUTES.contains(&route.route.as_str()) {
                return route;
            }
            let (access, handler) = (access.clone(), route.handler);
            // A browser that opens the page gets the form. Elsewhere, a redirect would hide the reason.
            let is_page = route.route == "/";
            RouteHandler {
                handler: Box::new(move |request: Request, state| {
                    match access.reader_of_request(&request) {
                        Ok(_) => handler.serve(request, state),
                        Err(_) if is_page && wants_html(&request) => {
                            redirect_with_query("login", &request)
                        }
                        Err(denied) => denied.reject("read", NEEDED).into(),
                    }
                }),
                ..route
            }
        };
        routes.routes = routes.routes.into_iter().map(protected).collect();
        routes
    }

    /// The routes of the login, if there is one.
    pub(crate) fn login_routes(&self) -> Option<SubApp<()>> {
        self.0.clone().map(login::routes)
    }

    /// Rejects a request before its body is read, unless its route is public.
    pub(crate) fn check_body(&self, request: &RequestHead) -> Result<(), Reject> {
        let path = request.path();
        let is_public = PUBLIC_ROUTES.contains(&path)
            || [admin::CONNECTIONS, "/publish"]
                .map(|folder| is_below(path, folder))
                .contains(&true);
        match is_public {
            true => Ok(()),
            false => self.check(request).map(drop),
        }
    }

    /// Checks a handshake or a request for an event stream.
    pub(crate) fn check(&self, request: &RequestHead) -> Result<Reader, Reject> {
        let Some(access) = &self.0 else {
            return Ok(Reader::default());
        };
        let reader = access.reader_of_head(request);
        reader.map_err(|denied| denied.reject("read", NEEDED))
    }

    /// Protects the handler of an event stream. The stream ends with the reader's session.
    pub(crate) fn event_stream(
        &self,
        handler: impl Fn(&RequestHead, Arc<()>) -> Result<Subscription, Reject> + Send + Sync + 'static,
    ) -> impl Fn(&RequestHead, Arc<()>) -> Result<Subscription, Reject> + Send + Sync + 'static
    {
        let protection = self.clone();
        move |request, state| {
            let reader = protection.check(request)?;
            let subscription = handler(request, state)?;
            Ok(reader.limit_stream(subscription))
        }
    }
}
