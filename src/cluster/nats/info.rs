//! The description that a NATS server sends first (`INFO`).

use std::sync::Arc;

use serde_json::Value;

use crate::cluster::broker::BrokerError;

/// Messages have this limit if a server does not name one.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The fields of an `INFO` that a node needs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServerInfo {
    /// Random, and new after each start of the server.
    pub(super) server_id: Arc<str>,
    pub(super) payload_bytes_max: usize,
    /// Whether the server wants TLS, or at least offers it.
    tls_required: bool,
    tls_available: bool,
}

impl ServerInfo {
    /// Reads the JSON of an `INFO`. Returns `None` if it is none, or lacks the `server_id`.
    pub(super) fn parse(json: &[u8]) -> Option<Self> {
        let info: Value = serde_json::from_slice(json).ok()?;
        let is = |name: &str| info[name].as_bool().unwrap_or(false);
        let max = info["max_payload"].as_u64();
        Some(Self {
            server_id: info["server_id"].as_str()?.into(),
            payload_bytes_max: max
                .and_then(|max| usize::try_from(max).ok())
                .unwrap_or(PAYLOAD_BYTES_MAX),
            tls_required: is("tls_required"),
            tls_available: is("tls_available"),
        })
    }

    /// Checks that the server and the URL agree about TLS.
    pub(super) fn check(&self, tls: bool) -> Result<(), BrokerError> {
        let unusable = |why: &str| Err(BrokerError::Unusable(why.into()));
        if tls && !self.tls_required && !self.tls_available {
            return unusable(
                "it has no TLS: use nats:// instead of tls://, or configure its `tls`",
            );
        }
        if !tls && self.tls_required {
            return unusable("it requires TLS: use tls:// instead of nats://");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_read_as_far_as_it_is_known() {
        let info = ServerInfo::parse(
            br#"{"server_id":"N1","max_payload":2048,"tls_required":true,"x":[{}]}"#,
        );
        let info = info.unwrap();
        assert_eq!((&*info.server_id, info.payload_bytes_max), ("N1", 2048));
        assert!(info.check(true).is_ok() && info.check(false).is_err());
        let info = ServerInfo::parse(br#"{"server_id":"N1","max_payload":-1}"#).unwrap();
        assert_eq!(info.payload_bytes_max, PAYLOAD_BYTES_MAX);
        assert!(info.check(true).is_err() && info.check(false).is_ok());
        for bad in ["", "{}", "[]", "{\"server_id\":7}", "{\"server_id\":\"a\""] {
            assert_eq!(ServerInfo::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
