//! Which client call a plugin call belongs to, carried by the task that makes it.
//!
//! The traits do not repeat it in every method: the dispatcher enters a scope once, and every
//! plugin call awaited inside it is logged under that id and ends by that deadline.

use std::future::Future;
use std::time::Instant;
use units::RequestId;

/// The client call that the present task works for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Goes into every log line and frame.
    pub id: RequestId,
    /// When its caller stops waiting; a plugin's own call timeout applies as well.
    pub deadline: Option<Instant>,
}

tokio::task_local! {
    static CURRENT: Request;
}

impl Request {
    /// Names a call without a deadline of its own.
    pub fn new(id: RequestId) -> Self {
        Self { id, deadline: None }
    }

    /// Runs `work` for this request.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// Returns the present task's request, or a fresh one outside every scope.
    pub fn current() -> Self {
        CURRENT
            .try_with(Clone::clone)
            .unwrap_or_else(|_| Self::new(RequestId::random()))
    }
}
