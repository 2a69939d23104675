//! The shared object's side of the binary interface: one symbol, one function, JSON both ways.
//! Not for authors; `export_plugin!` uses it.
//!
//! ```text
//! XYLEM_PLUGIN: Descriptor { magic, abi, size, world, interfaces, name, version, init, call }
//! init(host)                           once, before the first call; `host` stays valid for ever
//! call(method, body, out) -> status    any thread, overlapping
//! host.call(method, body, out) -> status    only from inside `call`
//! ```
//!
//! `body` is a JSON object of the parameters by their names; `out` becomes `{"Ok": value}` or
//! `{"Err": {"kind", "message"}}`. A buffer carries the function that frees it, so no allocator
//! crosses the border. A panic is caught and becomes [`PANICKED`].

// UNSAFETY: pointers and lengths cross a C boundary here, in both directions, and nowhere else.

use crate::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, Ordering};

/// First field of a descriptor: `XYLEMPLG` in ASCII.
pub const MAGIC: u64 = u64::from_be_bytes(*b"XYLEMPLG");
/// Version of this binary interface.
pub const ABI: u32 = 1;
/// `out` holds the result.
pub const DONE: i32 = 0;
/// The function panicked; `out` holds the panic's text.
pub const PANICKED: i32 = 1;
/// No such function, or parameters of another shape; `out` holds a text.
pub const BAD_REQUEST: i32 = 2;

/// A text that is not terminated; lives as long as the library.
#[repr(C)]
pub struct Text {
    data: *const u8,
    len: usize,
}

impl Text {
    const fn new(text: &'static str) -> Self {
        Self {
            data: text.as_ptr(),
            len: text.len(),
        }
    }
}

/// Bytes with the function that frees them.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    len: usize,
    free: Option<unsafe extern "C" fn(*mut u8, usize)>,
}

impl Buffer {
    const EMPTY: Self = Self {
        data: std::ptr::null_mut(),
        len: 0,
        free: None,
    };

    fn from_vec(bytes: Vec<u8>) -> Self {
        let mut bytes = bytes.into_boxed_slice();
        let (data, len) = (bytes.as_mut_ptr(), bytes.len());
        std::mem::forget(bytes);
        Self {
            data,
            len,
            free: Some(free),
        }
    }

    /// Copies the bytes out and frees them.
    fn into_vec(self) -> Vec<u8> {
        if self.data.is_null() {
            return Vec::new();
        }
        // SAFETY: the host says that `data` is valid for `len` bytes until it is freed.
        let bytes = unsafe { std::slice::from_raw_parts(self.data, self.len) }.to_vec();
        if let Some(free) = self.free {
            // SAFETY: this is the function that came with the bytes, called once.
            unsafe { free(self.data, self.len) };
        }
        bytes
    }
}

/// Frees what [`Buffer::from_vec`] gave away.
unsafe extern "C" fn free(data: *mut u8, len: usize) {
    // SAFETY: `from_vec` made the pair from a boxed slice and the host gives it back once.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, len)) });
}

/// The host's table.
#[repr(C)]
pub struct Host {
    abi: u32,
    size: u32,
    context: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, *const u8, usize, *const u8, usize, *mut Buffer) -> i32,
}

type Init = unsafe extern "C" fn(*const Host) -> i32;
type Call = unsafe extern "C" fn(*const u8, usize, *const u8, usize, *mut Buffer) -> i32;

/// What the symbol `XYLEM_PLUGIN` is.
#[repr(C)]
pub struct Descriptor {
    magic: u64,
    abi: u32,
    size: u32,
    world: Text,
    interfaces: Text,
    name: Text,
    version: Text,
    init: Init,
    call: Call,
}

// SAFETY: the pointers are to constants, and the functions may be called from any thread.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// Describes a plugin.
    pub const fn new(
        world: &'static str,
        interfaces: &'static str,
        name: &'static str,
        version: &'static str,
        call: Call,
    ) -> Self {
        Self {
            magic: MAGIC,
            abi: ABI,
            size: size_of::<Self>() as u32,
            world: Text::new(world),
            interfaces: Text::new(interfaces),
            name: Text::new(name),
            version: Text::new(version),
            init,
            call,
        }
    }
}

static HOST: AtomicPtr<Host> = AtomicPtr::new(std::ptr::null_mut());

unsafe extern "C" fn init(host: *const Host) -> i32 {
    HOST.store(host.cast_mut(), Ordering::Release);
    DONE
}

/// Makes the C function of a dispatcher.
#[doc(hidden)]
#[macro_export]
macro_rules! __native_entry {
    ($dispatch:expr) => {{
        unsafe extern "C" fn call(
            method: *const u8,
            method_len: usize,
            body: *const u8,
            body_len: usize,
            out: *mut $crate::native::Buffer,
        ) -> i32 {
            // SAFETY: the host passes valid texts and a place for the answer.
            unsafe { $crate::native::serve($dispatch, method, method_len, body, body_len, out) }
        }
        call
    }};
}
pub use crate::__native_entry as entry;

/// Finds a function by its name and calls it with JSON parameters.
pub type Dispatch = fn(&str, &[u8]) -> Result<Vec<u8>, BadRequest>;

/// Serves one call.
///
/// # Safety
///
/// `method` and `body` are valid for their lengths, `out` is a place for a [`Buffer`].
pub unsafe fn serve(
    dispatch: Dispatch,
    method: *const u8,
    method_len: usize,
    body: *const u8,
    body_len: usize,
    out: *mut Buffer,
) -> i32 {
    // SAFETY: the caller's promise.
    let (method, body) = unsafe {
        (
            std::slice::from_raw_parts(method, method_len),
            std::slice::from_raw_parts(body, body_len),
        )
    };
    let method = String::from_utf8_lossy(method);
    let (status, bytes) = match catch_unwind(AssertUnwindSafe(|| dispatch(&method, body))) {
        Ok(Ok(bytes)) => (DONE, bytes),
        Ok(Err(BadRequest(text))) => (BAD_REQUEST, text.into_bytes()),
        Err(panic) => (PANICKED, panic_text(panic.as_ref()).into_bytes()),
    };
    // SAFETY: the caller's promise.
    unsafe { out.write(Buffer::from_vec(bytes)) };
    status
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

/// Why a call could not be made at all.
#[derive(Debug)]
pub struct BadRequest(String);

impl BadRequest {
    /// There is no such function.
    pub fn unknown(method: &str) -> Self {
        Self(format!("no function {method}"))
    }
}

/// A call's parameters by their names.
pub struct Arguments(Map<String, Value>);

impl Arguments {
    /// Reads a JSON object.
    ///
    /// # Errors
    ///
    /// If it is none.
    pub fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        serde_json::from_slice(body)
            .map(Self)
            .map_err(|error| BadRequest(format!("parameters are no JSON object: {error}")))
    }

    /// Takes one parameter out.
    ///
    /// # Errors
    ///
    /// If it is missing or of another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, BadRequest> {
        let value = self.0.remove(name).unwrap_or(Value::Null);
        serde_json::from_value(value).map_err(|error| BadRequest(format!("{name}: {error}")))
    }
}

/// Writes a function's result.
///
/// # Errors
///
/// If it has no JSON form (a number that is not finite).
pub fn reply<T: Serialize, E: Serialize>(result: &Result<T, E>) -> Result<Vec<u8>, BadRequest> {
    serde_json::to_vec(result).map_err(|error| BadRequest(format!("result: {error}")))
}

/// Calls a host function that may fail.
pub(crate) fn call_host<T: DeserializeOwned>(method: &str, parameters: Value) -> crate::Result<T> {
    let host = HOST.load(Ordering::Acquire);
    if host.is_null() {
        return Err(Error::internal(format!("{method}: no host is attached")));
    }
    let body = parameters.to_string();
    let mut out = Buffer::EMPTY;
    // SAFETY: `init` got a table that stays valid, and the texts live until the call returns.
    let status = unsafe {
        ((*host).call)(
            (*host).context,
            method.as_ptr(),
            method.len(),
            body.as_ptr(),
            body.len(),
            &raw mut out,
        )
    };
    let bytes = out.into_vec();
    if status != DONE {
        return Err(Error::internal(format!(
            "{method}: {}",
            String::from_utf8_lossy(&bytes)
        )));
    }
    serde_json::from_slice::<crate::Result<T>>(&bytes)
        .unwrap_or_else(|error| Err(Error::internal(format!("{method}: {error}"))))
}

/// Calls a host function that cannot fail; without a host it answers the default.
pub(crate) fn tell_host<T: DeserializeOwned + Default>(method: &str, parameters: Value) -> T {
    call_host(method, parameters).unwrap_or_default()
}
