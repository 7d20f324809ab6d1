//! The link of a stream to its session and its app. The streams of one batch of messages pass it on to each other.
//!
//! Every message handler gets a stream of its own. Most drop it before they return, so its link is kept for the next message
//! of the batch: otherwise each message would cost four changes of reference counts, two of which all shards share.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

use super::publish::AppShared;
use crate::engine::Session;

/// The session and the app of a stream.
pub(super) struct LinkTarget {
    pub(super) session: Arc<Session>,
    pub(super) shared: Arc<AppShared>,
}

/// The link of one stream. It goes back to the batch that runs on this thread, if it is one of its session's.
pub(super) struct StreamLink(Option<LinkTarget>);

thread_local! {
    /// The address of the session whose batch this thread handles; 0 outside of batches.
    static BATCH_OF: Cell<usize> = const { Cell::new(0) };
    /// A link of that session, for its next stream.
    static SPARE: Cell<Option<LinkTarget>> = const { Cell::new(None) };
}

/// While it lives, this thread handles a batch of messages of one session.
pub(super) struct MessageBatch {
    /// The batch that goes on afterwards.
    outer: usize,
}

impl MessageBatch {
    pub(super) fn begin(session: &Arc<Session>) -> Self {
        let outer = BATCH_OF.replace(Arc::as_ptr(session).addr());
        drop(SPARE.take());
        Self { outer }
    }
}

impl Drop for MessageBatch {
    fn drop(&mut self) {
        BATCH_OF.set(self.outer);
        drop(SPARE.take());
    }
}

impl StreamLink {
    #[inline]
    pub(super) fn new(session: &Arc<Session>, shared: &Arc<AppShared>) -> Self {
        let is_same = |spare: &LinkTarget| Arc::ptr_eq(&spare.session, session);
        let link = SPARE.take().filter(is_same).unwrap_or_else(|| LinkTarget {
            session: session.clone(),
            shared: shared.clone(),
        });
        Self(Some(link))
    }
}

impl Drop for StreamLink {
    #[inline]
    fn drop(&mut self) {
        let is_spare = |link: &mut LinkTarget| BATCH_OF.get() == Arc::as_ptr(&link.session).addr();
        if let Some(link) = self.0.take_if(is_spare) {
            drop(SPARE.replace(Some(link)));
        }
    }
}

impl Deref for StreamLink {
    type Target = LinkTarget;

    #[inline]
    fn deref(&self) -> &LinkTarget {
        match &self.0 {
            Some(link) => link,
            None => unreachable!("only dropping takes it"),
        }
    }
}
