//! Cases for the PV ABI itself: what each hypercall promises, which traps the guest gets with which frame,
//! which instructions are emulated.
//!
//! These cases run only in a booted kernel, as dom0 or as domU. Each case puts back what it changed; [`kit`] catches
//! the traps that a broken promise may cause, and restores the runtime's handlers.

#[cfg(freestanding)]
mod asm;
#[cfg(freestanding)]
mod kit;
#[cfg(freestanding)]
mod second;

/// A list of cases, `CASES`, that need a hypervisor under them, as the crate's `cases!` makes them of others. The
/// functions are those of the module `body` beside the list, `fn(&Env) -> Verdict`, which only images compile.
macro_rules! hypercall_cases {
    (
        $(
            $id:literal = $function:ident {
                title: $title:literal,
                rule: $rule:literal,
                source: $source:literal,
                $(also: [$($also:ident),* $(,)?],)?
            }
        )*
    ) => {
        /// The cases of this area.
        pub const CASES: &[$crate::Case] = &[$(
            $crate::Case {
                id: $id,
                title: $title,
                rule: $rule,
                source: $source,
                needs: &[$crate::Need::Hypervisor $($(, $crate::Need::$also)*)?],
                limit_ms: $crate::case::LIMIT_MS,
                #[cfg(freestanding)]
                run: |env| $crate::hypercall::kit::run(env, body::$function),
                #[cfg(not(freestanding))]
                run: |_| alloc::boxed::Box::pin(async {
                    Err($crate::Problem::Skip($crate::Need::Hypervisor.missing().into()))
                }),
            },
        )*];
    };
}

pub mod calls;
pub mod control;
pub mod debug;
pub mod descriptors;
pub mod emulation;
pub mod event;
pub mod fifo;
pub mod grant;
pub mod iret;
pub mod maps;
pub mod memory;
pub mod mmu;
pub mod mmuext;
pub mod mmuext_flush;
pub mod pending;
pub mod sched;
pub mod smp;
pub mod time;
pub mod traps;
pub mod unreadable;
pub mod upcall;
pub mod user;
pub mod va_mapping;
pub mod vcpu;
pub mod version;

use crate::Case;

/// Every area.
pub const AREAS: &[&[Case]] = &[
    calls::CASES,
    version::CASES,
    memory::CASES,
    maps::CASES,
    mmu::CASES,
    va_mapping::CASES,
    unreadable::CASES,
    mmuext::CASES,
    mmuext_flush::CASES,
    descriptors::CASES,
    event::CASES,
    pending::CASES,
    upcall::CASES,
    fifo::pages::CASES,
    fifo::words::CASES,
    fifo::queues::CASES,
    fifo::ports::CASES,
    grant::table::CASES,
    grant::mapping::CASES,
    grant::copying::CASES,
    grant::wide::versions::CASES,
    grant::wide::status::CASES,
    grant::wide::mapping::CASES,
    grant::wide::copying::CASES,
    sched::CASES,
    vcpu::CASES,
    smp::CASES,
    time::CASES,
    traps::CASES,
    iret::CASES,
    user::CASES,
    debug::CASES,
    emulation::CASES,
    control::CASES,
];
