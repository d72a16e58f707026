//! Bits of the processor's page-table entries, which guests and hypervisor write in the same tables.
//!
//! Source: the processor's manuals, "4-level paging".

/// Present.
pub const P: u64 = 1;
/// Writable.
pub const RW: u64 = 1 << 1;
/// Reachable from user mode; in a PV guest, from any of its code.
pub const US: u64 = 1 << 2;
/// Write-through, of the memory type.
pub const PWT: u64 = 1 << 3;
/// Cache disable, of the memory type.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// Large page at levels 2 and 3.
pub const PSE: u64 = 1 << 7;
/// Page attribute table, at level 1.
pub const PAT: u64 = 1 << 7;
/// Global.
pub const G: u64 = 1 << 8;
/// No execution.
pub const NX: u64 = 1 << 63;
/// The frame's address.
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
/// microhv's own mark in a user's level 1 entry of a table that dirty tracking has been over: the entry is for writing, and has no RW
/// until the first write. A toolstack that reads tables of a tracked domain sees the mark. Linux uses none of bits 53-56.
pub const MARK: u64 = 1 << 55;
