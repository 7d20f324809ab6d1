//! A result that may not be there yet.

use std::fmt::Debug;

/// What a non-blocking operation came to: a value, an error, or nothing yet.
///
/// ```
/// use humphrey_ws::restion::Restion;
///
/// let ready: Restion<i32, ()> = Some(1).into();
/// assert!(ready.is_ok());
/// let not_yet: Restion<i32, ()> = None.into();
/// assert!(not_yet.is_none());
/// ```
#[derive(Debug)]
pub enum Restion<T, E> {
    /// The value.
    Ok(T),
    /// The operation failed.
    Err(E),
    /// Nothing yet.
    None,
}

impl<T, E> Restion<T, E> {
    /// Whether there is a value.
    pub const fn is_ok(&self) -> bool {
        matches!(self, Self::Ok(_))
    }

    /// Whether the operation failed.
    pub const fn is_err(&self) -> bool {
        matches!(self, Self::Err(_))
    }

    /// Whether there is nothing yet.
    pub const fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }
}

impl<T, E> Restion<T, E>
where
    E: Debug,
{
    /// The value.
    ///
    /// # Panics
    ///
    /// If the operation failed, or there is nothing yet.
    #[track_caller]
    pub fn unwrap(self) -> T {
        match self {
            Self::Ok(value) => value,
            Self::Err(error) => {
                panic!("called `Restion::unwrap()` on an `Err` value: {error:?}")
            }
            Self::None => panic!("called `Restion::unwrap()` on a `None` value"),
        }
    }
}

impl<T, E> From<Result<T, E>> for Restion<T, E> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(error) => Self::Err(error),
        }
    }
}

impl<T> From<Option<T>> for Restion<T, ()> {
    fn from(option: Option<T>) -> Self {
        match option {
            Some(value) => Self::Ok(value),
            None => Self::None,
        }
    }
}
