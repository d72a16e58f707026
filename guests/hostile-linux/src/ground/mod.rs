//! What the cases stand on here: a process of root's, in a guest whose kernel knows nothing of them.

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

/// The kernel is another's, and the cases are no part of it.
pub(crate) const KERNEL: bool = false;

/// Prepares everything.
///
/// # Errors
/// Something that takes root's rights, the module or memory is missing: what, and why.
pub(crate) fn install() -> Result<(), String> {
    space::keep_in_memory()?;
    probe::install();
    pvrt::host::install(Box::new(privcmd::Privcmd::open()?));
    kernel::install()?;
    space::install()?;
    grant::install()
}

/// Leaves this process as its kernel knows it, which takes it apart next.
pub(crate) fn finish() {
    grant::finish();
}

/// Where random numbers begin.
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

/// Whether a random call would end the kernel by rights, beyond what would end any: its stack, its descriptors, its
/// floating point state, its memory.
pub(crate) fn is_own_harm(number: u32, args: &[u64; 5], scratch: &space::Scratch) -> bool {
    match number {
        __HYPERVISOR_STACK_SWITCH | __HYPERVISOR_SET_GDT | __HYPERVISOR_FPU_TASKSWITCH => true,
        __HYPERVISOR_UPDATE_VA_MAPPING => !scratch.holds(args[0]),
        _ => false,
    }
}
