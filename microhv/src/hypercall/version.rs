//! Version and features: the level of the interface is Xen 4.17's.

use ring_abi::segment::HYPERVISOR_VIRT_START;
use ring_abi::types::{GuestVa, PAGE_SIZE};
use ring_abi::version::*;
use ring_abi::vm_assist::VMASST_TYPE_PAE_EXTENDED_CR3;
use zerocopy::FromZeros;

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::domain::Domain;
use crate::platform::Platform;

/// 4.17, as `XENVER_version` gives it.
pub const VERSION: u64 = 4 << 16 | 17;
/// What follows the version.
pub const EXTRAVERSION: &str = ".0-microhv";
/// Kinds of guests.
const CAPABILITIES: &str = "xen-3.0-x86_64";
const COMMANDLINE_LEN: u32 = 1024;

/// The features of `domain`.
fn features(domain: &Domain) -> u32 {
    let mut map = 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
        | 1 << XENFEAT_HIGHMEM_ASSIST
        | 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS
        | 1 << XENFEAT_MEMORY_OP_VNODE_SUPPORTED;
    if domain.assists(VMASST_TYPE_PAE_EXTENDED_CR3) {
        map |= 1 << XENFEAT_PAE_PGDIR_ABOVE_4GB;
    }
    if domain.privileged {
        map | 1 << XENFEAT_DOM0 | 1 << XENFEAT_DIRECT_MAPPED
    } else {
        map | 1 << XENFEAT_NOT_DIRECT_MAPPED
    }
}

/// `xen_version(cmd, arg)`.
///
/// # Errors
/// `Fault`; `Invalid`: no such set of features; `NoData`: there is no build id; `NoSys`: no such command.
pub fn xen_version<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    if args[0] as u32 == XENVER_VERSION {
        return Ok(Outcome::Done(VERSION));
    }
    describe(cur, args[0] as u32, GuestVa::new(args[1]))
}

/// Writes `text` at guest address `arg`, zero-padded to `len` bytes of which the last is zero; in pieces, since the
/// stack is no place for kilobytes.
fn copy_out_text<P: Platform>(cur: &Current<'_, P>, arg: GuestVa, text: &str, len: u32) -> Answer {
    const PIECE: usize = 64;
    let len = len as usize;
    let text = &text.as_bytes()[..text.len().min(len - 1)];
    for start in (0..len).step_by(PIECE) {
        let mut piece = [0; PIECE];
        let rest = text.get(start..).unwrap_or(&[]);
        let used = rest.len().min(PIECE);
        piece[..used].copy_from_slice(&rest[..used]);
        cur.copy_to_guest(arg.wrapping_add(start as u64), &piece[..PIECE.min(len - start)])?;
    }
    Ok(())
}

#[cold]
fn describe<P: Platform>(cur: &Current<'_, P>, command: u32, arg: GuestVa) -> HypercallResult {
    match command {
        XENVER_EXTRAVERSION => copy_out_text(cur, arg, EXTRAVERSION, XEN_EXTRAVERSION_LEN)?,
        XENVER_COMPILE_INFO => {
            let mut info = XenCompileInfo::new_zeroed();
            info.compiler[..5].copy_from_slice(b"rustc");
            info.compile_by[..7].copy_from_slice(b"microhv");
            cur.copy_out(arg, &info)?;
        }
        XENVER_CAPABILITIES => copy_out_text(cur, arg, CAPABILITIES, XEN_CAPABILITIES_INFO_LEN)?,
        XENVER_CHANGESET => copy_out_text(cur, arg, env!("CARGO_PKG_VERSION"), XEN_CHANGESET_INFO_LEN)?,
        XENVER_PLATFORM_PARAMETERS => {
            cur.copy_out(arg, &XenPlatformParameters { virt_start: HYPERVISOR_VIRT_START })?;
        }
        XENVER_GET_FEATURES => {
            let mut info: XenFeatureInfo = cur.copy_in(arg)?;
            HypercallError::Invalid.when(info.submap_idx != 0)?;
            info.submap = features(cur.domain);
            cur.copy_out(arg, &info)?;
        }
        XENVER_PAGESIZE => return Ok(Outcome::Done(PAGE_SIZE as u64)),
        XENVER_GUEST_HANDLE => {
            let handle = *cur.domain.handle.lock();
            cur.copy_to_guest(arg, &handle)?;
        }
        XENVER_COMMANDLINE => {
            let line = if cur.domain.privileged { cur.hv.platform.command_line() } else { "<denied>" };
            copy_out_text(cur, arg, line, COMMANDLINE_LEN)?;
        }
        XENVER_BUILD_ID => {
            HypercallError::NotPermitted.when(!cur.domain.privileged)?;
            let id = cur.hv.platform.build_id();
            HypercallError::NoData.when(id.is_empty())?;
            if arg.raw() != 0 {
                let head: XenBuildId = cur.copy_in(arg)?;
                HypercallError::Invalid.when(head.len == 0)?;
                HypercallError::NoBuffers.when((head.len as usize) < id.len())?;
                cur.copy_to_guest(arg.wrapping_add(size_of::<XenBuildId>() as u64), id)?;
            }
            return Ok(Outcome::Done(id.len() as u64));
        }
        _ => return Err(HypercallError::NoSys),
    }
    Ok(Outcome::OK)
}
