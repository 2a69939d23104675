//! Files and sockets on one io_uring.
//!
//! The ring may do nothing but the operations of this crate, and only on descriptors registered
//! with it; see `setup.rs`.
//!
//! ```text
//!  submit ──> backlog ──> submission queue ──enter──> kernel ──> completion queue ──> done
//!                ^                                                     │
//!                └──────────── short, EINTR, EAGAIN ───────────────────┘
//! ```

mod buffers;
mod setup;
mod streams;

use crate::files::{File, Files, error_of, is_in_memory};
use crate::inline::perform;
use crate::stream::{StreamEvent, Streams};
use crate::{Events, Interest, Ready};
use block::{Action, BlockIo, Completion, Error, ErrorKind, FileId, Op, Wait};
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;
use setup::Use;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Longest piece of one operation given to the kernel, which takes 2 GiB less a page at most.
const PIECE_BYTES_MAX: usize = 1 << 30;

/// User data of entries whose completion says nothing.
const NOBODY: u64 = u64::MAX;

/// Bits of the user data that are an index; what is above says into which table.
const INDEX_MASK: u64 = 0xffff_ffff;

/// How long a wait gathers requests, after one that brought several for files in memory: 10 us took
/// a tenth off the time per request at depth 32, 5 us added to it, 20 us were no better.
const GATHER_US: u32 = 10;

/// Completions that end such a wait early.
const GATHER: usize = 64;

/// Longest wait that is also a gathering one; the kernel needs some limit then.
const GATHERING_WAIT_MAX: Duration = Duration::from_secs(3600);

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
        slot: u32,
        interest: Interest,
    },
}

/// Block I/O and socket readiness on io_uring.
///
/// Stays on the thread that made it: the kernel is told that only one thread submits.
pub struct Uring {
    ring: IoUring,
    table: setup::Table,
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
    watched: HashMap<u64, Watched>,
    streams: Streams<streams::Stream>,
    /// Streams that have something to start.
    roused: Vec<u32>,
    /// Streams whose send succeeded if it says nothing.
    quiet: Vec<u32>,
    events: Vec<StreamEvent>,
    /// Operations performed at once since the last wait.
    performed: u32,
    can_gather: bool,
    one_thread: PhantomData<*const ()>,
}

/// A socket that was watched and not forgotten.
#[derive(Debug, Clone, Copy)]
struct Watched {
    slot: u32,
    /// The flight, while it is armed.
    flight: Option<u32>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Uring({} in flight)", self.in_flight())
    }
}

impl Uring {
    /// Makes a ring.
    ///
    /// # Errors
    /// When io_uring is missing, forbidden, or older than Linux 6.1.
    pub fn new() -> io::Result<Self> {
        let (ring, table) = setup::build()?;
        let can_gather = ring.params().is_feature_min_timeout();
        Ok(Self {
            ring,
            table,
            files: Files::default(),
            flights: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            started: 0,
            operations: 0,
            done: Vec::new(),
            ready: Vec::new(),
            watched: HashMap::new(),
            streams: Streams::default(),
            roused: Vec::new(),
            quiet: Vec::new(),
            events: Vec::new(),
            performed: 0,
            can_gather,
            one_thread: PhantomData,
        })
    }

    /// Takes a file over. I/O on a file in memory is performed at once: its file system has no
    /// `RWF_NOWAIT`, so the ring would hand each operation to a thread of the kernel, which costs
    /// three times what the operation does.
    pub fn add_file(&mut self, file: OwnedFd) -> FileId {
        let inline = is_in_memory(&file);
        let slot = self.table.add(&self.ring, file.as_raw_fd(), Use::File).ok();
        self.files.add(File {
            fd: file,
            slot,
            inline: inline || slot.is_none(),
        })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// Closes a file. What is in flight on it still completes.
    pub fn remove_file(&mut self, file: FileId) {
        if let Some(slot) = self.files.remove(file).and_then(|file| file.slot) {
            self.release(slot);
        }
    }

    /// Asks for one event of a socket, which must be unwatched before it is closed.
    ///
    /// # Errors
    /// When there is no place for its descriptor.
    pub fn watch(&mut self, token: u64, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
        let slot = match self.watched.get(&token).copied() {
            Some(watched) => {
                self.disarm(token, watched);
                watched.slot
            }
            None => self.table.add(&self.ring, fd.as_raw_fd(), Use::Watch)?,
        };
        let token_of = Some(token);
        let flight = self.take_off(Flight::Watch {
            token: token_of,
            slot,
            interest,
        });
        let flight = Some(flight);
        self.watched.insert(token, Watched { slot, flight });
        Ok(())
    }

    /// Forgets a watched socket.
    pub fn unwatch(&mut self, token: u64) {
        if let Some(watched) = self.watched.remove(&token) {
            self.disarm(token, watched);
            self.release(watched.slot);
        }
    }

    /// Gives up a place in the table of descriptors. What the kernel works on already goes on.
    fn release(&mut self, slot: u32) {
        if !self.ring.submission().is_empty() {
            // Entries that name the place must not find the next descriptor in it.
            let _tried = self.enter(0, None);
        }
        let reuse = self.ring.submission().is_empty();
        self.table.remove(&self.ring, slot, reuse);
    }

    fn disarm(&mut self, token: u64, watched: Watched) {
        self.ready.retain(|ready| ready.token != token);
        let Some(index) = watched.flight else {
            return;
        };
        if let Some(at) = self.backlog.iter().position(|waiting| *waiting == index) {
            self.backlog.remove(at);
            self.land(index);
            return;
        }
        if let Some(Some(Flight::Watch { token, .. })) = self.flights.get_mut(index as usize) {
            *token = None;
            let remove = opcode::PollRemove::new(u64::from(index)).build();
            let flags = squeue::Flags::FIXED_FILE | squeue::Flags::SKIP_SUCCESS;
            self.push(&remove.flags(flags).user_data(NOBODY));
        }
    }

    /// Starts what was submitted and waits; see [`crate::Ring::wait`].
    ///
    /// # Errors
    /// When the ring broke.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Events) -> io::Result<()> {
        // A send that an earlier call did not get rid of is asked for without sleeping on it.
        let leftover = !self.quiet.is_empty();
        self.start();
        self.reap();
        self.settle_sends()?;
        let timeout = if leftover || self.has_news() {
            Some(Duration::ZERO)
        } else {
            timeout
        };
        match timeout {
            Some(Duration::ZERO) => self.enter(0, None)?,
            timeout => self.sleep(timeout)?,
        }
        self.performed = 0;
        self.reap();
        self.settle_sends()?;
        events.done.append(&mut self.done);
        events.ready.append(&mut self.ready);
        events.streams.append(&mut self.events);
        Ok(())
    }

    /// See [`crate::Ring::take_done`].
    pub fn take_done(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn has_news(&self) -> bool {
        !self.done.is_empty() || !self.ready.is_empty() || !self.events.is_empty()
    }

    fn start(&mut self) {
        self.start_backlog();
        self.start_streams();
    }

    /// Waits for a completion.
    fn sleep(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.performed < 2 || !self.can_gather {
            return self.enter(1, timeout);
        }
        let timespec = Timespec::from(timeout.unwrap_or(GATHERING_WAIT_MAX));
        let args = SubmitArgs::new()
            .timespec(&timespec)
            .min_wait_usec(GATHER_US);
        entered(self.ring.submitter().submit_with_args(GATHER, &args))
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
            // SAFETY: an entry that touches memory is made by `entry` for a flight in the table,
            // or in `streams.rs` for a stream. The flight or stream owns the memory (a `Buffer`, a
            // `SharedBuffer`, pieces and a message header on the heap, a mapping), which does not
            // move; nothing else reads or writes it meanwhile. It lets go of it only after the
            // completion, or for a quiet send after the call that performed it. `drop` waits for
            // all of them or leaks them.
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
            Flight::Watch { slot, interest, .. } => {
                let mut flags = 0;
                flags |= if interest.read { libc::POLLIN } else { 0 };
                flags |= if interest.write { libc::POLLOUT } else { 0 };
                return Some(opcode::PollAdd::new(Fixed(*slot), flags as u32).build());
            }
            Flight::File { op, moved } => (op, *moved),
        };
        let fd = Fixed(self.files.get(op.file)?.slot?);
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
        entered(match timeout {
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timespec))
            }
            None => submitter.submit_and_wait(want),
        })
    }

    /// Takes everything out of the completion queue.
    fn reap(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            let (data, result) = (entry.user_data(), entry.result());
            let index = (data & INDEX_MASK) as u32;
            match data & !INDEX_MASK {
                0 => self.flight_done(index, result),
                streams::RECEIVED => self.stream_received(index, result, entry.flags()),
                streams::SENT => self.stream_sent(index, result),
                _ => {}
            }
        }
    }

    fn flight_done(&mut self, index: u32, result: i32) {
        self.started = self.started.saturating_sub(1);
        match self.land(index) {
            Some(Flight::File { op, moved }) => self.file_done(op, moved, result),
            Some(Flight::Watch {
                token: Some(token), ..
            }) => {
                if let Some(watched) = self.watched.get_mut(&token) {
                    watched.flight = None;
                }
                self.ready.push(Ready {
                    token,
                    interest: interest_of(result),
                });
            }
            Some(Flight::Watch { token: None, .. }) | None => {}
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

#[cfg(test)]
impl Uring {
    /// Gives the kernel an entry that touches no memory, and returns what it says.
    pub(crate) fn push_and_wait(&mut self, entry: &squeue::Entry, patience: Duration) -> i32 {
        assert!(self.push(&entry.clone().user_data(NOBODY)));
        self.enter(1, Some(patience)).expect("enter");
        self.ring
            .completion()
            .next()
            .expect("a completion")
            .result()
    }

    pub(crate) fn slot_of(&self, file: FileId) -> Option<u32> {
        self.files.get(file)?.slot
    }

    pub(crate) fn register_buffers_is_refused(&self) -> bool {
        let refused = self.ring.submitter().register_buffers_sparse(1);
        refused.is_err_and(|e| e.raw_os_error() == Some(libc::EACCES))
    }
}

impl BlockIo for Uring {
    fn submit(&mut self, mut op: Op) {
        let result = match self.files.check(&op) {
            // Truncation is rare and short, and no operation of the ring before Linux 6.9.
            Ok(file) if file.inline || matches!(op.action, Action::Truncate { .. }) => {
                self.performed += 1;
                perform(file, &mut op)
            }
            Ok(_) => {
                self.take_off(Flight::File { op, moved: 0 });
                return;
            }
            Err(error) => Err(error),
        };
        self.finish(op, result);
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        loop {
            self.start();
            let nothing_to_wait_for = !self.done.is_empty() || self.started == 0;
            match wait {
                _ if nothing_to_wait_for => self.enter(0, None)?,
                Wait::No => self.enter(0, None)?,
                Wait::Forever => self.enter(1, None)?,
                Wait::AtMost(timeout) => self.enter(1, Some(timeout))?,
            }
            self.reap();
            self.settle_sends()?;
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
        loop {
            // What is to be started or carried on ends here.
            for index in std::mem::take(&mut self.backlog) {
                self.land(index);
            }
            let broken = self.settle_sends().is_err();
            if self.end_streams() && self.started == 0 {
                return;
            }
            if broken || self.enter(1, None).is_err() {
                std::mem::forget(std::mem::take(&mut self.flights));
                std::mem::forget(std::mem::take(&mut self.streams));
                return;
            }
            self.reap();
        }
    }
}

/// What an enter says, without what is no failure: a timeout, a signal, completions that want to
/// be taken first.
fn entered(result: io::Result<usize>) -> io::Result<()> {
    match result.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) | Ok(_) => Ok(()),
        Err(_) => result.map(drop),
    }
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
