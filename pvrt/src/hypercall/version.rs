//! `xen_version`. ABI: `xen/include/public/version.h`.

use super::{Result, check, op, raw};
use ring_abi::hypercall::__HYPERVISOR_XEN_VERSION as NR;
use ring_abi::version::*;

/// Major version in the upper 16 bits, minor in the lower.
///
/// # Errors
/// `ENOSYS`: the hypervisor does not know the call.
pub fn version() -> Result<u32> {
    // SAFETY: no argument.
    check(unsafe { raw(NR, [u64::from(XENVER_VERSION), 0, 0, 0, 0]) }).map(|version| version as u32)
}

/// The text behind the version's numbers: `.7` and the vendor's suffix, up to the NUL.
///
/// # Errors
/// - `EFAULT`: the hypervisor cannot write the text.
/// - `EPERM`: the hypervisor hides the text from this domain.
pub fn extra_version() -> Result<[u8; 16]> {
    let mut text = [0; 16];
    // SAFETY: the hypervisor writes 16 bytes.
    unsafe { op(NR, XENVER_EXTRAVERSION, &mut text) }?;
    Ok(text)
}

/// The capabilities, "xen-3.0-x86_64" and others separated by blanks, up to the NUL.
///
/// # Errors
/// - `EFAULT`: the hypervisor cannot write the text.
/// - `EPERM`: the hypervisor hides the text from this domain.
pub fn capabilities() -> Result<[u8; 1024]> {
    let mut text = [0; 1024];
    // SAFETY: the hypervisor writes 1024 bytes.
    unsafe { op(NR, XENVER_CAPABILITIES, &mut text) }?;
    Ok(text)
}

/// The hypervisor's command line, up to the NUL.
///
/// # Errors
/// `EFAULT`: the hypervisor cannot write the text.
pub fn command_line() -> Result<[u8; 1024]> {
    let mut text = [0; 1024];
    // SAFETY: the hypervisor writes 1024 bytes.
    unsafe { op(NR, XENVER_COMMANDLINE, &mut text) }?;
    Ok(text)
}

/// Feature bits of word `index`, `XENFEAT_*`.
///
/// # Errors
/// `EINVAL`: there is no such word.
pub fn features(index: u32) -> Result<u32> {
    let mut arg = XenFeatureInfo { submap_idx: index, submap: 0 };
    // SAFETY: plain data in and out.
    unsafe { op(NR, XENVER_GET_FEATURES, &mut arg) }?;
    Ok(arg.submap)
}
