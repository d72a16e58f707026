//! State that exists once per kernel: a `static` in an image, a thread-local on the host. So each of the tests that run
//! side by side has a kernel of its own.

/// A `static` with the access function of `std::thread::LocalKey`.
#[cfg(freestanding)]
pub(crate) struct Global<T>(T);

#[cfg(freestanding)]
impl<T> Global<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }

    /// Gives `f` the value.
    #[inline]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.0)
    }
}

/// Declares `static NAME: T = const expression;` with per-kernel extent; used by `NAME.with(|value| ...)`.
macro_rules! global {
    ($(#[$meta:meta])* static $name:ident: $type:ty = $init:expr;) => {
        #[cfg(freestanding)]
        $(#[$meta])*
        static $name: $crate::global::Global<$type> = $crate::global::Global::new($init);
        #[cfg(not(freestanding))]
        std::thread_local! {
            // The value is never dropped: tasks that a test leaves behind may use the value while the thread ends.
            $(#[$meta])*
            static $name: core::mem::ManuallyDrop<$type> = const { core::mem::ManuallyDrop::new($init) };
        }
    };
}
pub(crate) use global;
