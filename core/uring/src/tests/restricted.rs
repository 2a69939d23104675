//! What the ring refuses, whoever asks.

use crate::Uring;
use io_uring::types::{Fd, Fixed};
use io_uring::{opcode, squeue};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// What the kernel says to an entry, as an error number.
fn refusal(uring: &mut Uring, entry: &squeue::Entry) -> i32 {
    uring.push_and_wait(entry, Duration::from_secs(20))
}

#[test]
fn the_ring_performs_no_other_operation_and_touches_no_other_descriptor() {
    let mut uring = Uring::new().expect("io_uring is allowed where the tests run");
    let file = tempfile::tempfile().expect("a temporary file");
    let fd = file.as_raw_fd();
    let id = uring.add_file(file.try_clone().expect("a duplicate").into());
    let slot = uring.slot_of(id).expect("a place for it");
    let fixed = squeue::Flags::FIXED_FILE;
    let path = c"/etc/passwd";
    let refused = [
        ("another operation", opcode::Nop::new().build().flags(fixed)),
        (
            "opening a file",
            opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build(),
        ),
        (
            "a socket",
            opcode::Socket::new(1, 1, 0).build().flags(fixed),
        ),
        ("a descriptor", opcode::Fsync::new(Fd(fd)).build()),
        (
            "a thread of the kernel",
            opcode::Fsync::new(Fixed(slot))
                .build()
                .flags(squeue::Flags::ASYNC),
        ),
    ];
    for (what, entry) in &refused {
        assert_eq!(refusal(&mut uring, entry), -libc::EACCES, "{what}");
    }
    let allowed = opcode::Fsync::new(Fixed(slot)).build();
    assert_eq!(refusal(&mut uring, &allowed), 0);
    assert!(uring.register_buffers_is_refused());
}
