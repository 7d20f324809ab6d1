//! The acceptance of a handshake.

use std::time::SystemTime;

use super::{RequestHead, is_header};
use crate::protocol::http::is_token;

/// The headers that the handshake itself writes (RFC 6455 §11.3), and those of framing.
const OWN_HEADERS: [&str; 5] = [
    "Upgrade",
    "Connection",
    "Content-Length",
    "Transfer-Encoding",
    "Trailer",
];
const OWN_PREFIX: &str = "Sec-WebSocket-";

/// The maximum length of a user key in bytes of UTF-8, which is that of a room's name. A key is stored as long as its
/// connection exists.
pub(crate) const USER_BYTES_MAX: usize = 255;

/// Accepts a handshake: the positive verdict of a [handshake
/// handler](crate::AsyncWebsocketApp::with_handshake_handler).
///
/// ```
/// use humphrey_ws::{Accept, AsyncWebsocketApp, Reject};
///
/// #[derive(Default)]
/// struct User {
///     name: String,
/// }
///
/// let app = AsyncWebsocketApp::<(), User>::new()
///     .with_handshake_handler(|request, _| {
///         let name = request.query_param("name").ok_or(Reject::new(401))?;
///         Ok(Accept::new().with_state(User { name }).with_header("X-Server", "north"))
///     });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept<StreamState = ()> {
    pub(crate) state: Option<StreamState>,
    pub(crate) subprotocol: Option<String>,
    /// The program has ruled out every subprotocol.
    pub(crate) no_subprotocol: bool,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) user: Option<String>,
    pub(crate) expires_at: Option<SystemTime>,
    pub(crate) rendered: bool,
}

impl<StreamState> Accept<StreamState> {
    /// Accepts the client with the `Default` of the stream's state, and without a subprotocol. If the app serves
    /// [procedures](crate::procedures) and the client offers their subprotocol, it is chosen.
    pub fn new() -> Self {
        Self {
            state: None,
            subprotocol: None,
            no_subprotocol: false,
            headers: Vec::new(),
            user: None,
            expires_at: None,
            rendered: false,
        }
    }

    /// Sets the initial state of the stream, in place of its `Default`.
    pub fn with_state(mut self, state: StreamState) -> Self {
        self.state = Some(state);
        self
    }

    /// Chooses a subprotocol. It must be one that the client offers ([`RequestHead::subprotocols`]; RFC 6455 §4.2.2).
    /// Otherwise an error is logged, and the client gets 500.
    pub fn with_subprotocol(mut self, subprotocol: impl Into<String>) -> Self {
        self.subprotocol = Some(subprotocol.into());
        self
    }

    /// Chooses no subprotocol, whatever the client offers, not even that of procedures. The one exception is
    /// `humphrey_ws.plain.v1`, which means "no subprotocol": it is confirmed to a client that offers it, since browsers
    /// fail a handshake in which none of their subprotocols is chosen.
    /// [`AsyncStream::subprotocol`](crate::AsyncStream::subprotocol) is `None` then, too.
    pub fn without_subprotocol(mut self) -> Self {
        self.subprotocol = None;
        self.no_subprotocol = true;
        self
    }

    /// Sets the user that the connection belongs to. The key can be any string that identifies a user, such as an id, a
    /// name, or the `sub` of a token. It may have up to 255 bytes in UTF-8. If it is longer, an error is logged, and
    /// the client gets 500.
    ///
    /// The program can then list the user's connections
    /// ([`AsyncSender::connections_of`](crate::AsyncSender::connections_of)), close them together
    /// ([`AsyncSender::close_user`](crate::AsyncSender::close_user)) and limit their number
    /// ([`Limits::user_connections_max`](field@crate::Limits::user_connections_max)). Handlers read the key with
    /// [`AsyncStream::user`](crate::AsyncStream::user). By default a connection belongs to no user.
    ///
    /// ```
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, CloseCode, Limits, Reject};
    ///
    /// # fn user_of(_: &str) -> Option<String> { None }
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_limits(Limits::default().user_connections_max(Some(10)))
    ///     .with_handshake_handler(|request, _| {
    ///         let user = request.cookie("session").and_then(user_of);
    ///         Ok(Accept::new().user(user.ok_or(Reject::new(401))?))
    ///     });
    /// // When Ada signs out, from any thread:
    /// app.sender().close_user("ada", CloseCode::POLICY_VIOLATION, "signed out");
    /// ```
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Ends the connection at a given time, for example when its token expires. By default it does not expire.
    ///
    /// Within a second after that time the connection is closed with
    /// [`CloseCode::UNAUTHORIZED`](crate::CloseCode::UNAUTHORIZED) (3000) and the reason `session expired`, after the
    /// messages that were sent before. Messages that the client sends from then on are not handled; the disconnect
    /// handler runs as usual. If the time has passed already, the connection is closed right after the handshake, so
    /// that a browser sees the code. [`AsyncStream::set_expires_at`](crate::AsyncStream::set_expires_at) and
    /// [`AsyncSender::set_expires_at`](crate::AsyncSender::set_expires_at) change the time.
    ///
    /// The time is converted to the monotonic clock here, once: later changes of the system clock do not move it. If
    /// the process was stopped at that time, the connection is closed when the process resumes. On Linux, time in which
    /// the machine is suspended does not count. A time more than 17 years ahead means never.
    ///
    /// ```
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, Reject};
    /// use std::time::{Duration, SystemTime};
    ///
    /// # struct Claims { sub: String, exp: u64 }
    /// # fn verified(_: &str) -> Option<Claims> { None }
    /// let app = AsyncWebsocketApp::<()>::new().with_handshake_handler(|request, _| {
    ///     let token = request.query_param("token").unwrap_or_default();
    ///     let claims = verified(&token).ok_or(Reject::new(401))?;
    ///     // As in a JSON Web Token (RFC 7519 §4.1.4).
    ///     let exp = SystemTime::UNIX_EPOCH + Duration::from_secs(claims.exp);
    ///     Ok(Accept::new().user(claims.sub).expires_at(exp))
    /// });
    /// ```
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }

    /// Lets the client receive the messages of rooms with a history as the app's renderer makes them
    /// ([`AsyncWebsocketApp::with_renderer`](crate::AsyncWebsocketApp::with_renderer)), live and replayed. By default it
    /// receives them as they were sent. Has no effect on other messages, or if the app has no renderer.
    ///
    /// It can be combined with the subprotocol of [procedures](crate::procedures): the client then receives the rendered
    /// message together with the room and the id.
    ///
    /// ```
    /// use humphrey_ws::{Accept, AsyncWebsocketApp, HistoryLimits, Message};
    ///
    /// let app = AsyncWebsocketApp::<()>::new()
    ///     .with_history("*", HistoryLimits::messages(100))
    ///     .with_renderer(|kept| {
    ///         Message::new_text(format!("{} {:?}", kept.id(), kept.message().text()))
    ///     })
    ///     .with_handshake_handler(|request, _| {
    ///         let accept = Accept::new();
    ///         Ok(match request.query_param("form").as_deref() {
    ///             Some("rendered") => accept.rendered(),
    ///             _ => accept,
    ///         })
    ///     });
    /// ```
    pub fn rendered(mut self) -> Self {
        self.rendered = true;
        self
    }

    /// Adds a header to the handshake response, such as `Set-Cookie`. If the name or value is not valid in HTTP, or the
    /// header belongs to the handshake itself (`Connection`, `Sec-WebSocket-…`), an error is logged, and the client
    /// gets 500.
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl<StreamState> Default for Accept<StreamState> {
    fn default() -> Self {
        Self::new()
    }
}

/// Checks whether the response can be sent for that request. The error says why not.
pub(crate) fn check(
    request: &RequestHead,
    subprotocol: Option<&str>,
    headers: &[(String, String)],
    user: Option<&str>,
) -> Result<(), String> {
    if let Some(user) = user
        && user.len() > USER_BYTES_MAX
    {
        let bytes = user.len();
        return Err(format!(
            "its user key has {bytes} bytes, and may have {USER_BYTES_MAX}"
        ));
    }
    if let Some(chosen) = subprotocol
        && !(is_token(chosen) && request.subprotocols().any(|offered| offered == chosen))
    {
        let offered: Vec<&str> = request.subprotocols().collect();
        return Err(format!(
            "it selects the subprotocol {chosen:?}, which is not among those that the client offers: {offered:?}"
        ));
    }
    for (name, value) in headers {
        if !is_header(name, value) {
            return Err(format!("its header {name:?} is not one that HTTP allows"));
        }
        let of_handshake = name
            .get(..OWN_PREFIX.len())
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case(OWN_PREFIX));
        if of_handshake || OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            return Err(format!("its header {name:?} is reserved for the handshake"));
        }
    }
    Ok(())
}
