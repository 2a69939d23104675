//! The device against a front end and driver that know nothing of it, over real sockets, real
//! shared memory and real eventfds. In place of the engine there is an array of bytes.

mod hostile;
mod random;
mod reconnect;
mod requests;
mod setup;

use super::socket::{Moved, receive, send};
use super::{Device, Export, QUEUES_MAX};
use crate::frontend::{Answer, FrontEnd as _, Job, Work};
use block::BufferPool;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use vhost_driver::{FrontEnd, Options};

const DISK_BYTES: usize = 1 << 20;

/// The disk, and what was done to it.
#[derive(Debug, Default)]
struct Disk {
    bytes: Vec<u8>,
    /// Jobs in the order they came, by name and first sector.
    log: Vec<(&'static str, u64)>,
    /// Jobs from this one on are not answered.
    answered_max: Option<usize>,
    /// Nothing will be answered for long.
    paused: bool,
}

impl Disk {
    fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            bytes: vec![0; DISK_BYTES],
            ..Self::default()
        }))
    }

    fn perform(&mut self, work: &Work, pool: &mut BufferPool) -> Answer {
        let (name, offset) = match work {
            Work::Read { offset, .. } => ("read", *offset),
            Work::Write { offset, fua, .. } => (if *fua { "write fua" } else { "write" }, *offset),
            Work::Flush => ("flush", 0),
            Work::Trim { offset, .. } => ("trim", *offset),
            Work::WriteZeroes {
                offset, no_hole, ..
            } => (if *no_hole { "zero" } else { "zero or trim" }, *offset),
            Work::BlockStatus { .. } => unreachable!("no front end of this kind asks"),
        };
        self.log.push((name, offset / 512));
        let start = usize::try_from(offset).unwrap();
        match work {
            Work::Read { length, .. } => {
                let mut buffer = pool.take(*length as usize);
                let from = &self.bytes[start..start + *length as usize];
                buffer.as_mut_slice().copy_from_slice(from);
                return Answer::Data(buffer);
            }
            Work::Write { data, .. } => {
                self.bytes[start..start + data.len()].copy_from_slice(data.as_slice());
            }
            Work::WriteZeroes { length, .. } | Work::Trim { length, .. } => {
                self.bytes[start..start + *length as usize].fill(0);
            }
            _ => {}
        }
        Answer::Done
    }
}

fn export() -> Export {
    Export {
        size_bytes: DISK_BYTES as u64,
        read_only: false,
        serial: *b"a serial number\0\0\0\0\0",
    }
}

/// A back end on a thread of its own: the loop a process has around a device.
struct BackEnd {
    thread: Option<JoinHandle<Result<(), String>>>,
    stop: OwnedFd,
    disk: Arc<Mutex<Disk>>,
    /// Jobs that were given out and not answered.
    kept: Arc<AtomicUsize>,
    size_bytes: Arc<AtomicUsize>,
}

impl BackEnd {
    /// Starts one; returns the front end's end of the socket.
    fn start(export: Export, disk: &Arc<Mutex<Disk>>) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let kept = Arc::new(AtomicUsize::new(0));
        let size_bytes = Arc::new(AtomicUsize::new(export.size_bytes as usize));
        let thread = {
            let (disk, stop) = (Arc::clone(disk), stop.try_clone().unwrap());
            let (kept, size) = (Arc::clone(&kept), Arc::clone(&size_bytes));
            std::thread::spawn(move || run(Device::new(export), &ours, &stop, &disk, &kept, &size))
        };
        let back = Self {
            thread: Some(thread),
            stop,
            disk: Arc::clone(disk),
            kept,
            size_bytes,
        };
        (back, theirs)
    }

    fn with(options: Options) -> (Self, FrontEnd) {
        let (back, socket) = Self::start(export(), &Disk::new());
        (back, FrontEnd::on(socket, options).unwrap())
    }

    /// Ends it between two rounds, as a kill would: nothing in flight is answered. Returns what
    /// made it end by itself, if it had.
    fn kill(mut self) -> Result<(), String> {
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).unwrap();
        match self.thread.take() {
            Some(thread) => thread.join().expect("the device did not panic"),
            None => Ok(()),
        }
    }

    /// Waits until it ends by itself; what it ended by.
    fn ended(mut self) -> Result<(), String> {
        let thread = self.thread.take().unwrap();
        thread.join().expect("the device did not panic")
    }

    fn log(&self) -> Vec<(&'static str, u64)> {
        self.disk.lock().log.clone()
    }

    /// Gives the disk another size and wakes the thread, which tells the device.
    fn resize(&self, bytes: usize) {
        self.size_bytes.store(bytes, Ordering::SeqCst);
        self.disk.lock().bytes.resize(bytes, 0);
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let ended = self.end();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

fn run(
    mut device: Device,
    socket: &UnixStream,
    stop: &OwnedFd,
    disk: &Mutex<Disk>,
    kept: &AtomicUsize,
    size: &AtomicUsize,
) -> Result<(), String> {
    let mut pool = BufferPool::new(1 << 20);
    loop {
        device.set_size(size.load(Ordering::SeqCst) as u64);
        loop {
            let got = receive(&mut device, socket).map_err(|why| why.to_string())?;
            let sent = send(&mut device, socket);
            if got == Moved::Closed {
                return Ok(());
            }
            if got != Moved::Some && sent != Moved::Some {
                break;
            }
        }
        device.refuse_kicks();
        let mut jobs = Vec::new();
        while let Some(job) = device.next_job(&mut pool) {
            jobs.push(job);
        }
        for Job { slot, work } in jobs {
            let mut disk = disk.lock();
            if disk.answered_max.is_some_and(|max| disk.log.len() >= max) {
                kept.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let answer = disk.perform(&work, &mut pool);
            device.answer(slot, answer, &mut pool);
        }
        if disk.lock().paused {
            device.stop_draining();
        }
        device.publish();
        while send(&mut device, socket) == Moved::Some {}
        if device.want_kicks() {
            continue;
        }
        if wait(&device, socket, stop) {
            return Ok(());
        }
    }
}

/// Waits for a message or a kick; `true` when it is to end.
fn wait(device: &Device, socket: &UnixStream, stop: &OwnedFd) -> bool {
    let kicks: Vec<_> = (0..QUEUES_MAX)
        .filter_map(|ring| Some((ring, device.kick_fd(ring)?.1)))
        .collect();
    let mut fds = vec![
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(socket, PollFlags::IN),
    ];
    fds.extend(
        kicks
            .iter()
            .map(|(_, fd)| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)),
    );
    poll(&mut fds, None).unwrap();
    let woken: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    for ((ring, _), woken) in kicks.iter().zip(&woken[2..]) {
        if *woken {
            device.kicked(*ring);
        }
    }
    woken[0]
}
