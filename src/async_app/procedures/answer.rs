//! Return types of call handlers.

use std::convert::Infallible;

use super::payload::{CallError, CallErrorReason, Payload};

/// A return type of a call handler. These are:
///
/// - `Result<T, CallError>`, where `T` converts into a [`Payload`]: the answer or the error;
/// - `Result<Infallible, Aborted>`, for a handler that returns only the error of
///   [`Call::abort_error`](super::Call::abort_error);
/// - `()`, if the call is answered later ([`Call::defer`](super::Call::defer)).
#[diagnostic::on_unimplemented(
    message = "the handler of a call can't return `{Self}`",
    note = "return `Result<T, CallError>` where `T` is bytes or text, or nothing if the call is deferred",
    note = "if the handler also returns `Ok`, write `Err(call.abort_error().into())`"
)]
pub trait Answer: sealed::IntoOutcome {}

impl<T: Into<Payload>> Answer for Result<T, CallError> {}
// A single type, so that the `Ok` type of `Err(call.abort_error())` is inferred.
impl Answer for Result<Infallible, Aborted> {}
impl Answer for () {}

/// The error of a handler that stopped because its call was cancelled; made by
/// [`Call::abort_error`](super::Call::abort_error).
#[derive(Debug)]
pub struct Aborted(pub(super) ());

impl From<Aborted> for CallError {
    fn from(_: Aborted) -> Self {
        CallErrorReason::Aborted.into()
    }
}

pub(super) mod sealed {
    use super::{Aborted, CallError, Infallible, Payload};

    /// Converts every return type into one.
    pub trait IntoOutcome {
        /// Returns `None` if the call is answered later.
        fn outcome(self) -> Option<Result<Payload, CallError>>;
    }

    impl<T: Into<Payload>> IntoOutcome for Result<T, CallError> {
        fn outcome(self) -> Option<Result<Payload, CallError>> {
            Some(self.map(Into::into))
        }
    }

    impl IntoOutcome for Result<Infallible, Aborted> {
        fn outcome(self) -> Option<Result<Payload, CallError>> {
            let Err(aborted) = self;
            Some(Err(aborted.into()))
        }
    }

    impl IntoOutcome for () {
        fn outcome(self) -> Option<Result<Payload, CallError>> {
            None
        }
    }
}
