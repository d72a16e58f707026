//! `domctl` and `sysctl`, for the control domain. ABI: `xen/include/public/domctl.h`, `sysctl.h` (4.17).

use super::{Result, check, raw};
use ring_abi::domctl::XenDomctl;
use ring_abi::hypercall::{__HYPERVISOR_DOMCTL, __HYPERVISOR_SYSCTL};
use ring_abi::sysctl::XenSysctl;

/// `domctl`: one operation on a domain. The call reads and writes `arg` in place.
///
/// # Safety
/// Guest handles inside `arg` must be valid for what the operation reads and writes.
///
/// # Errors
/// The operation's errno.
pub unsafe fn domctl(arg: &mut XenDomctl) -> Result<u64> {
    // SAFETY: `arg` is valid; the caller vouches for the handles inside.
    check(unsafe { raw(__HYPERVISOR_DOMCTL, [(arg as *mut XenDomctl) as u64, 0, 0, 0, 0]) })
}

/// `sysctl`: one operation on the machine. The call reads and writes `arg` in place.
///
/// # Safety
/// The requirements of [`domctl`].
///
/// # Errors
/// The operation's errno.
pub unsafe fn sysctl(arg: &mut XenSysctl) -> Result<u64> {
    // SAFETY: `arg` is valid; the caller vouches for the handles inside.
    check(unsafe { raw(__HYPERVISOR_SYSCTL, [(arg as *mut XenSysctl) as u64, 0, 0, 0, 0]) })
}
