//! Completion-based block I/O: the trait, memory and simulated disks, faults, the conformance suite.
