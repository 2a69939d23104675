//! Gives up what the plugin does not need.
//!
//! The user and group were changed by the daemon when it started this process.

use plugin::Carrier;
use plugin::protocol::Hello;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::io;

/// Memory that this program itself needs beside a shared object: stacks of the workers, buffers.
const OWN_MEMORY_BYTES: u64 = 96 << 20;
/// Descriptors: granted directories, the socket, files being worked on.
const DESCRIPTORS_MAX: u64 = 256;

/// Sets the limits that last until the process ends.
pub(crate) fn confine(hello: &Hello) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    // Where no other user is configured this is still root, but a root that is held to the
    // permissions of files like anybody else. Before any other thread exists.
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    limit(Resource::Core, 0)?;
    limit(Resource::Nofile, DESCRIPTORS_MAX)?;
    // A component's memory is limited by its engine, which reserves far more than it uses.
    if hello.carrier == Carrier::SharedObject {
        limit(
            Resource::Data,
            hello.memory_bytes.saturating_add(OWN_MEMORY_BYTES),
        )?;
    }
    Ok(())
}

fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    Ok(rustix::process::setrlimit(resource, limit)?)
}
