//! The ways in: the app's own listener, mounted Humphrey routes, an existing Humphrey app, and an axum app.
//!
//! Depends on `protocol`, `engine` and `stream` (the hook carries its type), and on Humphrey. It must not know the app's
//! handlers. The contract: whatever comes in ends as a connection of the engine, or is refused in words.

#[cfg(feature = "axum")]
pub(crate) mod axum;
mod cors;
mod descriptors;
mod humphrey;
mod listener;
mod routes;

pub use self::cors::Cors;
pub(crate) use self::descriptors::fit_connections;
pub(crate) use self::humphrey::{adopt_from, handshake, hook_of_app, is_hook_of_app};
pub(crate) use self::listener::bind;
pub(crate) use self::routes::Routes;
