//! Names of a program's options, for advice to the person who runs the program.

/// The names of a program's own options, for the refusals that name them
/// ([`AsyncWebsocketApp::with_option_names`](crate::AsyncWebsocketApp::with_option_names)).
///
/// Who runs a program does not know the methods that it calls: a program that has options for its allowed origins and hosts
/// has the refusals say those.
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
    /// The methods of [`AsyncWebsocketApp`](crate::AsyncWebsocketApp).
    pub fn new() -> Self {
        Self {
            allowed_origins: "AsyncWebsocketApp::with_allowed_origins".into(),
            allowed_hosts: "AsyncWebsocketApp::with_allowed_hosts".into(),
        }
    }

    /// What allows an origin, which stands behind it.
    pub fn with_allowed_origins(mut self, option: impl Into<String>) -> Self {
        self.allowed_origins = option.into();
        self
    }

    /// What allows a host name, which stands behind it.
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
