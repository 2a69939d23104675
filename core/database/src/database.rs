//! The handle callers hold, and the writer thread behind it.
//!
//! ```text
//!  transact ──lock──> run on a clone of `head` ──> head = clone; queue it ──unlock──> wait
//!                                                       │
//!  writer thread: take the whole queue ──> one redb commit (fsync) ──> publish ──> wake all
//! ```
//!
//! Transactions run one after the other, but their commits are written together: while one fsync
//! is under way the next batch gathers. Readers see a transaction once it is on the disk.

use crate::bucket::Bucket;
use crate::error::{Error, ErrorKind};
use crate::schema::{Classes, Schema};
use crate::snapshot::Snapshot;
use crate::state::State;
use crate::store::{Store, Write};
use crate::transaction::Tx;
use parking_lot::{Condvar, Mutex, RwLock};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{oneshot, watch};

/// Transactions that may wait for the disk at one time.
const PENDING_MAX: usize = 16 * 1024;

/// The database. Cheap to clone; the file is closed when the last handle is gone.
#[derive(Clone)]
pub struct Database {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    published: RwLock<Arc<State>>,
    revision: watch::Sender<u64>,
}

struct Queue {
    /// All transactions so far, on the disk or not.
    head: Arc<State>,
    pending: Vec<Pending>,
    closing: bool,
    /// Why nothing can be written any more.
    failed: Option<String>,
}

struct Pending {
    state: Arc<State>,
    writes: Vec<Write>,
    done: Box<dyn FnOnce(Result<(), Error>) + Send>,
}

impl Database {
    /// Opens the file at `path`, or makes it, and reads it into memory.
    ///
    /// # Errors
    /// `Schema` when the schema contradicts itself; `Newer` when the file was written under a newer
    /// schema; `Damaged`; `Locked`; `Io`.
    pub fn open(path: impl AsRef<Path>, schema: Schema) -> Result<Self, Error> {
        let classes = Arc::new(Classes::compile(schema)?);
        let (store, state) = Store::open(path.as_ref(), classes)?;
        let state = Arc::new(state);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                head: state.clone(),
                pending: Vec::new(),
                closing: false,
                failed: None,
            }),
            wake: Condvar::new(),
            revision: watch::Sender::new(state.revision),
            published: RwLock::new(state),
        });
        let writer = std::thread::Builder::new()
            .name("database-writer".to_owned())
            .spawn({
                let shared = shared.clone();
                move || shared.write_all(store)
            })
            .map_err(|e| Error::because(ErrorKind::Io, "cannot start the database writer", e))?;
        Ok(Self {
            handle: Arc::new(Handle {
                shared,
                writer: Some(writer),
            }),
        })
    }

    /// Returns everything as of now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.handle.shared.published.read().clone(),
        }
    }

    /// Follows the revision: the receiver sees a new one once its snapshot can be had.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.handle.shared.revision.subscribe()
    }

    /// Runs `work` as one transaction and returns its result with its revision once it is on the
    /// disk. When `work` fails nothing happens. Transactions run one at a time: `work` should only
    /// compute, and must not use this database except through its `Tx`.
    ///
    /// Blocks the thread for an fsync; in async code use [`Self::transact_async`].
    ///
    /// # Errors
    /// What `work` returns; `NotFound` for a new reference to an object that is not there; `Io`;
    /// `Overloaded`.
    pub fn transact<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Tx) -> Result<T, E>,
    ) -> Result<(T, u64), E> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let done = Box::new(move |result| _ = send.send(result));
        let outcome = self.handle.shared.submit(work, done)?;
        receive.recv().map_err(|_| writer_gone())??;
        Ok(outcome)
    }

    /// As [`Self::transact`], waiting for the disk without blocking the thread.
    ///
    /// # Errors
    /// As [`Self::transact`].
    ///
    /// # Cancel safety
    /// The transaction is made when the future is first polled; dropping it later does not take it back.
    pub async fn transact_async<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Tx) -> Result<T, E>,
    ) -> Result<(T, u64), E> {
        let (send, receive) = oneshot::channel();
        let done = Box::new(move |result| _ = send.send(result));
        let outcome = self.handle.shared.submit(work, done)?;
        receive.await.map_err(|_| writer_gone())??;
        Ok(outcome)
    }

    /// Returns the bucket of this name, which need not exist yet.
    pub fn bucket<T>(&self, name: &str) -> Bucket<T> {
        Bucket::new(self.clone(), name)
    }
}

fn writer_gone() -> Error {
    Error::new(ErrorKind::Io, "the database writer has ended")
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.lock().closing = true;
        self.shared.wake.notify_all();
        if let Some(writer) = self.writer.take() {
            // A panic there has been reported by the thread itself.
            _ = writer.join();
        }
    }
}

impl Shared {
    fn submit<T, E: From<Error>>(
        &self,
        work: impl FnOnce(&mut Tx) -> Result<T, E>,
        done: Box<dyn FnOnce(Result<(), Error>) + Send>,
    ) -> Result<(T, u64), E> {
        let mut queue = self.queue.lock();
        if let Some(why) = &queue.failed {
            return Err(Error::new(ErrorKind::Io, why.clone()).into());
        }
        if queue.pending.len() >= PENDING_MAX {
            let what = format!("{PENDING_MAX} transactions wait for the disk already");
            return Err(Error::new(ErrorKind::Overloaded, what).into());
        }
        let mut tx = Tx::new(&queue.head);
        let value = work(&mut tx)?;
        let (state, writes) = tx.finish()?;
        // One that changed nothing still waits for those it has read.
        let state = state.map_or_else(|| queue.head.clone(), Arc::new);
        let revision = state.revision;
        queue.head = state.clone();
        queue.pending.push(Pending {
            state,
            writes,
            done,
        });
        drop(queue);
        self.wake.notify_one();
        Ok((value, revision))
    }

    /// The writer thread: ends when the database is closed and the queue is empty.
    fn write_all(&self, mut store: Store) {
        loop {
            let batch = {
                let mut queue = self.queue.lock();
                while queue.pending.is_empty() && !queue.closing {
                    self.wake.wait(&mut queue);
                }
                std::mem::take(&mut queue.pending)
            };
            let Some(last) = batch.last().map(|pending| pending.state.clone()) else {
                return;
            };
            let writes = batch.iter().flat_map(|pending| &pending.writes);
            match store.write(last.revision, writes) {
                Ok(()) => self.publish(last, batch),
                Err(problem) => self.fail(&problem, batch),
            }
        }
    }

    fn publish(&self, state: Arc<State>, batch: Vec<Pending>) {
        let revision = state.revision;
        *self.published.write() = state;
        self.revision.send_replace(revision);
        for pending in batch {
            (pending.done)(Ok(()));
        }
    }

    /// After a failed write what the disk holds is unknown, so nothing is written or acknowledged any more.
    fn fail(&self, problem: &Error, batch: Vec<Pending>) {
        tracing::error!(error = %problem, "the database cannot be written any more");
        let why = format!("the database cannot be written any more: {problem}");
        let later = {
            let mut queue = self.queue.lock();
            queue.failed = Some(why.clone());
            std::mem::take(&mut queue.pending)
        };
        for pending in batch.into_iter().chain(later) {
            (pending.done)(Err(Error::new(ErrorKind::Io, why.clone())));
        }
    }
}
