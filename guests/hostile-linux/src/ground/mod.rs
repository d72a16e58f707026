//! The environment of the cases here: a process of root's, in a guest whose kernel knows nothing of the
//! cases.

mod grant;
mod kernel;
mod privcmd;
pub(crate) mod probe;
pub(crate) mod space;

pub(crate) use std::println;

pub(crate) use pvrt::hypercall::mmu::pte;
use ring_abi::hypercall::*;
use ring_abi::vcpu::{VCPUOP_SET_SINGLESHOT_TIMER, VcpuSetSingleshotTimer};

pub(crate) use grant::grant_access;

/// The kernel is Linux, and the cases are not part of the kernel.
pub(crate) const KERNEL: bool = false;

/// Prepares everything.
///
/// # Errors
/// What is missing (root's rights, the module or memory), and why.
pub(crate) fn install() -> Result<(), String> {
    space::keep_in_memory()?;
    probe::install();
    pvrt::host::install(Box::new(privcmd::Privcmd::open()?));
    kernel::install()?;
    space::install()?;
    grant::install()
}

/// Restores this process to what its kernel expects, since the kernel tears it down next.
pub(crate) fn finish() {
    grant::finish();
}

/// The seed of random numbers.
pub(crate) fn seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    time.as_nanos() as u64
}

/// Sets the timer that the kernel waits for: it fires at once, and the kernel sets the next.
pub(crate) fn set_own_timer() {
    let arg = VcpuSetSingleshotTimer { timeout_abs_ns: 1, ..Default::default() };
    let args = [VCPUOP_SET_SINGLESHOT_TIMER.into(), 0, (&raw const arg) as u64, 0, 0];
    space::call(__HYPERVISOR_VCPU_OP, args);
}

/// Whether a random call would rightly break this kernel: by its stack, descriptors, floating point state or
/// memory. `wild` itself leaves out calls that would break any kernel.
pub(crate) fn is_own_harm(number: u32, args: &[u64; 5], scratch: &space::Scratch) -> bool {
    match number {
        __HYPERVISOR_STACK_SWITCH | __HYPERVISOR_SET_GDT | __HYPERVISOR_FPU_TASKSWITCH => true,
        __HYPERVISOR_UPDATE_VA_MAPPING => !scratch.holds(args[0]),
        _ => false,
    }
}
