//! Threads that run user code, and the jobs that they run.

pub(crate) mod inline;
pub(crate) mod pool;
pub(crate) mod pre_admission;
mod run_job;
#[cfg(all(test, loom))]
pub(crate) use self::run_job::run_queued;
