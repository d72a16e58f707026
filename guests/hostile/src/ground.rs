//! The environment of the cases: here a kernel of their own. `guests/hostile-linux` runs the same cases under
//! Linux.

pub(crate) use pvrt::hypercall::mmu::pte;
pub(crate) use pvrt::{println, probe, space};

/// The cases are part of this kernel, and may break it: their instructions run in kernel mode.
pub(crate) const KERNEL: bool = true;

/// The seed of random numbers.
pub(crate) fn seed() -> u64 {
    pvrt::time::tsc()
}

/// Does nothing: this kernel sets its timer whenever it sleeps.
pub(crate) fn set_own_timer() {}

/// Whether a random call would rightly break this kernel; `wild` itself leaves out calls that would break any
/// kernel.
pub(crate) fn is_own_harm(_number: u32, _args: &[u64; 5], _scratch: &space::Scratch) -> bool {
    false
}

/// Grants any frame to any domain: scratch memory, or a frame that no domain may grant.
#[allow(unsafe_code)]
pub(crate) fn grant_access(
    domain: ring_abi::types::DomId,
    frame: ring_abi::types::Mfn,
    readonly: bool,
) -> Result<pvrt::grant::GrantRefOwned, ring_abi::errno::Errno> {
    // SAFETY: this guest's own frames among them are scratch pages, which are shared bytes alone and are unmapped by each
    // case before they go; the others are no memory of this kernel.
    unsafe { pvrt::grant::grant_access(domain, frame, readonly) }
}
