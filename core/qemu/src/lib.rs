//! Hypervisor back end: QEMU driven over QMP.
