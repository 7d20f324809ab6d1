//! Names of a program's own options, which messages to its operator mention.

/// The names of a program's own options, which the library mentions when it refuses a client
/// ([`AsyncWebsocketApp::with_option_names`](crate::AsyncWebsocketApp::with_option_names)).
///
/// By default, a refusal advises calling a method of this library. The operator of a program can't do that, but can set
/// an option of the program.
///
/// ```
/// use humphrey_ws::{AsyncWebsocketApp, OptionNames, Origins};
///
/// // A page of https://example.org is told: "… allow the origin: --allow-origin https://example.org".
/// let app = AsyncWebsocketApp::<()>::new()
///     .with_allowed_origins(Origins::Same)
///     .with_option_names(OptionNames::new().with_allowed_origins("--allow-origin"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionNames {
    pub(crate) allowed_origins: String,
    pub(crate) allowed_hosts: String,
}

impl OptionNames {
    /// Creates the default names, which are methods of [`AsyncWebsocketApp`](crate::AsyncWebsocketApp).
    pub fn new() -> Self {
        Self {
            allowed_origins: "AsyncWebsocketApp::with_allowed_origins".into(),
            allowed_hosts: "AsyncWebsocketApp::with_allowed_hosts".into(),
        }
    }

    /// Sets the option that allows an origin. Messages append the origin after a space.
    pub fn with_allowed_origins(mut self, option: impl Into<String>) -> Self {
        self.allowed_origins = option.into();
        self
    }

    /// Sets the option that allows a host name. Messages append the host name after a space.
    pub fn with_allowed_hosts(mut self, option: impl Into<String>) -> Self {
        self.allowed_hosts = option.into();
        self
    }
}

impl Default for OptionNames {
    fn default() -> Self {
        Self::new()
    }
}
