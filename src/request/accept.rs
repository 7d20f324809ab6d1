//! That a handshake is accepted, and how.

use super::{RequestHead, is_header};
use crate::protocol::http::is_token;

/// The headers of the handshake itself (RFC 6455 §11.3), and of its framing.
const OWN_HEADERS: [&str; 5] = [
    "Upgrade",
    "Connection",
    "Content-Length",
    "Transfer-Encoding",
    "Trailer",
];
const OWN_PREFIX: &str = "Sec-WebSocket-";

/// That a client may come in: what a
/// [handshake handler](crate::AsyncWebsocketApp::with_handshake_handler) returns for it.
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
    /// None is to be chosen.
    pub(crate) no_subprotocol: bool,
    pub(crate) headers: Vec<(String, String)>,
}

impl<StreamState> Accept<StreamState> {
    /// Accepts: with the `Default` of the stream's state, and without a subprotocol, unless the app serves
    /// [procedures](crate::procedures) and the client offers to speak them.
    pub fn new() -> Self {
        Self {
            state: None,
            subprotocol: None,
            no_subprotocol: false,
            headers: Vec::new(),
        }
    }

    /// Gives the stream its state.
    pub fn with_state(mut self, state: StreamState) -> Self {
        self.state = Some(state);
        self
    }

    /// Chooses a subprotocol: one of those that the client offers
    /// ([`RequestHead::subprotocols`]; RFC 6455 §4.2.2). Any other is an error of the program's, which is logged; the
    /// client then gets 500.
    pub fn with_subprotocol(mut self, subprotocol: impl Into<String>) -> Self {
        self.subprotocol = Some(subprotocol.into());
        self
    }

    /// Chooses none, whatever the client offers: also none for [procedures](crate::procedures). The one exception is
    /// `humphrey_ws.plain.v1`, which stands for none: a client that offers it is told so, since browsers fail a handshake
    /// without a choice. [`AsyncStream::subprotocol`](crate::AsyncStream::subprotocol) is `None` then, too.
    pub fn without_subprotocol(mut self) -> Self {
        self.subprotocol = None;
        self.no_subprotocol = true;
        self
    }

    /// Adds a header to the answer, such as `Set-Cookie`. A name or value that HTTP does not allow, or a header of the
    /// handshake itself (`Connection`, `Sec-WebSocket-…`), is an error of the program's, which is logged; the client then
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

/// Whether the answer can be given to that request. The error says what is wrong with it.
pub(crate) fn check(
    request: &RequestHead,
    subprotocol: Option<&str>,
    headers: &[(String, String)],
) -> Result<(), String> {
    if let Some(chosen) = subprotocol
        && !(is_token(chosen) && request.subprotocols().any(|offered| offered == chosen))
    {
        let offered: Vec<&str> = request.subprotocols().collect();
        return Err(format!(
            "it has chosen the subprotocol {chosen:?}, and the client offers {offered:?}"
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
            return Err(format!(
                "its header {name:?} is one that the handshake itself writes"
            ));
        }
    }
    Ok(())
}
