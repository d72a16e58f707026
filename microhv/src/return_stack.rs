//! Calls that go deep, and the CPU's stack of return addresses (ITS, "Indirect Target Selection").
//!
//! A CPU predicts returns by a stack of its own, of 16 entries at least. A return that finds the stack empty is predicted as an
//! indirect branch is, and on CPUs with ITS direct branches steer such a prediction. So there no return may find the stack
//! empty: the entry from a guest fills it, and whoever calls deeper than the stack fills it again before its own return. The
//! image check counts the depth of calls, and fails an image in which a return lacks that.
#![allow(unsafe_code)] // what the assembly has

#[cfg(freestanding)]
unsafe extern "C" {
    fn fill_return_stack();
}

/// Fills the CPU's stack of return addresses, where the CPU needs that.
#[inline(always)]
pub fn fill() {
    #[cfg(freestanding)]
    // SAFETY: the function returns at once, or makes calls that it forgets; it keeps the registers that a call keeps.
    unsafe {
        fill_return_stack();
    }
}

/// Fills the CPU's stack of return addresses when this is dropped: behind the calls of the function, or the fields of the
/// value, that this was made in first, or is last in.
#[derive(Debug, Default)]
#[must_use = "dropped at once, it fills the stack ahead of the calls and not behind them"]
pub struct FillAtEnd(());

impl Drop for FillAtEnd {
    #[inline(always)]
    fn drop(&mut self) {
        fill();
    }
}

/// For the beginning of a function that calls deep: its returns are ahead of a full stack, whichever is taken.
#[inline(always)]
pub fn fill_at_end() -> FillAtEnd {
    FillAtEnd(())
}
