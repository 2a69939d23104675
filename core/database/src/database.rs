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
use std::panic::{AssertUnwindSafe, catch_unwind};
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
        Self::start(store, state)
    }

    fn start(store: Store, state: State) -> Result<Self, Error> {
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
                move || {
                    let ended = catch_unwind(AssertUnwindSafe(|| shared.write_all(store)));
                    if ended.is_err() {
                        shared.fail(&writer_gone(), Vec::new());
                    }
                }
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
            // A panic there has been reported and answered by the thread itself.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClassSchema, FieldSchema, Ref, Type, Value};
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A disk whose next sync fails, by an error or by a panic, and which then works again: the
    /// worst kind, for whoever retries believes that everything is well.
    #[derive(Debug, Default)]
    struct Fault {
        fail: AtomicBool,
        panic: AtomicBool,
    }

    #[derive(Debug)]
    struct FaultyDisk(InMemoryBackend, Arc<Fault>);

    impl StorageBackend for FaultyDisk {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            assert!(
                !self.1.panic.swap(false, Ordering::SeqCst),
                "the disk panics"
            );
            if self.1.fail.swap(false, Ordering::SeqCst) {
                return Err(std::io::Error::other("the disk is gone"));
            }
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
            self.0.write(offset, data)
        }
    }

    fn on_faulty_disk() -> (Database, Arc<Fault>) {
        let fault = Arc::new(Fault::default());
        let disk = FaultyDisk(InMemoryBackend::new(), fault.clone());
        let database = redb::Builder::new().create_with_backend(disk).unwrap();
        let fields = vec![FieldSchema::stored("name_label", Type::String)];
        let schema = Schema {
            version: 1,
            classes: vec![ClassSchema {
                name: "VM".into(),
                fields,
            }],
        };
        let classes = Arc::new(Classes::compile(schema).unwrap());
        let (store, state) = Store::load(database, Path::new("memory"), classes).unwrap();
        (Database::start(store, state).unwrap(), fault)
    }

    #[test]
    fn after_a_failed_sync_nothing_is_acknowledged_or_shown_any_more() {
        for panics in [false, true] {
            let (db, fault) = on_faulty_disk();
            let make = |name: &str| {
                let fields = [("name_label", Value::from(name))];
                db.transact(|tx| tx.create("VM", Ref::random(), fields))
            };
            make("kept").unwrap();
            let before = db.snapshot().revision();
            if panics { &fault.panic } else { &fault.fail }.store(true, Ordering::SeqCst);
            for name in ["lost", "later"] {
                assert_eq!(make(name).unwrap_err().kind(), ErrorKind::Io, "{name}");
            }
            assert_eq!(
                (db.snapshot().revision(), db.snapshot().count("VM")),
                (before, 1)
            );
        }
    }
}
