//! Files and sockets on one io_uring.
//!
//! ```text
//!  submit ──> backlog ──> submission queue ──enter──> kernel ──> completion queue ──> done
//!                ^                                                     │
//!                └──────────── short, EINTR, EAGAIN ───────────────────┘
//! ```

use crate::files::{Files, error_of};
use crate::{Interest, Ready};
use block::{Action, BlockIo, Completion, Error, ErrorKind, FileId, Op, Wait};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

/// Entries of the submission queue: what one system call can start.
const SUBMISSIONS: u32 = 256;

/// Entries of the completion queue; beyond it the kernel keeps completions itself.
const COMPLETIONS: u32 = 1024;

/// Longest piece of one operation given to the kernel, which takes 2 GiB less a page at most.
const PIECE_BYTES_MAX: usize = 1 << 30;

/// User data of entries whose completion says nothing.
const NOBODY: u64 = u64::MAX;

const PUNCH_FLAGS: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What the kernel works on.
#[derive(Debug)]
enum Flight {
    File {
        op: Op,
        moved: usize,
    },
    /// A socket; without a token nobody wants to know any more.
    Watch {
        token: Option<u64>,
        fd: RawFd,
        interest: Interest,
    },
}

/// Block I/O and socket readiness on io_uring.
///
/// Stays on the thread that made it: the kernel is told that only one thread submits.
pub struct Uring {
    ring: IoUring,
    files: Files,
    /// By user data. An entry in the kernel stays here, with its buffer, until its completion.
    flights: Vec<Option<Flight>>,
    free: Vec<u32>,
    /// Flights that are not in the submission queue yet.
    backlog: VecDeque<u32>,
    /// Flights in the submission queue or the kernel.
    started: usize,
    /// Flights that are file operations.
    operations: usize,
    done: Vec<Completion>,
    ready: Vec<Ready>,
    watched: HashMap<u64, u32>,
    one_thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring({} in flight)", self.in_flight())
    }
}

impl Uring {
    /// Makes a ring with the best flags the kernel takes.
    ///
    /// # Errors
    /// When io_uring is missing, forbidden, or older than Linux 5.11.
    pub fn new() -> io::Result<Self> {
        let ring = build()?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self {
            ring,
            files: Files::default(),
            flights: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            started: 0,
            operations: 0,
            done: Vec::new(),
            ready: Vec::new(),
            watched: HashMap::new(),
            one_thread: PhantomData,
        })
    }

    /// Takes a file over.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        self.files.add(file)
    }

    /// Closes a file. What is in flight on it still completes.
    pub fn remove_file(&mut self, file: FileId) {
        self.files.remove(file);
    }

    /// Asks for one event of a socket, which must stay open until then or be unwatched before.
    pub fn watch(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) {
        self.unwatch(token);
        let fd = fd.as_raw_fd();
        let index = self.take_off(Flight::Watch {
            token: Some(token),
            fd,
            interest,
        });
        self.watched.insert(token, index);
    }

    /// Forgets a watched socket.
    pub fn unwatch(&mut self, token: u64) {
        self.ready.retain(|ready| ready.token != token);
        let Some(index) = self.watched.remove(&token) else {
            return;
        };
        if let Some(at) = self.backlog.iter().position(|waiting| *waiting == index) {
            self.backlog.remove(at);
            self.land(index);
            return;
        }
        if let Some(Some(Flight::Watch { token, .. })) = self.flights.get_mut(index as usize) {
            *token = None;
            let remove = opcode::PollRemove::new(u64::from(index))
                .build()
                .user_data(NOBODY);
            self.push(&remove);
            // In the kernel before the caller closes the descriptor.
            let _in_flight_anyway = self.enter(0, None);
        }
    }

    /// Starts what was submitted and waits; see [`crate::Ring::wait`].
    ///
    /// # Errors
    /// When the ring broke.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        done: &mut Vec<Completion>,
        ready: &mut Vec<Ready>,
    ) -> io::Result<()> {
        self.start_backlog();
        self.reap();
        let idle = self.done.is_empty() && self.ready.is_empty();
        match timeout {
            _ if !idle => self.enter(0, None)?,
            Some(Duration::ZERO) => self.enter(0, None)?,
            timeout => self.enter(1, timeout)?,
        }
        self.reap();
        done.append(&mut self.done);
        ready.append(&mut self.ready);
        Ok(())
    }

    /// Puts a flight into the table and the backlog.
    fn take_off(&mut self, flight: Flight) -> u32 {
        self.operations += usize::from(matches!(flight, Flight::File { .. }));
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.flights.push(None);
                u32::try_from(self.flights.len() - 1).expect("far fewer than 2^32 in flight")
            }
        };
        if let Some(place) = self.flights.get_mut(index as usize) {
            *place = Some(flight);
        }
        self.backlog.push_back(index);
        index
    }

    fn land(&mut self, index: u32) -> Option<Flight> {
        let flight = self.flights.get_mut(index as usize)?.take()?;
        self.free.push(index);
        self.operations -= usize::from(matches!(flight, Flight::File { .. }));
        Some(flight)
    }

    /// Moves the backlog into the submission queue.
    fn start_backlog(&mut self) {
        while let Some(index) = self.backlog.pop_front() {
            match self.entry(index) {
                Some(entry) => {
                    if !self.push(&entry.user_data(u64::from(index))) {
                        return self.backlog.push_front(index);
                    }
                    self.started += 1;
                }
                None => {
                    // Its file was removed before it started.
                    if let Some(Flight::File { op, .. }) = self.land(index) {
                        let error = op.error(ErrorKind::NoSuchFile, None);
                        self.finish(op, Err(error));
                    }
                }
            }
        }
    }

    /// Puts an entry into the submission queue, making room if it is full.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: an entry that touches memory is made by `entry` for a flight in the table.
            // The flight owns the memory (a `Buffer` or `SharedBuffer`, which do not move it),
            // nothing else reads or writes a `Buffer` meanwhile, and the flight leaves the table
            // only in `reap`, after its completion; `drop` waits for all or leaks them.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            if self.enter(0, None).is_err() {
                return false;
            }
        }
        false
    }

    fn entry(&mut self, index: u32) -> Option<squeue::Entry> {
        let flight = self.flights.get_mut(index as usize)?.as_mut()?;
        let (op, moved) = match flight {
            Flight::Watch { fd, interest, .. } => {
                let mut flags = 0;
                flags |= if interest.read { libc::POLLIN } else { 0 };
                flags |= if interest.write { libc::POLLOUT } else { 0 };
                return Some(opcode::PollAdd::new(Fd(*fd), flags as u32).build());
            }
            Flight::File { op, moved } => (op, *moved),
        };
        let fd = Fd(self.files.get(op.file)?.as_raw_fd());
        Some(match &mut op.action {
            Action::Read { offset, buffer } => {
                let rest = buffer.as_mut_slice().get_mut(moved..).unwrap_or_default();
                let len = rest.len().min(PIECE_BYTES_MAX) as u32;
                let offset = offset.saturating_add(moved as u64);
                opcode::Read::new(fd, rest.as_mut_ptr(), len)
                    .offset(offset)
                    .build()
            }
            Action::Write { offset, data } => {
                let rest = data.as_slice().get(moved..).unwrap_or_default();
                let len = rest.len().min(PIECE_BYTES_MAX) as u32;
                let offset = offset.saturating_add(moved as u64);
                opcode::Write::new(fd, rest.as_ptr(), len)
                    .offset(offset)
                    .build()
            }
            Action::Fdatasync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Action::Allocate { offset, len_bytes } => opcode::Fallocate::new(fd, *len_bytes)
                .offset(*offset)
                .build(),
            Action::Punch { offset, len_bytes } => opcode::Fallocate::new(fd, *len_bytes)
                .offset(*offset)
                .mode(PUNCH_FLAGS)
                .build(),
            // Performed in `submit`.
            Action::Truncate { .. } => opcode::Nop::new().build(),
        })
    }

    /// One system call: starts what is queued, runs completion work, waits for `want`.
    fn enter(&mut self, want: usize, timeout: Option<Duration>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let result = match timeout {
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timespec))
            }
            None => submitter.submit_and_wait(want),
        };
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) => Ok(()),
            // A timeout, a signal, or completions that want to be taken first: not failures.
            Err(Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) => Ok(()),
            Err(_) => result.map(|_| ()),
        }
    }

    /// Takes everything out of the completion queue.
    fn reap(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            let Ok(index) = u32::try_from(entry.user_data()) else {
                continue;
            };
            self.started = self.started.saturating_sub(1);
            match self.land(index) {
                Some(Flight::File { op, moved }) => self.file_done(op, moved, entry.result()),
                Some(Flight::Watch {
                    token: Some(token), ..
                }) => {
                    self.watched.remove(&token);
                    self.ready.push(Ready {
                        token,
                        interest: interest_of(entry.result()),
                    });
                }
                Some(Flight::Watch { token: None, .. }) | None => {}
            }
        }
    }

    /// Finishes an operation, or carries it on where the kernel stopped short.
    fn file_done(&mut self, op: Op, moved: usize, result: i32) {
        let retry = matches!(-result, libc::EINTR | libc::EAGAIN);
        let Ok(count) = usize::try_from(result) else {
            if retry {
                self.take_off(Flight::File { op, moved });
                return;
            }
            let is_read = matches!(op.action, Action::Read { .. });
            let error = if is_read && moved > 0 && -result == libc::EINVAL {
                // What follows a short direct read may not be aligned: it was the end.
                op.error(ErrorKind::EndOfFile, None)
            } else {
                error_of(&op, Errno::from_raw_os_error(-result))
            };
            return self.finish(op, Err(error));
        };
        let wanted = match &op.action {
            Action::Read { buffer, .. } => buffer.len(),
            Action::Write { data, .. } => data.len(),
            _ => return self.finish(op, Ok(())),
        };
        let moved = moved.saturating_add(count);
        if moved >= wanted {
            self.finish(op, Ok(()));
        } else if count > 0 {
            self.take_off(Flight::File { op, moved });
        } else if matches!(op.action, Action::Read { .. }) {
            let error = op.error(ErrorKind::EndOfFile, None);
            self.finish(op, Err(error));
        } else {
            let error = error_of(&op, Errno::IO);
            self.finish(op, Err(error));
        }
    }

    fn finish(&mut self, op: Op, result: Result<(), Error>) {
        self.done.push(Completion {
            token: op.token,
            result,
            payload: op.action.into_payload(),
        });
    }
}

impl BlockIo for Uring {
    fn submit(&mut self, op: Op) {
        let checked = self.files.check(&op).map(|fd| match op.action {
            // There is no such operation before Linux 6.9, and it is rare and short.
            Action::Truncate { size_bytes } => Some(rustix::fs::ftruncate(fd, size_bytes)),
            _ => None,
        });
        match checked {
            Ok(None) => {
                self.take_off(Flight::File { op, moved: 0 });
            }
            Ok(Some(truncated)) => {
                let result = truncated.map_err(|errno| error_of(&op, errno));
                self.finish(op, result);
            }
            Err(error) => self.finish(op, Err(error)),
        }
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            self.start_backlog();
            let nothing_to_wait_for = !self.done.is_empty() || self.started == 0;
            match wait {
                _ if nothing_to_wait_for => self.enter(0, None)?,
                Wait::No => self.enter(0, None)?,
                Wait::Forever => self.enter(1, None)?,
                Wait::AtMost(timeout) => self.enter(1, Some(timeout))?,
            }
            self.reap();
            // A socket's event or a signal ends a wait, but is nothing for who waits for ever.
            if wait != Wait::Forever || !self.done.is_empty() || self.operations == 0 {
                break;
            }
        }
        done.append(&mut self.done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        let flights = self.flights.iter().flatten();
        let files = flights
            .filter(|flight| matches!(flight, Flight::File { .. }))
            .count();
        files.saturating_add(self.done.len())
    }

    fn size_bytes(&mut self, file: FileId) -> Result<u64, Error> {
        self.files.size_bytes(file)
    }
}

impl Drop for Uring {
    /// Waits for everything in the kernel, because it holds addresses of our buffers.
    fn drop(&mut self) {
        for token in self.watched.keys().copied().collect::<Vec<_>>() {
            self.unwatch(token);
        }
        for index in std::mem::take(&mut self.backlog) {
            self.land(index);
        }
        while self.started > 0 {
            if self.enter(1, None).is_err() {
                std::mem::forget(std::mem::take(&mut self.flights));
                return;
            }
            self.reap();
            // What was to be carried on ends here.
            for index in std::mem::take(&mut self.backlog) {
                self.land(index);
            }
        }
    }
}

/// Tries the flags from the newest to none.
fn build() -> io::Result<IoUring> {
    let newest = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSIONS);
    newest
        .or_else(|_| {
            let mut builder = IoUring::builder();
            let builder = builder.setup_cqsize(COMPLETIONS).setup_coop_taskrun();
            builder.setup_taskrun_flag().build(SUBMISSIONS)
        })
        .or_else(|_| {
            IoUring::builder()
                .setup_cqsize(COMPLETIONS)
                .build(SUBMISSIONS)
        })
}

fn interest_of(result: i32) -> Interest {
    // An error shows in both directions, so that whoever waits looks at the socket.
    let flags = if result < 0 {
        libc::POLLERR as i32
    } else {
        result
    };
    let wrong = i32::from(libc::POLLERR | libc::POLLHUP);
    let has = |wanted: libc::c_short| flags & (i32::from(wanted) | wrong) != 0;
    Interest {
        read: has(libc::POLLIN),
        write: has(libc::POLLOUT),
    }
}
