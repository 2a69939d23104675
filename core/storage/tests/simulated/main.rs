//! The storage manager on a simulated outside: plugins, data-path processes and metadata that can
//! stop the world, or fail, at any call.

mod concurrency;
mod crash;
mod datapaths;
mod life;
mod merges;
mod merging;
mod outside;
mod world;
