//! Runs a shared object. It is as free as its process: what it breaks is the process, which the
//! daemon restarts. It is never unloaded.

use crate::abi::{self, Buffer, Descriptor, Host, Text};
use crate::functions::Functions;
use crate::{Call, Failure, Plugin};
use plugin::PluginErrorKind as Kind;
use plugin::protocol::Hello;
use plugin::{PluginKind, interface_is_served};
use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Longest text of a descriptor, and longest result.
const TEXT_BYTES_MAX: usize = 4096;
const RESULT_BYTES_MAX: usize = plugin::protocol::FRAME_BYTES_MAX;

thread_local! {
    /// The call that this thread works for; host functions are called from inside it.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A loaded shared object.
pub(crate) struct Library {
    interfaces: Vec<String>,
    call: unsafe extern "C" fn(*const u8, usize, *const u8, usize, *mut Buffer) -> i32,
}

impl Library {
    /// Loads the object behind `artifact` and checks what it says it is.
    #[expect(unsafe_code, reason = "running foreign code is this module's purpose")]
    pub(crate) fn load(
        hello: &Hello,
        artifact: OwnedFd,
        functions: Arc<Functions>,
    ) -> Result<Self, Failure> {
        let incompatible = |message: String| (Kind::Incompatible, message);
        let path = format!("/proc/self/fd/{}", artifact.as_raw_fd());
        // SAFETY: the administrator chose to run this object; its constructors may do anything
        // that this process may.
        let library = unsafe { libloading::os::unix::Library::new(&path) }
            .map_err(|error| incompatible(format!("cannot be loaded: {error}")))?;
        // SAFETY: the symbol is a descriptor if its magic says so, which is checked first.
        let found = unsafe { library.get::<*const Descriptor>(abi::SYMBOL) }
            .map_err(|_| incompatible("it has no symbol XYLEM_PLUGIN".to_owned()))?;
        let descriptor = *found;
        // Unloading is never safe: threads and destructors of the object may still be there.
        std::mem::forget(library);
        // SAFETY: `descriptor` points at the symbol; `check_header` reads the part of it that
        // every version has before the rest is read.
        let descriptor = unsafe {
            check_header(descriptor)?;
            *descriptor
        };
        check_identity(&descriptor, hello)?;
        let (Some(init), Some(call)) = (descriptor.init, descriptor.call) else {
            return Err(incompatible("init or call is null".to_owned()));
        };
        // The table and what it points at live as long as the process.
        let host: &'static Host = Box::leak(Box::new(Host {
            abi: abi::ABI,
            size: size_of::<Host>() as u32,
            context: Arc::into_raw(functions).cast_mut().cast(),
            call: host_call,
        }));
        // SAFETY: the descriptor's promise, and `host` lives for ever.
        let status = unsafe { init(host) };
        if status != abi::DONE {
            return Err(incompatible(format!("init returned {status}")));
        }
        let interfaces = text(descriptor.interfaces)?;
        Ok(Self {
            interfaces: interfaces.split_whitespace().map(str::to_owned).collect(),
            call,
        })
    }
}

/// Checks magic, version and size.
#[expect(unsafe_code, reason = "reads a descriptor that is not trusted yet")]
unsafe fn check_header(descriptor: *const Descriptor) -> Result<(), Failure> {
    let incompatible = |message: String| Err((Kind::Incompatible, message));
    // SAFETY: the caller's promise: every version starts with these three fields.
    let (magic, abi, size) =
        unsafe { ((*descriptor).magic, (*descriptor).abi, (*descriptor).size) };
    if magic != abi::MAGIC {
        return incompatible(format!(
            "XYLEM_PLUGIN starts with {magic:#x}, not with the magic"
        ));
    }
    if abi != abi::ABI {
        return incompatible(format!(
            "it has binary interface {abi}, this host {}",
            abi::ABI
        ));
    }
    if (size as usize) < size_of::<Descriptor>() {
        return incompatible(format!("its descriptor has {size} bytes"));
    }
    Ok(())
}

/// Compares what the descriptor says with what the manifest says.
fn check_identity(descriptor: &Descriptor, hello: &Hello) -> Result<(), Failure> {
    let incompatible = |message: String| Err((Kind::Incompatible, message));
    let expected = match hello.kind {
        PluginKind::Storage => "xylem:plugin/storage-plugin",
        PluginKind::Monitor => "xylem:plugin/monitor-plugin",
    };
    let world = text(descriptor.world)?;
    let (name, version) = world.split_once('@').unwrap_or((&world, ""));
    if name != expected || !interface_is_served(version) {
        return incompatible(format!("its world is {world}, wanted is {expected}@0.1"));
    }
    for (what, said, manifest) in [
        ("name", text(descriptor.name)?, &hello.package),
        ("version", text(descriptor.version)?, &hello.version),
    ] {
        if said != *manifest {
            return incompatible(format!(
                "its {what} is {said}, the manifest says {manifest}"
            ));
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "reads a text of the object")]
fn text(text: Text) -> Result<String, Failure> {
    if text.data.is_null() || text.len > TEXT_BYTES_MAX {
        return Err((Kind::Incompatible, format!("a text of {} bytes", text.len)));
    }
    // SAFETY: the descriptor's promise.
    let bytes = unsafe { std::slice::from_raw_parts(text.data, text.len) };
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

impl Plugin for Library {
    fn interfaces(&self) -> Vec<String> {
        self.interfaces.clone()
    }

    #[expect(unsafe_code, reason = "calls a function of the object")]
    fn call(&self, call: &Call<'_>) -> Result<Vec<u8>, Failure> {
        let Call {
            id,
            method,
            parameters,
            ..
        } = call;
        CURRENT.set(*id);
        let mut out = Buffer::EMPTY;
        // SAFETY: the descriptor's promise; both texts and `out` live until it returns.
        let status = unsafe {
            (self.call)(
                method.as_ptr(),
                method.len(),
                parameters.as_ptr(),
                parameters.len(),
                &raw mut out,
            )
        };
        let bytes = take(out)?;
        let said = || String::from_utf8_lossy(&bytes).into_owned();
        match status {
            abi::DONE => Ok(bytes),
            abi::PANICKED => Err((Kind::Crashed, format!("it panicked: {}", said()))),
            abi::BAD_REQUEST => Err((Kind::Incompatible, said())),
            other => Err((Kind::Incompatible, format!("it returned status {other}"))),
        }
    }
}

/// Copies what a plugin returned and gives it back.
#[expect(unsafe_code, reason = "reads and frees a buffer of the object")]
fn take(buffer: Buffer) -> Result<Vec<u8>, Failure> {
    let bytes = if buffer.data.is_null() {
        Ok(Vec::new())
    } else if buffer.len > RESULT_BYTES_MAX {
        let message = format!(
            "its answer has {} bytes, {RESULT_BYTES_MAX} at most",
            buffer.len
        );
        Err((Kind::Incompatible, message))
    } else {
        // SAFETY: the object says that this much is there.
        Ok(unsafe { std::slice::from_raw_parts(buffer.data, buffer.len) }.to_vec())
    };
    if let (false, Some(free)) = (buffer.data.is_null(), buffer.free) {
        // SAFETY: the function that came with the buffer, called once.
        unsafe { free(buffer.data, buffer.len) };
    }
    bytes
}

/// Serves a host function for the object.
#[expect(unsafe_code, reason = "called by the object")]
unsafe extern "C" fn host_call(
    context: *mut c_void,
    method: *const u8,
    method_len: usize,
    body: *const u8,
    body_len: usize,
    out: *mut Buffer,
) -> i32 {
    // SAFETY: the object passes the table's context, two texts and a place for the answer.
    let (functions, method, body) = unsafe {
        (
            &*context.cast_const().cast::<Functions>(),
            std::slice::from_raw_parts(method, method_len),
            std::slice::from_raw_parts(body, body_len),
        )
    };
    let answer = functions.call(CURRENT.get(), &String::from_utf8_lossy(method), body);
    let answer = answer.into_boxed_slice();
    let len = answer.len();
    let data = Box::into_raw(answer).cast::<u8>();
    // SAFETY: `out` is a place for a buffer.
    unsafe {
        out.write(Buffer {
            data,
            len,
            free: Some(free),
        })
    };
    abi::DONE
}

/// Frees an answer of [`host_call`].
#[expect(unsafe_code, reason = "called by the object")]
unsafe extern "C" fn free(data: *mut u8, len: usize) {
    // SAFETY: `host_call` made the pair from a box, and the object gives it back once.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, len)) });
}
