//! Threads that run user code.

pub(crate) mod pool;
