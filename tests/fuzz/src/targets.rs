//! The targets, one file each.

pub mod batmap;
pub mod chain;
pub mod control;
pub mod journal;
pub mod locators;
pub mod nbd;
pub mod open;
pub mod vhost;
pub mod write;
