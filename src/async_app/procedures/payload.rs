//! Payloads of calls, and errors of calls.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// The bytes that a notification, a call or an answer carries. Clones share them.
///
/// It can be made from bytes and texts: `&str`, `String`, `&[u8]`, `Vec<u8>` and arrays; `()` makes an empty one. With
/// the feature `json`, `Payload::of_json` makes one from any serialisable value.
///
/// ```
/// use humphrey_ws::procedures::Payload;
///
/// let payload = Payload::from("Grüezi");
/// assert_eq!(payload.text()?, "Grüezi");
/// assert_eq!(payload.len(), 7);
/// assert!(Payload::from(()).is_empty());
/// # Ok::<(), humphrey_ws::procedures::CallError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Payload(pub(super) Bytes);

impl Payload {
    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(in crate::async_app) fn of_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(in crate::async_app) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Returns the bytes as text.
    ///
    /// # Errors
    ///
    /// If they are not UTF-8. A handler can return the error as it is.
    pub fn text(&self) -> Result<&str, CallError> {
        std::str::from_utf8(&self.0).map_err(|_| CallError::failed("the payload is not UTF-8"))
    }

    /// Deserialises a value from JSON.
    ///
    /// # Errors
    ///
    /// If the bytes are not JSON, or do not fit the type. A handler can return the error as it is.
    ///
    /// ```
    /// use humphrey_ws::procedures::Payload;
    ///
    /// let numbers: Vec<i64> = Payload::from("[1, 2, 3]").json()?;
    /// assert_eq!(Payload::of_json(&numbers)?.text()?, "[1,2,3]");
    /// # Ok::<(), humphrey_ws::procedures::CallError>(())
    /// ```
    #[cfg(feature = "json")]
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, CallError> {
        serde_json::from_slice(&self.0).map_err(|error| {
            CallError::failed(format!("the payload is not the JSON of it: {error}"))
        })
    }

    /// Serialises a value to JSON, for example to answer a call with it.
    ///
    /// # Errors
    ///
    /// If the value can't be JSON, such as a map whose keys are not strings.
    ///
    /// ```
    /// use humphrey_ws::procedures::{Payload, Procedures};
    ///
    /// let procedures = Procedures::<(), ()>::new().on_call("sum", |call| {
    ///     let numbers: Vec<i64> = call.json()?;
    ///     Payload::of_json(&numbers.iter().sum::<i64>())
    /// });
    /// ```
    #[cfg(feature = "json")]
    pub fn of_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<Self, CallError> {
        match serde_json::to_vec(value) {
            Ok(json) => Ok(json.into()),
            Err(error) => Err(CallError::failed(format!(
                "the answer has no JSON: {error}"
            ))),
        }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to recognise the payload in a log without flooding it.
        const SHOWN_BYTES_MAX: usize = 64;
        let shown = &self.0[..self.0.len().min(SHOWN_BYTES_MAX)];
        write!(
            f,
            "Payload({}, b\"{}\")",
            self.0.len(),
            shown.escape_ascii()
        )
    }
}

impl From<()> for Payload {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<String> for Payload {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl<const N: usize> From<&[u8; N]> for Payload {
    fn from(bytes: &[u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl<const N: usize> From<[u8; N]> for Payload {
    fn from(bytes: [u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl From<&str> for Payload {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

impl From<&String> for Payload {
    fn from(text: &String) -> Self {
        text.as_bytes().into()
    }
}

impl From<&Vec<u8>> for Payload {
    fn from(bytes: &Vec<u8>) -> Self {
        bytes.as_slice().into()
    }
}

impl From<&Payload> for Payload {
    fn from(payload: &Payload) -> Self {
        payload.clone()
    }
}

/// The error of a failed call: from a handler to a client, or from a client to the program.
///
/// A text becomes an error of the kind [`CallErrorReason::Failed`]:
///
/// ```
/// use humphrey_ws::procedures::Procedures;
///
/// let procedures = Procedures::<(), ()>::new().on_call("half", |call| {
///     let number: u32 = call.text()?.parse().map_err(|_| "not a number")?;
///     Ok((number / 2).to_string())
/// });
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallError {
    /// The kind of error.
    pub reason: CallErrorReason,
    /// A description, written by the side that answered.
    pub text: String,
}

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallErrorReason {
    /// There is no procedure of that name (code 1).
    Unknown,
    /// The procedure has failed (code 2).
    Failed,
    /// The call was cancelled and the handler has stopped (code 3).
    Aborted,
    /// The call was not answered: the reply was dropped, or the handler panicked (code 4).
    Unanswered,
    /// The other side has too many calls in flight (code 5).
    Busy,
    /// The call is not allowed (code 6).
    Refused,
    /// Another code, which the two sides have agreed on.
    Other(u8),
    /// There was no answer in time.
    TimedOut,
    /// The connection has gone.
    Closed,
    /// The connection's subprotocol lacks the feature: calls from the server and streamed answers need the newer one.
    NotSpoken,
    /// The limit of calls to this client in flight is reached
    /// ([`Limits::connection_calls_max`](crate::Limits::connection_calls_max)).
    TooMany,
    /// The frame is longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    TooLarge,
    /// The client's outbox is more than half full ([`Limits::outbox_bytes_max`](crate::Limits::outbox_bytes_max)).
    Full,
}

impl CallErrorReason {
    pub(super) fn of_code(code: u8) -> Self {
        match code {
            1 => Self::Unknown,
            2 => Self::Failed,
            3 => Self::Aborted,
            4 => Self::Unanswered,
            5 => Self::Busy,
            6 => Self::Refused,
            other => Self::Other(other),
        }
    }

    /// The code that a client gets. Errors that did not arise in the procedure itself become "failed".
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Unknown => 1,
            Self::Aborted => 3,
            Self::Unanswered => 4,
            Self::Busy => 5,
            Self::Refused => 6,
            Self::Other(code) => code,
            _ => 2,
        }
    }
}

impl CallError {
    /// Creates an error of this kind, with a text for the other side.
    pub fn new(reason: CallErrorReason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// Creates the error of a failed procedure, with a reason that the client may read.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(CallErrorReason::Failed, text)
    }

    /// Creates the error of a call that the client may not make.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(CallErrorReason::Refused, text)
    }

    /// Creates the error of a call that the client may repeat later.
    #[cfg(feature = "cluster")]
    pub(super) fn busy(text: impl Into<String>) -> Self {
        Self::new(CallErrorReason::Busy, text)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            CallErrorReason::Unknown => f.write_str("there is no such procedure")?,
            CallErrorReason::Failed => f.write_str("the procedure failed")?,
            CallErrorReason::Aborted => f.write_str("the call was cancelled")?,
            CallErrorReason::Unanswered => {
                f.write_str("the procedure ended without answering the call")?
            }
            CallErrorReason::Busy => {
                f.write_str("the other side has too many calls in flight; retry later")?
            }
            CallErrorReason::Refused => f.write_str("the call is not allowed")?,
            CallErrorReason::Other(code) => write!(f, "the call failed with error {code}")?,
            CallErrorReason::TimedOut => f.write_str("the call timed out")?,
            CallErrorReason::Closed => f.write_str("the connection was closed before the reply")?,
            CallErrorReason::NotSpoken => {
                f.write_str("the client's subprotocol does not support this: it must offer the newer one")?
            }
            CallErrorReason::TooMany => f.write_str(
                "too many calls to the client are in flight (Limits::connection_calls_max)",
            )?,
            CallErrorReason::TooLarge => {
                f.write_str("the frame exceeds Limits::message_bytes_max")?
            }
            CallErrorReason::Full => f.write_str(
                "the client's outbox is more than half full (Limits::outbox_bytes_max); retry later",
            )?,
        }
        match self.text.as_str() {
            "" => Ok(()),
            text => write!(f, ": {text}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallErrorReason> for CallError {
    fn from(reason: CallErrorReason) -> Self {
        Self::new(reason, "")
    }
}

impl From<&str> for CallError {
    fn from(text: &str) -> Self {
        Self::failed(text)
    }
}

impl From<String> for CallError {
    fn from(text: String) -> Self {
        Self::failed(text)
    }
}
