//! The page of a CPU's area that is mapped in each page table which guests run on, and what a CPU has for guests that run on tables
//! which map next to nothing else of the hypervisor's (`roots.rs`).

use core::cell::UnsafeCell;
use core::mem::{MaybeUninit, offset_of};
use core::sync::atomic::AtomicU64;

use microhv::frames::copies::{COPIES, RootCopies};
use ring_abi::guest_context::CpuUserRegs;
use x86_64::structures::tss::TaskStateSegment;

/// In what CR3 is loaded with: what the TLB has of that process-context identifier stays.
pub(crate) const KEEP: u64 = 1 << 63;

/// A CPU's page tables for guests, if `roots.rs` made any.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct OwnTables {
    /// What the level 4 tables are copies of, and which of them is for the guest that runs.
    pub(crate) copies: RootCopies,
    /// What CR3 is to be for those: their machine addresses, and with process-context identifiers one for each, and [`KEEP`].
    pub(crate) tables: [AtomicU64; COPIES],
    /// [`KEEP`] with process-context identifiers, else 0.
    pub(crate) keep: AtomicU64,
    /// The machine address of the level 2 table, and the address, of the one descriptor window that they show.
    pub(crate) window_table: AtomicU64,
    pub(crate) window: AtomicU64,
}

/// The page of an area that is mapped while a guest runs, where little else of the hypervisor is.
#[repr(C, align(4096))]
pub(crate) struct EntryPage {
    /// Task state: the stacks that the CPU switches to. Zeros, which cost no room in the file, until `load_segments`.
    pub(crate) tss: UnsafeCell<MaybeUninit<TaskStateSegment>>,
    /// Room for what is pushed where an IRET from the frame faults, and for nothing else.
    rest: UnsafeCell<[u8; REST_BYTES]>,
    /// The registers of the vCPU that this CPU has loaded, where entries from guests store them.
    pub(crate) frame: UnsafeCell<MaybeUninit<CpuUserRegs>>,
    /// Top of the main stack.
    pub(crate) stack: AtomicU64,
    /// What CR3 is in the hypervisor, where guests run on other tables than that.
    pub(crate) full: AtomicU64,
    /// The hypervisor's own level 4 table.
    pub(crate) hypervisor: AtomicU64,
    end: u64,
}

const REST_BYTES: usize = 4096 - 4 * 8 - size_of::<TaskStateSegment>() - size_of::<CpuUserRegs>();
const _: () = assert!(size_of::<EntryPage>() == 4096);
// The processor begins its pushes at a multiple of 16.
const _: () = assert!((offset_of!(EntryPage, frame) + offset_of!(CpuUserRegs, es)).is_multiple_of(16));

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
            tss: UnsafeCell::new(MaybeUninit::zeroed()),
            rest: UnsafeCell::new([0; REST_BYTES]),
            frame: UnsafeCell::new(MaybeUninit::zeroed()),
            stack: AtomicU64::new(0),
            full: AtomicU64::new(0),
            hypervisor: AtomicU64::new(0),
            end: 0,
        }
    }
}
