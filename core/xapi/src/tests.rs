//! The interface as clients see it: a whole host, called by message name.

mod events;
mod generic;
mod http;
mod roles;
mod sessions;
mod storage;
mod tasks;
mod vms;
mod wire;
