//! What a call brings: bytes, or why there are none.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

/// The bytes that a notification, a call or an answer carries. Clones share them.
///
/// It is made of whatever is bytes: `&str`, `String`, `&[u8]`, `Vec<u8>`, arrays, and `()` for none; with the feature
/// `json` also of what can be serialised.
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
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text.
    ///
    /// # Errors
    ///
    /// If they are not UTF-8: an error that a handler can return as it is.
    pub fn text(&self) -> Result<&str, CallError> {
        std::str::from_utf8(&self.0).map_err(|_| CallError::failed("the payload is not UTF-8"))
    }

    /// The value that the bytes are the JSON of.
    ///
    /// # Errors
    ///
    /// If they are not, or are that of something else: an error that a handler can return as it is.
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

    /// The JSON of a value: what a handler returns to answer with it.
    ///
    /// # Errors
    ///
    /// If there is none, as of a map whose keys are no strings.
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
        /// Enough to recognise it in a log, little enough for a large one.
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

/// A call that has failed: what a handler answers with, and what a call to a client may end in.
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
    /// What has happened.
    pub reason: CallErrorReason,
    /// In words, of whoever has given the answer.
    pub text: String,
}

/// Why a call has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallErrorReason {
    /// There is no procedure of that name (code 1).
    Unknown,
    /// The procedure says so (code 2).
    Failed,
    /// It was cancelled, and has stopped (code 3).
    Aborted,
    /// Nobody has answered: the reply was dropped, or the handler panicked (code 4).
    Unanswered,
    /// Too many calls were in flight there (code 5).
    Busy,
    /// It is not allowed (code 6).
    Refused,
    /// Another code, which the other side knows.
    Other(u8),
    /// There was no answer in time.
    TimedOut,
    /// The connection has gone.
    Closed,
    /// The connection speaks no subprotocol that has this: calls from the server and streamed answers are of the newer one.
    NotSpoken,
    /// As many calls to this client are in flight as there may be
    /// ([`Limits::connection_calls_max`](crate::Limits::connection_calls_max)).
    TooMany,
    /// It is longer than [`Limits::message_bytes_max`](crate::Limits::message_bytes_max).
    TooLarge,
    /// More waits for the client already than half of
    /// [`Limits::outbox_bytes_max`](crate::Limits::outbox_bytes_max).
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

    /// What a client is told. Of what happened elsewhere it hears that the procedure has failed.
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
    /// An error of that kind, with a text for the other side.
    pub fn new(reason: CallErrorReason, text: impl Into<String>) -> Self {
        Self {
            reason,
            text: text.into(),
        }
    }

    /// The procedure has failed, for a reason that the client may read.
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(CallErrorReason::Failed, text)
    }

    /// The client may not do that.
    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(CallErrorReason::Refused, text)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            CallErrorReason::Unknown => f.write_str("there is no such procedure")?,
            CallErrorReason::Failed => f.write_str("it has failed")?,
            CallErrorReason::Aborted => f.write_str("it was cancelled")?,
            CallErrorReason::Unanswered => f.write_str("nobody has answered")?,
            CallErrorReason::Busy => f.write_str("too many calls are in flight there")?,
            CallErrorReason::Refused => f.write_str("it is not allowed")?,
            CallErrorReason::Other(code) => write!(f, "error {code}")?,
            CallErrorReason::TimedOut => f.write_str("there was no answer in time")?,
            CallErrorReason::Closed => f.write_str("the connection has gone")?,
            CallErrorReason::NotSpoken => f.write_str("the client does not speak that")?,
            CallErrorReason::TooMany => {
                f.write_str("too many calls to the client are in flight")?
            }
            CallErrorReason::TooLarge => {
                f.write_str("it is longer than Limits::message_bytes_max")?
            }
            CallErrorReason::Full => f.write_str("too much waits for the client")?,
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
