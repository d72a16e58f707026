#![cfg_attr(freestanding, no_std)]
//! The paravirtual runtime: what every PV kernel here stands on.
//!
//! An image calls [`kernel!`] with its main function. The image then has the entry point and ELF notes, a stack with a
//! guard, a trap table that panics with registers and a call chain, all of its memory mapped, a heap, a logger on its
//! console, and an executor. The image runs on any hypervisor with Xen's x86_64 PV ABI, as dom0 or as domU.
//!
//! On the host the same library code runs under test: hypercalls go to a stand-in ([`host`]), time is virtual, and
//! every thread is a kernel of its own.

extern crate alloc;

pub mod account;
#[cfg(freestanding)]
mod arch;
pub mod boot;
#[cfg(freestanding)]
mod clock;
pub mod console;
pub mod event;
pub mod executor;
mod global;
pub mod grant;
#[cfg(not(freestanding))]
pub mod host;
pub mod hypercall;
pub mod marker;
pub mod mem;
pub mod pio;
#[cfg(freestanding)]
pub mod probe;
#[cfg(freestanding)]
mod shared;
#[cfg(freestanding)]
pub mod space;

pub use account::Account;
pub use boot::BootInfo;
#[cfg(freestanding)]
pub use boot::install_handlers;
pub use executor::{spawn, spawn_for, time, yield_now};
#[cfg(freestanding)]
pub use shared::info as shared_info;

/// Makes `$main` the kernel of this image.
///
/// `kernel!(main)` takes `fn main(boot: BootInfo) -> !`; `kernel!(async main)` takes `async fn main(boot: BootInfo)`,
/// which runs as the first task: when `main` returns, the domain powers off. Expands to nothing on the host.
#[macro_export]
macro_rules! kernel {
    (async $main:path) => {
        #[cfg(freestanding)]
        const _: () = {
            #[allow(unsafe_code)] // the symbol that the entry code calls
            #[unsafe(no_mangle)]
            fn pvrt_main(boot: $crate::BootInfo) -> ! {
                $crate::boot::run($main(boot))
            }
        };
    };
    ($main:path) => {
        #[cfg(freestanding)]
        const _: () = {
            #[allow(unsafe_code)] // the symbol that the entry code calls
            #[unsafe(no_mangle)]
            fn pvrt_main(boot: $crate::BootInfo) -> ! {
                $main(boot)
            }
        };
    };
}
