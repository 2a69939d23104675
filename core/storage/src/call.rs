//! What comes with every call: whose it is and how long its caller waits.

use std::sync::Arc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use units::RequestId;

/// Whose call this is and how long its caller waits.
#[derive(Debug, Clone)]
pub struct CallContext {
    /// Follows the call through daemon, plugin and data path in the logs.
    pub request_id: RequestId,
    /// When the caller stops waiting. The operation itself is not stopped: it ends or fails on its
    /// own, and the next call on the same VDI waits for it.
    pub deadline: Option<Instant>,
}

impl CallContext {
    /// A context without a deadline.
    pub fn new(request_id: RequestId) -> Self {
        Self {
            request_id,
            deadline: None,
        }
    }

    /// A context of the storage manager's own, for work nobody waits for.
    pub fn background() -> Self {
        Self::new(RequestId::random())
    }
}

/// What a long operation tells and hears while it runs.
#[derive(Clone)]
pub struct Watch {
    /// Called with what is done, 0.0 to 1.0, never decreasing.
    pub progress: Arc<dyn Fn(f64) + Send + Sync>,
    /// Ends the operation with `Cancelled` and nothing left behind.
    pub cancel: CancellationToken,
}

impl Default for Watch {
    /// Tells nobody and cannot be cancelled.
    fn default() -> Self {
        Self {
            progress: Arc::new(|_| {}),
            cancel: CancellationToken::new(),
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("cancelled", &self.cancel.is_cancelled())
            .finish()
    }
}
