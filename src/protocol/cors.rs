//! Cross-origin resource sharing: the headers by which a browser learns whether a page of another origin may read a response
//! (WHATWG Fetch §3.3). Which origins are allowed is the caller's to decide.

/// Who may read a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access<'a> {
    /// The value of `Access-Control-Allow-Origin`: `*`, or the origin of the request; `None` if its page may not read.
    pub(crate) allowed_origin: Option<&'a str>,
    /// Whether the page may send its visitor's cookies along. A browser does not accept this together with `*`.
    pub(crate) allows_credentials: bool,
    /// Whether another origin could get another answer, so that caches must tell origins apart (RFC 9110 §12.5.5).
    pub(crate) varies: bool,
}

impl<'a> Access<'a> {
    /// Pages of any origin may read, without credentials.
    pub(crate) const ANY: Self = Self {
        allowed_origin: Some("*"),
        allows_credentials: false,
        varies: false,
    };

    /// The page of `origin` may read if there is one, which the caller has found to be allowed.
    pub(crate) const fn checked(origin: Option<&'a str>) -> Self {
        Self {
            allowed_origin: origin,
            allows_credentials: false,
            varies: true,
        }
    }
}

/// What a preflight request is answered (WHATWG Fetch §3.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preflight<'a> {
    /// The methods that the page may use, as a list.
    pub(crate) methods: &'a str,
    /// The request headers that it may send, as a list; empty if none beside those that are always allowed.
    pub(crate) headers: &'a str,
}

/// The headers of a response, to a preflight request with `preflight`.
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
    fn refused_origin_learns_nothing_but_that_origins_matter() {
        for preflight in [None, PREFLIGHT] {
            let headers = response_headers(Access::checked(None), preflight);
            assert_eq!(headers, [("Vary", "Origin")]);
        }
    }

    #[test]
    fn allowed_origin_is_named_with_what_its_page_may_send() {
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
