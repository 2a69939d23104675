//! The search under coverage: libFuzzer's loop around one target, which the environment names.

#![no_main]

use std::sync::LazyLock;
use xylem_fuzz::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("XYLEM_FUZZ_TARGET").unwrap_or_default();
    xylem_fuzz::target(&name).expect("XYLEM_FUZZ_TARGET names a target")
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET.check(bytes));
