//! Marks in the instruction stream for a counting plugin (`xtask/plugin/count.c`). Elsewhere the marks do nothing.
#![cfg_attr(freestanding, allow(unsafe_code))] // a no-operation with a displacement of its own

/// Executes mark `N`, below 65536.
#[inline(always)]
pub fn mark<const N: u32>() {
    const { assert!(N < 0x1_0000) };
    #[cfg(freestanding)]
    // SAFETY: a no-operation, which touches neither memory nor registers.
    unsafe {
        core::arch::asm!(
            "nop dword ptr [rax + 0x4d4b0000 + {mark}]",
            mark = const N,
            options(nomem, nostack, preserves_flags)
        );
    }
}
