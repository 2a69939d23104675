//! One operation as its caller sees it: progress, cancel, result.

use crate::error::{Error, ErrorKind};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use units::VmUuid;

/// What is being done to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the operation of its name")]
#[non_exhaustive]
pub enum OperationKind {
    Start,
    ShutdownClean,
    ShutdownHard,
    RebootClean,
    RebootHard,
    Pause,
    Unpause,
    VbdPlug,
    VbdUnplug,
    Adopt,
    GuestEnd,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Atoms behind it.
    pub atoms_done: u32,
    /// Atoms in all, as far as known.
    pub atoms_total: u32,
    /// The atom under way, or `queued`, `done`, `undoing`.
    pub atom: &'static str,
}

/// A started operation. Dropping it lets the operation go on.
#[derive(Debug)]
pub struct Operation {
    vm: VmUuid,
    kind: OperationKind,
    progress: watch::Receiver<Progress>,
    cancel: CancellationToken,
    done: oneshot::Receiver<Result<(), Error>>,
}

/// The owner's end of an [`Operation`].
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) kind: OperationKind,
    pub(crate) cancel: CancellationToken,
    progress: watch::Sender<Progress>,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Operation {
    pub(crate) fn pair(vm: VmUuid, kind: OperationKind) -> (Self, Control) {
        let queued = Progress {
            atoms_done: 0,
            atoms_total: 0,
            atom: "queued",
        };
        let (progress, progress_out) = watch::channel(queued);
        let (done, done_out) = oneshot::channel();
        let cancel = CancellationToken::new();
        let control = Control {
            kind,
            cancel: cancel.clone(),
            progress,
            done,
        };
        (
            Self {
                vm,
                kind,
                progress: progress_out,
                cancel,
                done: done_out,
            },
            control,
        )
    }

    /// Says what is being done.
    pub fn kind(&self) -> OperationKind {
        self.kind
    }

    /// Says how far it is.
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Follows how far it is; closed when the operation has ended.
    pub fn watch_progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Asks it to stop and undo; once the VM is being stopped for good it no longer can. The
    /// operation ends with `Cancelled` or, if it came too late, as if nothing had been asked.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Returns what [`Self::cancel`] fires, for a caller that waits at the same time.
    pub fn canceller(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Those of the operation; `Closed` when the toolstack stopped before it began or ended.
    ///
    /// # Cancel safety
    /// Dropping the wait lets the operation go on.
    pub async fn wait(self) -> Result<(), Error> {
        let closed = |_| {
            let context = format!("{:?} of vm {} was left: stopping", self.kind, self.vm);
            Err(Error::new(ErrorKind::Closed, context))
        };
        self.done.await.unwrap_or_else(closed)
    }
}

impl Control {
    pub(crate) fn report(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// Nobody waiting is no error.
    pub(crate) fn finish(self, result: Result<(), Error>) {
        let _ = self.done.send(result);
    }
}
