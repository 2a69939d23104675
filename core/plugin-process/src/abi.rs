//! The binary interface of shared objects, as this side sees it. The other side is the SDK's
//! `native` module; both follow the same layout.

use std::ffi::c_void;

/// First field of a descriptor: `XYLEMPLG` in ASCII.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"XYLEMPLG");
/// Version of this binary interface.
pub(crate) const ABI: u32 = 1;
/// Name of the symbol that is the descriptor.
pub(crate) const SYMBOL: &[u8] = b"XYLEM_PLUGIN\0";
/// `out` holds the result.
pub(crate) const DONE: i32 = 0;
/// The function panicked; `out` holds the panic's text.
pub(crate) const PANICKED: i32 = 1;
/// No such function, or parameters of another shape; `out` holds a text.
pub(crate) const BAD_REQUEST: i32 = 2;

/// A text that is not terminated; lives as long as the library.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Text {
    pub(crate) data: *const u8,
    pub(crate) len: usize,
}

/// Bytes with the function that frees them.
#[repr(C)]
pub(crate) struct Buffer {
    pub(crate) data: *mut u8,
    pub(crate) len: usize,
    pub(crate) free: Option<unsafe extern "C" fn(*mut u8, usize)>,
}

impl Buffer {
    pub(crate) const EMPTY: Self = Self {
        data: std::ptr::null_mut(),
        len: 0,
        free: None,
    };
}

/// The table that a plugin calls the host through.
#[repr(C)]
pub(crate) struct Host {
    pub(crate) abi: u32,
    pub(crate) size: u32,
    pub(crate) context: *mut c_void,
    pub(crate) call:
        unsafe extern "C" fn(*mut c_void, *const u8, usize, *const u8, usize, *mut Buffer) -> i32,
}

/// What the symbol is.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Descriptor {
    pub(crate) magic: u64,
    pub(crate) abi: u32,
    pub(crate) size: u32,
    pub(crate) world: Text,
    pub(crate) interfaces: Text,
    pub(crate) name: Text,
    pub(crate) version: Text,
    pub(crate) init: Option<unsafe extern "C" fn(*const Host) -> i32>,
    pub(crate) call:
        Option<unsafe extern "C" fn(*const u8, usize, *const u8, usize, *mut Buffer) -> i32>,
}
