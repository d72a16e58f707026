//! Flushes that a guest asks for: of the CPU that it calls on, of all CPUs that run its vCPUs, or of those that run a set of them.

use ring_abi::types::GuestVa;
use zerocopy::IntoBytes;

use super::Current;
use crate::domain::MAX_VCPUS;
use crate::frames::pte::is_guest_address;
use crate::mem::pages::{cpus_of, cpus_of_vcpus};
use crate::platform::{CpuSet, GuestFault, Platform};

/// The CPUs whose TLBs may hold entries of the caller's domain, and the caller's own.
pub(super) fn all_cpus<P: Platform>(cur: &Current<'_, P>) -> CpuSet {
    cpus_of(cur.domain).with(cur.hv.platform.cpu())
}

/// The CPUs whose TLBs may hold entries for those of the domain's vCPUs that the bitmap at `at` names, a bit each in words of 64 bits.
///
/// # Errors
/// The address at which the bitmap cannot be read.
pub(super) fn cpus_of_set<P: Platform>(cur: &Current<'_, P>, at: GuestVa) -> Result<CpuSet, GuestFault> {
    let vcpus = &cur.domain.vcpus;
    let mut words = [0u64; MAX_VCPUS as usize / 64];
    cur.copy_from_guest(words[..vcpus.len().div_ceil(64)].as_mut_bytes(), at)?;
    let is_named = |id: u32| words[id as usize / 64] >> (id % 64) & 1 != 0;
    Ok(cpus_of_vcpus(vcpus.iter().filter(|vcpu| is_named(vcpu.id.raw()))))
}

/// Flushes the TLBs of `cpus`.
pub(super) fn flush<P: Platform>(cur: &Current<'_, P>, cpus: CpuSet) {
    if cpus == CpuSet::only(cur.hv.platform.cpu()) {
        cur.hv.platform.flush_tlb_local();
    } else if cpus != CpuSet::default() {
        cur.hv.platform.flush_tlb(cpus);
    }
}

/// Flushes an address from the TLBs of `cpus`.
pub(super) fn invlpg<P: Platform>(cur: &Current<'_, P>, cpus: CpuSet, va: GuestVa) {
    if !is_guest_address(va) {
        return; // nothing of the guest's can be there, and it may not flush what is ours
    }
    if cpus == CpuSet::only(cur.hv.platform.cpu()) {
        cur.hv.platform.invlpg(va);
    } else {
        flush(cur, cpus);
    }
}
