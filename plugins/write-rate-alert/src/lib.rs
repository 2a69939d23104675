//! Alert: a VM writes faster than a limit.
