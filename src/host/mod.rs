//! Where connections come from: the app's own listener, mounted Humphrey routes, an existing Humphrey app, and an axum app.
//!
//! Depends on `protocol`, `engine` and `stream` (the hook carries its type), and on Humphrey, but not on the app's handlers.
//! Contract: each connection is either handed to the engine or refused with a status or close frame that gives the reason.

#[cfg(feature = "axum")]
pub(crate) mod axum;
mod cors;
mod descriptors;
mod file_offers;
mod humphrey;
mod rejections;
mod routes;

pub use self::cors::Cors;
pub(crate) use self::descriptors::{enlarge_table, fit_connections};
pub(crate) use self::file_offers::{OFFER_HEADER, offer_file};
#[cfg(feature = "deflate")]
pub(crate) use self::humphrey::handshake_with_compression;
pub(crate) use self::humphrey::{ConnectHook, adopt_from, handshake, hook_of_app, is_hook_of_app};
pub(crate) use self::routes::Routes;
