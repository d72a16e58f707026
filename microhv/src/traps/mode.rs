//! Guest kernel mode and user mode: page tables and GS base.

use core::sync::atomic::Ordering;

use ring_abi::types::Mfn;

use crate::domain::{Current, Vcpu};
use crate::platform::Platform;

/// The L4 that the vCPU's present mode uses.
pub fn loaded_l4(vcpu: &Vcpu) -> Option<Mfn> {
    if vcpu.user_mode.load(Ordering::Relaxed) { vcpu.cr3_user.get() } else { vcpu.cr3_kernel.get() }
}

/// Goes to kernel mode, if the vCPU was in user mode. Returns whether it was.
pub fn leave_user_mode<P: Platform>(cur: &Current<'_, P>) -> bool {
    if !cur.vcpu.user_mode.load(Ordering::Relaxed) {
        return false;
    }
    cur.vcpu.user_mode.store(false, Ordering::Relaxed);
    cur.hv.platform.swap_gs();
    if let Some(l4) = cur.vcpu.cr3_kernel.get() {
        cur.hv.platform.load_cr3(l4);
    }
    // The user page tables do not map the areas that the kernel registered by address, so these could not be
    // written while user mode ran.
    if cur.vcpu.areas_stale.load(Ordering::Relaxed) {
        crate::time::update_areas(&cur.hv.platform, cur.domain, cur.vcpu);
    }
    true
}

/// Goes from kernel mode to user mode; `false`, and nothing changes, when the guest gave no user tables.
pub(super) fn enter_user_mode<P: Platform>(cur: &Current<'_, P>) -> bool {
    let Some(l4) = cur.vcpu.cr3_user.get() else { return false };
    cur.vcpu.user_mode.store(true, Ordering::Relaxed);
    cur.hv.platform.swap_gs();
    cur.hv.platform.load_cr3(l4);
    true
}
