//! What the library has to say while it runs: to `log`, or with the feature `tracing` to that; never to both.
//!
//! Warnings are for whoever runs the server and say what to do; what a single client did is at most information.
//! What comes from the network stands in them with its control characters escaped.

/// Says one line. With `tracing`, it is an event of the crate; where nobody has subscribed, `tracing` itself hands it
/// on to `log`.
macro_rules! say {
    ($level:ident, $($text:tt)*) => {{
        #[cfg(feature = "tracing")]
        ::tracing::$level!($($text)*);
        #[cfg(not(feature = "tracing"))]
        ::log::$level!($($text)*);
    }};
}

macro_rules! error { ($($text:tt)*) => { $crate::report::say!(error, $($text)*) }; }
macro_rules! warning { ($($text:tt)*) => { $crate::report::say!(warn, $($text)*) }; }
macro_rules! info { ($($text:tt)*) => { $crate::report::say!(info, $($text)*) }; }
macro_rules! debug { ($($text:tt)*) => { $crate::report::say!(debug, $($text)*) }; }

pub(crate) use {debug, error, info, say, warning};

/// What a connection does, and what its handlers do, belongs to its span.
#[cfg(feature = "tracing")]
#[derive(Debug, Clone)]
pub(crate) struct Span(tracing::Span);

/// Without `tracing` there are no spans, and this is nothing.
#[cfg(not(feature = "tracing"))]
#[derive(Debug, Clone)]
pub(crate) struct Span;

#[cfg(feature = "tracing")]
impl Span {
    /// A connection's span: which, from where, whose behind proxies, and what was asked for; without the query, where
    /// secrets may be.
    pub(crate) fn connection(
        id: impl std::fmt::Display,
        peer: std::net::SocketAddr,
        client: std::net::IpAddr,
        target: &str,
    ) -> Self {
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        Self(tracing::info_span!("connection", %id, %peer, %client, path))
    }

    pub(crate) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        self.0.in_scope(f)
    }
}

#[cfg(not(feature = "tracing"))]
impl Span {
    pub(crate) fn connection(
        _: impl std::fmt::Display,
        _: std::net::SocketAddr,
        _: std::net::IpAddr,
        _: &str,
    ) -> Self {
        Self
    }

    pub(crate) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        f()
    }
}
