#![no_main]
//! The instrumented program that `cargo xtask fuzz` runs: one target, named by the environment.

use std::sync::OnceLock;

use fuzz::Target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("MICROHV_FUZZ_TARGET").unwrap_or_default();
        fuzz::find(&name).unwrap_or_else(|| panic!("MICROHV_FUZZ_TARGET names no target: {name:?}"))
    });
    (target.run)(data);
});
