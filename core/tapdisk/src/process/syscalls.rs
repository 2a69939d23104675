//! The system calls that are left once the process has started; any other ends it.
//!
//! Measured with `strace` over this package's tests on both carriers (io_uring and plain calls) and
//! with guests on vhost-user, and completed by what the C library and the standard library may call
//! on other machines in their place. Out are: opening by name, making sockets, connections,
//! processes and threads, executing, tracing, signals to others, io_uring besides the ring that is
//! there, and memory that can be executed. What io_uring does in the kernel passes no filter: the
//! ring's own restrictions are set where it is made.

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Calls that are left with whatever arguments.
const ALLOWED: &[c_long] = &[
    // Descriptors that are there.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_memfd_create,
    // Sockets that are there, and who comes to them.
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Waiting.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Memory; `mmap` and `mprotect` are below.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Time, chance and oneself.
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    // Signals and the end.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What only this machine's older interfaces have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_dup2];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Whether the filter is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filtered {
    /// It is, for good.
    Yes,
    /// The kernel has no seccomp, or it is not known how to write a filter for this machine.
    Unsupported,
}

/// Gives up every other system call, for good. The caller must be the only thread.
///
/// # Errors
/// When the kernel has filters and refuses this one.
pub fn confine() -> std::io::Result<Filtered> {
    let Ok(arch) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Filtered::Unsupported);
    };
    let program = program(arch).map_err(std::io::Error::other)?;
    match seccompiler::apply_filter(&program) {
        Ok(()) => Ok(Filtered::Yes),
        // A kernel without seccomp, or without filters.
        Err(seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e))
            if [Some(libc::EINVAL), Some(libc::ENOSYS)].contains(&e.raw_os_error()) =>
        {
            Ok(Filtered::Unsupported)
        }
        Err(e) => Err(std::io::Error::other(e)),
    }
}

fn program(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for call in ALLOWED.iter().chain(ALLOWED_HERE) {
        rules.insert(*call, vec![]);
    }
    // Not of memory that could be executed.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![bits(2, libc::PROT_EXEC, 0)?]);
    }
    // Of a descriptor, as the standard library asks for a file's size; a path would need the flag
    // to be clear, or a place to start from, and Landlock stands behind this.
    rules.insert(
        libc::SYS_statx,
        vec![bits(2, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH)?],
    );
    let fstat = bits(3, libc::AT_EMPTY_PATH, libc::AT_EMPTY_PATH)?;
    rules.insert(libc::SYS_newfstatat, vec![fstat]);
    // Whether a socket blocks, and how large a block device is.
    let asked = [libc::FIONBIO, BLKGETSIZE64, BLKSSZGET]
        .map(|request| SeccompRule::new(vec![equal(1, request)?]));
    let asked: Result<Vec<_>, seccompiler::BackendError> = asked.into_iter().collect();
    rules.insert(libc::SYS_ioctl, asked?);
    // `abort` signals itself.
    let own = SeccompRule::new(vec![equal(0, u64::from(std::process::id()))?])?;
    rules.insert(libc::SYS_tgkill, vec![own]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    )?;
    BpfProgram::try_from(filter)
}

/// `linux/fs.h`: `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: u64 = 0x8008_1272;
/// `linux/fs.h`: `_IO(0x12, 104)`.
const BLKSSZGET: u64 = 0x1268;

/// The argument has these of `mask` set.
fn bits(argument: u8, mask: c_int, set: c_int) -> Result<SeccompRule, seccompiler::BackendError> {
    let (mask, set) = (mask.unsigned_abs().into(), set.unsigned_abs().into());
    let operator = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, set)?;
    SeccompRule::new(vec![condition])
}

fn equal(argument: u8, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::Command;

    /// What tells a test that it runs in a process of its own, and what it is to try there: filters
    /// are for good.
    const TRY: &str = "XYLEM_TEST_SYSTEM_CALL";

    /// The exit code of a child that was left alive, which no panic has.
    const ALIVE: i32 = 42;

    /// Runs this binary again for the test below.
    fn outcome(what: &str) -> std::process::ExitStatus {
        let name = "process::syscalls::tests::what_the_data_path_needs_is_left_and_the_rest_kills";
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(TRY, what)
            .output()
            .unwrap()
            .status
    }

    /// Landlock shows nothing in `/proc`, so it is asked for what it denies, without the filter
    /// that would come first.
    fn try_landlock() -> ! {
        crate::process::sandbox::enter(None, false).unwrap();
        let refused = std::fs::File::open("/proc/self/status").unwrap_err();
        let denied = refused.kind() == std::io::ErrorKind::PermissionDenied;
        std::process::exit(if denied { ALIVE } else { 1 });
    }

    fn try_in_a_child(what: &str) -> ! {
        if what == "landlock" {
            try_landlock();
        }
        let (socket, other) = UnixStream::pair().unwrap();
        assert_eq!(confine().unwrap(), Filtered::Yes);
        match what {
            "nothing" => {
                std::io::Write::write_all(&mut &socket, b"x").unwrap();
                std::io::Read::read_exact(&mut &other, &mut [0]).unwrap();
                drop(vec![1_u8; 8 << 20]);
                let _now = std::time::Instant::now();
            }
            "open" => drop(std::fs::File::open("/dev/null")),
            "stat" => drop(std::fs::metadata("/dev/null")),
            "unlink" => drop(std::fs::remove_file("/nonexistent")),
            "socket" => drop(UdpSocket::bind("127.0.0.1:0")),
            "socketpair" => drop(UnixStream::pair()),
            "execve" => drop(Command::new("/bin/true").exec()),
            "fork" => drop(Command::new("/bin/true").spawn()),
            "thread" => drop(std::thread::Builder::new().spawn(|| {})),
            "kill" => {
                let parent = rustix::process::getppid().unwrap();
                let _ = rustix::process::test_kill_process(parent);
            }
            "setuid" => {
                let root = rustix::thread::Uid::from_raw(0);
                let _ = rustix::thread::set_thread_res_uid(root, root, root);
            }
            "io_uring_setup" => drop(uring::Ring::new()),
            other => panic!("{other}"),
        }
        std::process::exit(ALIVE);
    }

    #[test]
    fn what_the_data_path_needs_is_left_and_the_rest_kills() {
        if let Ok(what) = std::env::var(TRY) {
            try_in_a_child(&what);
        }
        for what in ["nothing", "landlock"] {
            let status = outcome(what);
            assert_eq!(status.code(), Some(ALIVE), "{what}: {status}");
        }
        for what in [
            "open",
            "stat",
            "unlink",
            "socket",
            "socketpair",
            "execve",
            "fork",
            "thread",
            "kill",
            "setuid",
            "io_uring_setup",
        ] {
            let status = outcome(what);
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status}");
        }
    }
}
