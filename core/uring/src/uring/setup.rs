//! Making the ring: flags, the table of registered descriptors, and what the ring may do.

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode};
use std::io;

/// Entries of the submission queue: what one system call can start.
const SUBMISSIONS: u32 = 256;

/// Entries of the completion queue; beyond it the kernel keeps completions itself.
const COMPLETIONS: u32 = 1024;

/// Places for registered descriptors; fewer where the limit on open files is lower.
const SLOTS_MAX: u32 = 16 << 10;

/// Calls of `io_uring_register` that stay possible (`linux/io_uring.h`): updating files, making
/// and ending groups of provided buffers.
const REGISTER_CALLS: [u8; 3] = [6, 22, 23];

/// Operations the ring may perform, all of them on registered descriptors.
const OPERATIONS: [u8; 9] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::Recv::CODE,
    opcode::SendMsg::CODE,
    opcode::AsyncCancel::CODE,
];

/// Makes a ring that can do nothing but what this crate does.
///
/// # Errors
/// When io_uring is missing, forbidden, or older than Linux 6.1.
pub(super) fn build() -> io::Result<(IoUring, Table)> {
    let ring = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_r_disabled()
        .build(SUBMISSIONS)?;
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX).min(SLOTS_MAX.into());
    let slots = u32::try_from(limit).unwrap_or(SLOTS_MAX);
    let submitter = ring.submitter();
    submitter.register_files_sparse(slots)?;
    let flags = Flags::FIXED_FILE | Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS;
    let mut rules: Vec<Restriction> = OPERATIONS.map(Restriction::sqe_op).into();
    rules.extend(REGISTER_CALLS.map(Restriction::register_op));
    rules.push(Restriction::sqe_flags_allowed(flags.bits()));
    rules.push(Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()));
    submitter.register_restrictions(&mut rules)?;
    submitter.register_enable_rings()?;
    let table = Table {
        free: Vec::new(),
        next: 0,
        slots,
    };
    Ok((ring, table))
}

/// What a descriptor is for. Each kind leaves room for those after it, which are harder to do
/// without: a file can be read by plain system calls, a client can be turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    File,
    Stream,
    Watch,
}

impl Use {
    /// How many of `slots` may be taken before one of this kind comes.
    fn limit(self, slots: u32) -> u32 {
        match self {
            Self::File => slots / 2,
            Self::Stream => slots - slots / 8,
            Self::Watch => slots,
        }
    }
}

/// Which places of the ring's table of descriptors are free.
#[derive(Debug)]
pub(super) struct Table {
    free: Vec<u32>,
    next: u32,
    slots: u32,
}

impl Table {
    /// Registers a descriptor; the ring holds it until [`Table::remove`].
    ///
    /// # Errors
    /// When the table is full, or what the kernel says to the descriptor.
    pub(super) fn add(&mut self, ring: &IoUring, fd: i32, to: Use) -> io::Result<u32> {
        let fresh = self.free.is_empty();
        let slot = self.free.last().copied().unwrap_or(self.next);
        let taken = self.next as usize - self.free.len();
        if taken >= to.limit(self.slots) as usize {
            return Err(io::Error::other("every place for a descriptor is taken"));
        }
        ring.submitter().register_files_update(slot, &[fd])?;
        if fresh {
            self.next += 1;
        } else {
            self.free.pop();
        }
        Ok(slot)
    }

    /// Lets a descriptor go once what is in flight on it is done; its place is used again if it
    /// may be.
    pub(super) fn remove(&mut self, ring: &IoUring, slot: u32, reuse: bool) {
        let removed = ring.submitter().register_files_update(slot, &[-1]).is_ok();
        if removed && reuse {
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn files_leave_places_for_clients_and_clients_for_what_is_watched() {
        let (ring, mut table) = build().expect("io_uring is allowed where the tests run");
        table.slots = 16;
        let file = tempfile::tempfile().expect("a temporary file");
        let mut fill = |to| {
            let added = std::iter::from_fn(|| table.add(&ring, file.as_raw_fd(), to).ok());
            added.collect::<Vec<u32>>()
        };
        assert_eq!(fill(Use::File), (0..8).collect::<Vec<u32>>());
        assert_eq!(fill(Use::Stream), (8..14).collect::<Vec<u32>>());
        assert_eq!(fill(Use::Watch), [14, 15]);
        table.remove(&ring, 3, true);
        table.remove(&ring, 4, false);
        assert_eq!(table.add(&ring, file.as_raw_fd(), Use::Watch).ok(), Some(3));
        assert!(table.add(&ring, file.as_raw_fd(), Use::Watch).is_err());
    }
}
