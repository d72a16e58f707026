//! What the cases stand on: here a kernel of its own. `guests/hostile-linux` runs the same cases on another.

pub(crate) use pvrt::hypercall::mmu::pte;
pub(crate) use pvrt::{println, probe, space};

/// The cases may do to this kernel what they like, and are the kernel: their own instructions run where its do.
pub(crate) const KERNEL: bool = true;

/// Where random numbers begin.
pub(crate) fn seed() -> u64 {
    pvrt::time::tsc()
}

/// Sets the timer that this kernel needs: none, since it sets its own whenever it sleeps.
pub(crate) fn set_own_timer() {}

/// Whether a random call would end this kernel by rights, beyond what would end any.
pub(crate) fn is_own_harm(_number: u32, _args: &[u64; 5], _scratch: &space::Scratch) -> bool {
    false
}

/// A grant of any frame to any domain: scratch memory, or what no domain should be able to grant.
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
