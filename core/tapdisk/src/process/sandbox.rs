//! What the process gives up before it looks at the first byte of an image.
//!
//! In this order, as each step needs what the next one takes away: stray descriptors, limits,
//! supplementary groups, capabilities, group and user, new privileges, dumps, the file system.
//! The filter of system calls ([`super::syscalls`]) follows when the ring stands.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
    Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::io;

/// Highest descriptor that is kept: the log.
const KEEP_MAX: i32 = 2;

/// Descriptors closed one by one where `/proc` does not list them.
const BLIND_MAX: i32 = 4096;

/// Newest set of Landlock rights asked for; older kernels enforce what they know of it.
const LANDLOCK_ABI: ABI = ABI::V6;

/// Gives up everything. The caller must be the only thread, as these are rights of a thread.
///
/// # Errors
/// What the system refused; the process must not go on then. With `require_all` also a kernel
/// without Landlock.
pub fn enter(run_as: Option<(u32, u32)>, require_all: bool) -> io::Result<()> {
    raise_limits();
    drop_capabilities_for_good()?;
    if let Some((uid, gid)) = run_as {
        change_user(uid, gid)?;
    }
    set_capabilities(None, no_capabilities())?;
    set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let landlock = deny_file_system().map_err(io::Error::other)?;
    if require_all && landlock == RulesetStatus::NotEnforced {
        return Err(io::Error::other("the kernel has no Landlock"));
    }
    tracing::info!(?run_as, ?landlock, "rights dropped");
    Ok(())
}

/// Closes what was inherited by accident. Must run before anything is opened.
pub fn close_strays() {
    let listed = std::fs::read_dir("/proc/self/fd").map(|entries| {
        let numbers = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        numbers.collect::<Vec<i32>>()
    });
    let numbers = listed.unwrap_or_else(|_| (0..BLIND_MAX).collect());
    for number in numbers.into_iter().filter(|number| *number > KEEP_MAX) {
        // The listing's own descriptor is among them and closed already.
        let _ = nix::unistd::close(number);
    }
}

/// Every layer of every disk is a descriptor, and ring buffers are locked memory.
fn raise_limits() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if setrlimit(Resource::Memlock, unlimited).is_err() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Memlock);
        let _ = setrlimit(
            Resource::Memlock,
            Rlimit {
                current: maximum,
                maximum,
            },
        );
    }
}

fn no_capabilities() -> CapabilitySets {
    CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    }
}

/// Empties the sets that capabilities could come back from. Without the right to do so there is
/// nothing to come back from either, as no_new_privs follows.
fn drop_capabilities_for_good() -> io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(rustix::io::Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            },
            Ok(false) => {}
            // Past the last capability this kernel knows.
            Err(_) => break,
        }
    }
    clear_ambient_capability_set()?;
    Ok(())
}

fn change_user(uid: u32, gid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// No path can be opened any more; descriptors that come over the control socket keep their
/// rights, as those are the opener's.
fn deny_file_system() -> Result<RulesetStatus, landlock::RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}
