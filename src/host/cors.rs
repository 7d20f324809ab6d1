//! Cross-origin resource sharing for mounted routes.

use crate::protocol::cors::{self, Access, Preflight};
use crate::protocol::http::Head;

/// Which pages of other origins may use the mounted routes
/// ([`AsyncWebsocketApp::with_cors`](crate::AsyncWebsocketApp::with_cors)).
///
/// Use it instead of the `Cors` of a Humphrey sub-app, whose fields this library can't read. The app answers preflight
/// requests, and adds the headers that the browser requires to responses for allowed origins.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, Cors};
///
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_cors(Cors::origins(["https://example.com"]).with_headers(["Content-Type"]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// `None` allows every origin.
    origins: Option<Vec<String>>,
    headers: Vec<String>,
}

impl Cors {
    /// Allows pages of any origin.
    pub fn any() -> Self {
        Self {
            origins: None,
            headers: Vec::new(),
        }
    }

    /// Allows pages of these origins, each as a browser sends it: `https://example.com`, with the port if it is not the
    /// scheme's default.
    pub fn origins<T: Into<String>>(origins: impl IntoIterator<Item = T>) -> Self {
        Self {
            origins: Some(origins.into_iter().map(Into::into).collect()),
            headers: Vec::new(),
        }
    }

    /// Also allows these request headers. A browser sends the CORS-safelisted ones, such as `Accept`, without permission.
    pub fn with_headers<T: Into<String>>(mut self, headers: impl IntoIterator<Item = T>) -> Self {
        self.headers.extend(headers.into_iter().map(Into::into));
        self
    }

    /// Returns the CORS headers of the response to this request. A preflight response also lists the methods of the route.
    pub(super) fn response_headers(
        &self,
        head: &Head,
        preflight: Option<&str>,
    ) -> Vec<(&'static str, String)> {
        let access = match &self.origins {
            None => Access::ANY,
            Some(origins) => {
                let origin = head.header("Origin");
                Access::checked(origin.filter(|origin| origins.iter().any(|known| known == origin)))
            }
        };
        let allowed_headers = self.headers.join(", ");
        let preflight = preflight.map(|methods| Preflight {
            methods,
            headers: &allowed_headers,
        });
        let headers = cors::response_headers(access, preflight).into_iter();
        headers
            .map(|(name, value)| (name, value.to_owned()))
            .collect()
    }
}
