//! Authorises requests with a bearer token: those that publish, and those of administrators.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use humphrey::http::Request;
use humphrey::http::headers::HeaderType;
use humphrey_ws::{Reject, RequestHead};

use crate::attempt_limiter::{AttemptLimiter, Denied, Judged};
use crate::token::{Token, bearer};

/// What a token is for.
#[derive(Debug)]
pub(crate) struct Purpose {
    /// The path that needs the token, with all paths below it.
    pub(crate) path: &'static str,
    /// The realm of the challenge (RFC 6750 §3).
    pub(crate) realm: &'static str,
    /// The kind of credential, by which wrong ones are counted.
    pub(crate) kind: &'static str,
    /// Which credential is needed, for people.
    pub(crate) needed: &'static str,
}

/// Authorises the requests of one purpose. Clones are cheap.
#[derive(Clone)]
pub(crate) struct TokenAccess {
    token: Arc<Token>,
    limiter: Arc<AttemptLimiter>,
    purpose: &'static Purpose,
}

impl TokenAccess {
    pub(crate) fn new(
        token: Token,
        limiter: &Arc<AttemptLimiter>,
        purpose: &'static Purpose,
    ) -> Self {
        Self {
            token: Arc::new(token),
            limiter: limiter.clone(),
            purpose,
        }
    }

    /// Rejects unauthorised requests before their body is read. Requests without a body are checked by the routes.
    pub(crate) fn check_body(&self, request: &RequestHead) -> Result<(), Reject> {
        match is_below(request.path(), self.purpose.path) {
            true => self.authorize(request.header("Authorization"), request.client_ip()),
            false => Ok(()),
        }
    }

    /// Checks a request for a route.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Reject> {
        let authorization = request.headers.get(HeaderType::Authorization);
        self.authorize(authorization, request.address.origin_addr)
    }

    fn authorize(&self, authorization: Option<&str>, client: IpAddr) -> Result<(), Reject> {
        let mut judged = Judged::default();
        if let Some(token) = authorization.and_then(bearer) {
            match self.token.is(token) {
                true => judged.is_right = true,
                false => judged.wrong.push((self.purpose.kind, token)),
            }
        }
        let admitted = self.limiter.admit(client, &judged, Instant::now());
        admitted.map_err(|denied| {
            let denied = match denied {
                // A header of another form is no attempt, but it is not missing either.
                Denied::Missing if authorization.is_some() => Denied::Wrong,
                denied => denied,
            };
            denied.reject(self.purpose.realm, self.purpose.needed)
        })
    }
}

/// Whether a path is this one, or below it.
pub(crate) fn is_below(path: &str, folder: &str) -> bool {
    let rest = path.strip_prefix(folder);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_below_begins_with_the_folder_and_a_slash() {
        for path in ["/publish", "/publish/", "/publish/a/b"] {
            assert!(is_below(path, "/publish"), "{path}");
        }
        for path in ["/", "/publishing", "/publis", "/a/publish"] {
            assert!(!is_below(path, "/publish"), "{path}");
        }
    }
}
