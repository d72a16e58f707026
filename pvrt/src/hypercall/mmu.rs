//! The page-table calls. ABI: `xen/include/public/xen.h`.

pub use ring_abi::pte;

use super::{Result, check, raw};
use ring_abi::errno::Errno;
use ring_abi::hypercall::{__HYPERVISOR_MMU_UPDATE, __HYPERVISOR_MMUEXT_OP, __HYPERVISOR_UPDATE_VA_MAPPING};
use ring_abi::mmu::{
    MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE,
    MmuUpdate, MmuextOp,
};
use ring_abi::types::{DomId, Mfn};

/// `mmu_update`: applies page-table updates in order; the frames belong to `owner`. An error comes with the number of
/// updates that were done before the error.
///
/// # Safety
/// The mappings of memory in which Rust objects live must stay as they are.
///
/// # Errors
/// The errno of the first refused update:
/// - `EINVAL`: the entry must not be so, or the frame cannot have the type that the update needs.
/// - `EPERM`: the caller has no right over the domain.
/// - `EBUSY`: a frame is in use as something else.
/// - `EFAULT`: the hypervisor cannot read the list.
pub unsafe fn mmu_update(
    updates: &[MmuUpdate],
    owner: DomId,
) -> core::result::Result<(), (usize, ring_abi::errno::Errno)> {
    let mut done = 0u32;
    let args =
        [updates.as_ptr() as u64, updates.len() as u64, (&raw mut done) as u64, u64::from(owner.raw()), 0];
    // SAFETY: the list is only read, `done` is written; the caller vouches for the updates.
    check(unsafe { raw(__HYPERVISOR_MMU_UPDATE, args) }).map(|_| ()).map_err(|errno| (done as usize, errno))
}

/// `update_va_mapping`: sets the L1 entry that maps `va`; `flags` are `UVMF_*`.
///
/// # Safety
/// The requirements of [`mmu_update`].
///
/// # Errors
/// `EINVAL`: the entry must not be so, or `va` has no L1 table.
pub unsafe fn update_va_mapping(va: u64, entry: u64, flags: u64) -> Result<()> {
    // SAFETY: the caller vouches for the mapping.
    check(unsafe { raw(__HYPERVISOR_UPDATE_VA_MAPPING, [va, entry, flags, 0, 0]) }).map(|_| ())
}

/// `mmuext_op`: pins, base pointers, flushes, in order; `owner` owns the frames.
///
/// # Safety
/// The requirements of [`mmu_update`]; and a new base pointer must map this kernel as the old one did.
///
/// # Errors
/// The errno of the first refused operation.
pub unsafe fn mmuext_op(ops: &[MmuextOp], owner: DomId) -> Result<()> {
    let args = [ops.as_ptr() as u64, ops.len() as u64, 0, u64::from(owner.raw()), 0];
    // SAFETY: the list is only read; the caller vouches for the operations.
    check(unsafe { raw(__HYPERVISOR_MMUEXT_OP, args) }).map(|_| ())
}

/// Pins page tables of another domain as tables of `level` 1 to 4. The hypervisor then checks them, and all tables below that it has
/// not checked yet.
///
/// # Errors
/// - `EINVAL`: a table holds what a table must not hold.
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
pub fn pin_foreign(dom: DomId, level: u8, tables: &[Mfn]) -> Result<()> {
    let commands = [MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE];
    let command = (level as usize).checked_sub(1).and_then(|index| commands.get(index));
    foreign(dom, *command.ok_or(Errno::EINVAL)?, tables)
}

/// Undoes a pin of each of `tables`.
///
/// # Errors
/// - `EINVAL`: one of the tables is not pinned.
/// - `EPERM`: the caller has no right over the domain.
/// - `ESRCH`: there is no such domain.
pub fn unpin_foreign(dom: DomId, tables: &[Mfn]) -> Result<()> {
    foreign(dom, MMUEXT_UNPIN_TABLE, tables)
}

fn foreign(dom: DomId, cmd: u32, tables: &[Mfn]) -> Result<()> {
    for tables in tables.chunks(8) {
        let mut ops = [MmuextOp::default(); 8];
        for (op, table) in ops.iter_mut().zip(tables) {
            (op.cmd, op.arg1) = (cmd, table.raw());
        }
        // SAFETY: the frames are another domain's: no mapping of this kernel changes.
        unsafe { mmuext_op(&ops[..tables.len()], dom) }?;
    }
    Ok(())
}
