//! An independent checker of VHD files, written without vhd-rs.
