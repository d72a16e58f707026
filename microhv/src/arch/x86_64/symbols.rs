//! Symbols that the toolchain's precompiled libraries name and that nothing ever calls.
#![allow(unsafe_code)] // exported names

/// `alloc` was compiled for unwinding; its landing pads stay in the image.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() -> ! {
    panic!("unwinding")
}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    panic!("unwinding")
}
