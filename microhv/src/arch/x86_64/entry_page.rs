//! What a CPU has for guests that run on page tables which map next to nothing of the hypervisor's (`roots.rs`). Every area has
//! room for that; the scratch word is used on all CPUs.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;

use microhv::frames::copies::{COPIES, RootCopies};
use x86_64::structures::tss::TaskStateSegment;

/// In what CR3 is loaded with: what the TLB has of that process-context identifier stays.
pub(crate) const KEEP: u64 = 1 << 63;

/// A CPU's page tables for guests, if `roots.rs` made any.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OwnTables {
    /// What the level 4 tables are copies of.
    pub(crate) copies: RootCopies,
    /// What CR3 is to be for those: their machine addresses, and with process-context identifiers one for each, and [`KEEP`].
    pub(crate) tables: [AtomicU64; COPIES],
    /// [`KEEP`] with process-context identifiers, else 0.
    pub(crate) keep: AtomicU64,
    /// The machine address of the level 2 table, and the address, of the one descriptor window that they show.
    pub(crate) window_table: AtomicU64,
    pub(crate) window: AtomicU64,
}

/// The page of an area that is mapped while a guest runs, where little else of the hypervisor is. The page's upper half is a stack.
#[repr(C, align(4096))]
pub(crate) struct EntryPage {
    /// The guest's stack pointer, for the first instructions of SYSCALL.
    pub(crate) scratch: AtomicU64,
    /// What CR3 held when this CPU left to a guest, if guests run on other tables than that.
    pub(crate) full: AtomicU64,
    /// The hypervisor's own level 4 table.
    pub(crate) hypervisor: AtomicU64,
    /// Task state that names this page's stack.
    pub(crate) tss: UnsafeCell<MaybeUninit<TaskStateSegment>>,
    rest: UnsafeCell<[u8; 2048]>,
}

impl OwnTables {
    pub(crate) const fn new() -> Self {
        Self {
            copies: RootCopies::new(),
            tables: [const { AtomicU64::new(0) }; COPIES],
            keep: AtomicU64::new(0),
            window_table: AtomicU64::new(0),
            window: AtomicU64::new(0),
        }
    }
}

impl EntryPage {
    pub(crate) const fn new() -> Self {
        Self {
            scratch: AtomicU64::new(0),
            full: AtomicU64::new(0),
            hypervisor: AtomicU64::new(0),
            tss: UnsafeCell::new(MaybeUninit::zeroed()),
            rest: UnsafeCell::new([0; 2048]),
        }
    }
}
