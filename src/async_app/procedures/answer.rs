//! What the handler of a call may return.

use std::convert::Infallible;

use super::payload::{CallError, CallErrorReason, Payload};

/// What the handler of a call returns:
///
/// - `Result<T, CallError>`, where `T` is anything that makes a [`Payload`]: the answer, or the error;
/// - the error that [`Call::abort_error`](super::Call::abort_error) gives, where the handler returns nothing else;
/// - nothing, if the call is answered later ([`Call::defer`](super::Call::defer)).
#[diagnostic::on_unimplemented(
    message = "the handler of a call can't return `{Self}`",
    note = "it returns `Result<T, CallError>` with a `T` that is bytes or text, or nothing where the call is deferred",
    note = "where it also returns `Ok`, write `Err(call.abort_error().into())`"
)]
pub trait Answer: sealed::IntoOutcome {}

impl<T: Into<Payload>> Answer for Result<T, CallError> {}
// One type, so that `Err(call.abort_error())` says by itself what the other half would be.
impl Answer for Result<Infallible, Aborted> {}
impl Answer for () {}

/// That a handler has seen that its call was cancelled, and has stopped; made by [`Call::abort_error`](super::Call::abort_error).
#[derive(Debug)]
pub struct Aborted(pub(super) ());

impl From<Aborted> for CallError {
    fn from(_: Aborted) -> Self {
        CallErrorReason::Aborted.into()
    }
}

pub(super) mod sealed {
    use super::{Aborted, CallError, Infallible, Payload};

    /// Whatever was returned, as one type.
    pub trait IntoOutcome {
        /// None: it is not answered here.
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
