//! The one [`Platform`] of the image, and the hypervisor over it.
//!
//! Each subject's file implements that subject's trait for [`Machine`].
#![allow(unsafe_code)] // the hypervisor is made in place

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use arrayvec::ArrayVec;
use microhv::Hypervisor;
use microhv::boot::acpi::Acpi;
use microhv::domain::Current;
use microhv::platform::{MAX_CPUS, MachineInfo, Platform};

/// The hypervisor of this machine.
pub(crate) type Hv = Hypervisor<Machine>;
/// The vCPU that runs here, and all that the vCPU may act on.
pub(crate) type Cur<'a> = Current<'a, Machine>;

/// What cannot be found out by an instruction.
#[derive(Debug)]
pub(crate) struct Machine {
    /// ACPI's tables.
    pub(crate) acpi: &'static Acpi,
    /// The CPUs' local APIC ids, by the CPUs' numbers.
    pub(crate) apic_ids: ArrayVec<u32, MAX_CPUS>,
    /// The hypervisor's command line.
    pub(crate) command_line: &'static str,
    /// What the boot CPU is.
    pub(crate) info: MachineInfo,
    /// Halt instead of a restart.
    pub(crate) no_reboot: bool,
}

impl Platform for Machine {}

struct Global(UnsafeCell<MaybeUninit<Hv>>);

// SAFETY: written once before any other use; `Hypervisor` is shared by all CPUs and is `Sync`.
unsafe impl Sync for Global {}

static HYPERVISOR: Global = Global(UnsafeCell::new(MaybeUninit::uninit()));
static IS_UP: AtomicBool = AtomicBool::new(false);

/// Installs the hypervisor.
///
/// # Safety
/// Once, at start-up, before [`hypervisor`].
pub(crate) unsafe fn install(hv: Hv) -> &'static mut Hv {
    // SAFETY: the caller's duty; nobody else has a reference yet.
    let hv = unsafe { (*HYPERVISOR.0.get()).write(hv) };
    IS_UP.store(true, Ordering::Release);
    hv
}

/// The hypervisor. Only after [`install`].
#[inline(always)]
pub(crate) fn hypervisor() -> &'static Hv {
    // SAFETY: guests and interrupts come only after `install`.
    unsafe { (*HYPERVISOR.0.get()).assume_init_ref() }
}

/// The hypervisor, if it is installed.
pub(crate) fn hypervisor_if_up() -> Option<&'static Hv> {
    IS_UP.load(Ordering::Acquire).then(hypervisor)
}
