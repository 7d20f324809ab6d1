//! Cross-origin resource sharing (CORS): the headers that tell a browser whether a page of another origin may read a response
//! (WHATWG Fetch §3.3). The caller decides which origins are allowed.

/// The cross-origin access to a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access<'a> {
    /// The value of `Access-Control-Allow-Origin`: `*` or the request's origin. `None` forbids the page to read the response.
    pub(crate) allowed_origin: Option<&'a str>,
    /// Whether the page may send cookies with the request. Browsers reject this together with `*`.
    pub(crate) allows_credentials: bool,
    /// Whether the response depends on the request's origin, so that caches must distinguish origins (RFC 9110 §12.5.5).
    pub(crate) varies: bool,
}

impl<'a> Access<'a> {
    /// Allows pages of any origin to read the response, without credentials.
    pub(crate) const ANY: Self = Self {
        allowed_origin: Some("*"),
        allows_credentials: false,
        varies: false,
    };

    /// Allows pages of `origin`, which the caller has checked, or of no other origin if it is `None`.
    pub(crate) const fn checked(origin: Option<&'a str>) -> Self {
        Self {
            allowed_origin: origin,
            allows_credentials: false,
            varies: true,
        }
    }
}

/// The response to a preflight request (WHATWG Fetch §3.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preflight<'a> {
    /// The methods that the page may use, separated by commas.
    pub(crate) methods: &'a str,
    /// The request headers that the page may send, separated by commas. Empty allows only the safelisted ones.
    pub(crate) headers: &'a str,
}

/// Returns the CORS headers of a response. `preflight` is given for the response to a preflight request.
pub(crate) fn response_headers<'a>(
    access: Access<'a>,
    preflight: Option<Preflight<'a>>,
) -> Vec<(&'static str, &'a str)> {
    let mut headers = Vec::new();
    if access.varies {
        headers.push(("Vary", "Origin"));
    }
    let Some(origin) = access.allowed_origin else {
        return headers;
    };
    headers.push(("Access-Control-Allow-Origin", origin));
    if access.allows_credentials {
        headers.push(("Access-Control-Allow-Credentials", "true"));
    }
    if let Some(preflight) = preflight {
        headers.push(("Access-Control-Allow-Methods", preflight.methods));
        if !preflight.headers.is_empty() {
            headers.push(("Access-Control-Allow-Headers", preflight.headers));
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFLIGHT: Option<Preflight<'_>> = Some(Preflight {
        methods: "GET",
        headers: "X-Own",
    });

    #[test]
    fn any_origin_is_allowed_without_credentials() {
        let headers = response_headers(Access::ANY, None);
        assert_eq!(headers, [("Access-Control-Allow-Origin", "*")]);
    }

    #[test]
    fn refused_origin_receives_only_vary() {
        for preflight in [None, PREFLIGHT] {
            let headers = response_headers(Access::checked(None), preflight);
            assert_eq!(headers, [("Vary", "Origin")]);
        }
    }

    #[test]
    fn allowed_origin_receives_methods_and_headers() {
        let access = Access {
            allows_credentials: true,
            ..Access::checked(Some("https://a.example"))
        };
        let expected = [
            ("Vary", "Origin"),
            ("Access-Control-Allow-Origin", "https://a.example"),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Allow-Methods", "GET"),
            ("Access-Control-Allow-Headers", "X-Own"),
        ];
        assert_eq!(response_headers(access, PREFLIGHT), expected);
        assert_eq!(response_headers(access, None), expected[..3]);
    }

    #[test]
    fn preflight_without_headers_allows_no_further_headers() {
        let preflight = Preflight {
            methods: "GET, HEAD",
            headers: "",
        };
        let headers = response_headers(Access::ANY, Some(preflight));
        let expected = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "GET, HEAD"),
        ];
        assert_eq!(headers, expected);
    }
}
