//! What guests see of the CPU, as the toolstack reads and sets it: leaves of `cpuid`. No MSR is part of a policy.

use ring_abi::domctl::XenDomctlCpuPolicy;
use ring_abi::guest_context::{XenCpuidLeaf, XenMsrEntry};
use ring_abi::types::GuestVa;

use super::Operation;
use crate::domain::Current;
use crate::emul::shown;
use crate::emul::state::has_subleaves;
use crate::hypercall::{Answer, HypercallError};
use crate::platform::{CpuidResult, Platform};
use crate::time::state::Runstate;

/// Leaves that a policy may have: more than there are of any CPU.
const MAX_LEAVES: u32 = 256;
/// `XEN_CPUID_INPUT_UNUSED`, `XEN_CPUID_NO_SUBLEAF`: the leaf has no sub-leaves, or no leaf is at fault.
const UNUSED: u32 = u32::MAX;
/// First of the extended leaves.
const EXTENDED: u32 = 0x8000_0000;
/// Sub-leaves of leaf 4 at most: one for each cache.
const CACHES: u32 = 8;

/// Writes the leaves that `query` answers to `list`, which has room for `room`; returns how many these are. To no list: how many
/// there are at most.
///
/// # Errors
/// `NoBuffers`: there is not so much room. `Fault`.
pub(in crate::hypercall) fn write_leaves<P: Platform>(
    cur: &Current<'_, P>,
    list: u64,
    room: u32,
    query: impl Fn(u32, u32) -> CpuidResult,
) -> Answer<u32> {
    if list == 0 {
        return Ok(MAX_LEAVES);
    }
    let mut done = 0;
    let mut give = |leaf: u32, subleaf: u32, of: CpuidResult| -> Answer {
        HypercallError::NoBuffers.when(done == room)?;
        let entry = XenCpuidLeaf { leaf, subleaf, a: of.eax, b: of.ebx, c: of.ecx, d: of.edx };
        cur.copy_out_at(GuestVa::new(list), done.into(), &entry)?;
        done += 1;
        Ok(())
    };
    for base in [0, EXTENDED] {
        let last = query(base, 0).eax.min(base + 0xff);
        for leaf in base..=last.max(base) {
            if !has_subleaves(leaf) {
                give(leaf, UNUSED, query(leaf, 0))?;
                continue;
            }
            let states = query(0xd, 0);
            let states = u64::from(states.edx) << 32 | u64::from(states.eax);
            for subleaf in 0..64 {
                let of = query(leaf, subleaf);
                let is_there = match leaf {
                    4 => subleaf < CACHES && of.eax & 0x1f != 0,
                    7 => subleaf == 0,
                    _ => subleaf < 2 || states >> subleaf & 1 != 0,
                };
                if is_there {
                    give(leaf, subleaf, of)?;
                }
            }
        }
    }
    Ok(done)
}

impl<P: Platform> Operation<'_, '_, P> {
    pub(super) fn get_cpu_policy(&self, mut op: XenDomctlCpuPolicy) -> Answer<XenDomctlCpuPolicy> {
        let query = |leaf, subleaf| shown(self.cur.hv, self.domain, 0, leaf, subleaf)[1];
        op.nr_leaves = write_leaves(self.cur, op.leaves, op.nr_leaves, query)?;
        op.nr_msrs = 0;
        Ok(op)
    }

    /// Hides what the leaves of a policy do not show, before the domain runs.
    ///
    /// # Errors
    /// `Exists`: the domain has run. `TooBig`: so many leaves no CPU has. `Invalid`: a leaf shows more than the CPU and microhv
    /// give, or an MSR is part of the policy: `op` says which. `Fault`.
    pub(super) fn set_cpu_policy(&self, op: &mut XenDomctlCpuPolicy) -> Answer {
        self.not_own()?;
        (op.err_leaf, op.err_subleaf, op.err_msr) = (UNUSED, UNUSED, UNUSED);
        let has_run = |state, ran_ns| state == Runstate::Running || ran_ns != 0;
        let has_run = self.domain.vcpus.iter().any(|vcpu| {
            let time = vcpu.time.lock();
            has_run(time.state, time.spent_ns[Runstate::Running as usize])
        });
        HypercallError::Exists.when(has_run)?;
        HypercallError::TooBig.when(op.nr_leaves > MAX_LEAVES)?;
        // As on Xen, leaves that are not given stay as they are.
        let mut draft = self.domain.levels.draft();
        for index in 0..op.nr_leaves {
            let given: XenCpuidLeaf = self.cur.copy_in_at(GuestVa::new(op.leaves), index.into())?;
            let subleaf = if has_subleaves(given.leaf) { given.subleaf } else { 0 };
            if !draft.take(&given, shown(self.cur.hv, self.domain, 0, given.leaf, subleaf)[0]) {
                (op.err_leaf, op.err_subleaf) = (given.leaf, given.subleaf);
                return Err(HypercallError::Invalid);
            }
        }
        if op.nr_msrs != 0 {
            op.err_msr = self.cur.copy_in::<XenMsrEntry>(GuestVa::new(op.msrs))?.idx;
            return Err(HypercallError::Invalid);
        }
        self.domain.levels.set(&draft);
        Ok(())
    }
}
