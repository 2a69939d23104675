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
    pub(super) fn add(&mut self, ring: &IoUring, fd: i32) -> io::Result<u32> {
        let fresh = self.free.is_empty();
        let slot = self.free.last().copied().unwrap_or(self.next);
        if slot >= self.slots {
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
