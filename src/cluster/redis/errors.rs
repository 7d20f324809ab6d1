//! What the errors of a Redis server mean.

use std::sync::Arc;

use crate::cluster::broker::{BrokerError, reported};

/// What a server says about a command that it did not execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerError {
    /// The word in capitals with which it begins, such as `OOM`.
    pub(super) code: Box<str>,
    /// All of it, shortened and without secrets.
    pub(super) text: Arc<str>,
}

/// What to do about an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Consequence {
    /// Only this command has failed.
    Refused {
        /// Whether the same command can succeed later.
        passes: bool,
    },
    /// The server does not have the script.
    NoScript,
    /// The connection is of no use any longer.
    GiveUp(BrokerError),
}

/// The command that an error answers, while a connection is being set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setup {
    Hello,
    Select,
    Info,
    Loading,
}

impl ServerError {
    /// Reads an error. The password must not appear in what is reported.
    pub(super) fn new(bytes: &[u8], password: Option<&str>) -> Self {
        let text = String::from_utf8_lossy(bytes);
        // Up to version 6, errors in scripts are wrapped: "ERR Error running script (…): … -OOM command not allowed …".
        let inner = text
            .strip_prefix("ERR Error running script")
            .and_then(|text| text.split(" -").find(|part| has_code(part)));
        let text = inner.unwrap_or(&text);
        let code = if has_code(text) { word(text) } else { "ERR" };
        Self {
            code: code.into(),
            text: reported(text, password).unwrap_or_else(|| code.into()),
        }
    }

    /// Returns what follows from it for a command of a node.
    pub(super) fn consequence(&self) -> Consequence {
        let unusable = |why: &str| {
            let text = format!("{why}: {}", self.text);
            Consequence::GiveUp(BrokerError::Unusable(text.into()))
        };
        match &*self.code {
            "NOSCRIPT" => Consequence::NoScript,
            "OOM" | "BUSY" | "MISCONF" | "NOREPLICAS" | "TRYAGAIN" => {
                Consequence::Refused { passes: true }
            }
            // The messages wait for it here, rather than be refused.
            "LOADING" => unusable(LOADING),
            "READONLY" | "MASTERDOWN" => unusable("it has become a replica of another server"),
            "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" => unusable(CLUSTER),
            "NOAUTH" | "WRONGPASS" => {
                Consequence::GiveUp(BrokerError::Authentication(self.text.clone()))
            }
            _ => Consequence::Refused { passes: false },
        }
    }

    /// Returns why a connection can't be set up.
    pub(super) fn setup_failure(&self, setup: Setup) -> BrokerError {
        let unusable = |why: &str| BrokerError::Unusable(why.into());
        let unusable_since = |why: &str| {
            let text = format!("{why}: {}", self.text);
            BrokerError::Unusable(text.into())
        };
        match (&*self.code, setup) {
            ("NOAUTH", _) => BrokerError::Authentication(
                "it requires a password: write it in the URL, as in redis://:password@host".into(),
            ),
            ("WRONGPASS", _) => BrokerError::Authentication(
                "the password is wrong, or the user does not exist or is disabled".into(),
            ),
            ("NOPERM", Setup::Info | Setup::Loading) => unusable(
                "the user of the URL may not execute INFO, which tells whether the server has restarted: allow it with \
                 ACL SETUSER <user> +info",
            ),
            ("NOPERM", Setup::Select) => unusable(
                "the user of the URL may not execute SELECT: allow it with ACL SETUSER <user> +select, or remove the \
                 number of the database from the URL",
            ),
            ("NOPERM", Setup::Hello) => unusable(
                "the user of the URL may not execute HELLO: allow it with ACL SETUSER <user> +hello",
            ),
            ("LOADING", _) => unusable(LOADING),
            ("BUSY", _) => unusable("it is executing a script that does not end"),
            ("MASTERDOWN", _) => unusable(REPLICA),
            ("DENIED", _) => unusable(
                "its protected mode rejects connections from other machines: set a password, or `protected-mode no`, in \
                 its configuration",
            ),
            // Servers before version 6 repeat the arguments of HELLO in their error, and so the password.
            _ if setup == Setup::Hello && self.text.contains("max number of clients") => unusable(
                "it has reached its number of connections: raise `maxclients` in its configuration",
            ),
            (_, Setup::Hello) => unusable(VERSION),
            (_, Setup::Select) => {
                unusable_since("it rejects the number of the database in the URL")
            }
            (_, Setup::Info | Setup::Loading) => unusable_since("it does not answer INFO"),
        }
    }
}

pub(super) const LOADING: &str = "it is still loading its data";
/// Why a server is not used whose version is too old.
pub(super) const VERSION: &str = "it does not know HELLO 3: Redis 6 or Valkey 7.2 or a later version is required, and a \
                                  proxy in between must support RESP3";
pub(super) const REPLICA: &str = "it is a replica of another server: write the address of the primary in the URL; if Sentinels \
                                  name the primary, they have not noticed yet that it is another one";
pub(super) const CLUSTER: &str = "it is a node of a Redis Cluster, which is not supported: use a single server, or several \
                                  single ones, whose URLs are separated by commas";
pub(super) const SENTINEL: &str = "it is a Sentinel: write redis+sentinel://host/name in the URL, with the name that it gives to the \
                                   primary";

/// Whether a text begins with a word in capitals.
fn has_code(text: &str) -> bool {
    let word = word(text);
    word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

fn word(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}
