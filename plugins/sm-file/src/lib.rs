//! Storage manager: disks as files in a directory.
