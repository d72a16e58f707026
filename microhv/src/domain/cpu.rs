//! The part of a vCPU that its guest sets by hypercall: a trap, a callback or a switch loads this state.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

use ring_abi::guest_context::TrapInfo;
use ring_abi::types::Mfn;

use super::debug::{DR6_FIXED_ONES, DR7_FIXED_ONES};

/// One gate of the guest's trap table. `address` 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrapGate {
    /// Handler.
    pub address: u64,
    /// Code selector that the guest named; delivery always uses `FLAT_KERNEL_CS`.
    pub cs: u16,
    /// `int n` from a ring above this is refused.
    pub dpl: u8,
    /// Delivery masks event upcalls.
    pub masks_events: bool,
}

impl TrapGate {
    /// The gate that a guest wrote.
    pub(crate) fn from_abi(info: &TrapInfo) -> Self {
        Self {
            address: info.address,
            cs: info.cs | 3,
            dpl: info.flags & 3,
            masks_events: info.flags & 4 != 0,
        }
    }
}

/// An entry point of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Callback {
    /// Handler; 0: none.
    pub address: u64,
    /// Delivery masks event upcalls.
    pub masks_events: bool,
}

/// A [`TrapGate`] of a vCPU.
#[derive(Debug, Default)]
pub struct GateCell {
    address: AtomicU64,
    cs: AtomicU16,
    dpl: AtomicU8,
    masks_events: AtomicBool,
}

impl GateCell {
    /// The gate.
    #[inline(always)]
    pub fn get(&self) -> TrapGate {
        TrapGate {
            address: self.address(),
            cs: self.cs.load(Ordering::Relaxed),
            dpl: self.dpl.load(Ordering::Relaxed),
            masks_events: self.masks_events.load(Ordering::Relaxed),
        }
    }

    /// Handler; 0: none.
    pub fn address(&self) -> u64 {
        self.address.load(Ordering::Relaxed)
    }

    /// Sets the gate.
    pub fn set(&self, gate: TrapGate) {
        self.address.store(gate.address, Ordering::Relaxed);
        self.cs.store(gate.cs, Ordering::Relaxed);
        self.dpl.store(gate.dpl, Ordering::Relaxed);
        self.masks_events.store(gate.masks_events, Ordering::Relaxed);
    }
}

/// A [`Callback`] of a vCPU.
#[derive(Debug, Default)]
pub struct CallbackCell {
    address: AtomicU64,
    masks_events: AtomicBool,
}

impl CallbackCell {
    /// The callback.
    #[inline(always)]
    pub fn get(&self) -> Callback {
        let masks_events = self.masks_events.load(Ordering::Relaxed);
        Callback { address: self.address.load(Ordering::Relaxed), masks_events }
    }

    /// Sets the callback.
    pub fn set(&self, callback: Callback) {
        self.address.store(callback.address, Ordering::Relaxed);
        self.masks_events.store(callback.masks_events, Ordering::Relaxed);
    }
}

/// Where a vCPU's kernel is entered, outside of the lock of [`GuestCpu`]: only the CPU that runs the vCPU reads or changes them, and a
/// toolstack while the vCPU is stopped; one that reads meanwhile may see an address with the former mark.
#[derive(Debug)]
pub struct EntryPoints {
    /// Trap table, by vector.
    pub traps: Box<[GateCell; 256]>,
    /// Event upcall. Always masks.
    pub event: CallbackCell,
    /// Bad segment on return to the guest.
    pub failsafe: CallbackCell,
    /// `syscall` from user mode.
    pub syscall: CallbackCell,
    /// `sysenter` from user mode.
    pub sysenter: CallbackCell,
    /// `syscall` from 32-bit user mode.
    pub syscall32: CallbackCell,
}

impl Default for EntryPoints {
    fn default() -> Self {
        let gates: Box<[GateCell]> = (0..256).map(|_| GateCell::default()).collect();
        Self {
            traps: gates.try_into().expect("256 gates"),
            event: CallbackCell::default(),
            failsafe: CallbackCell::default(),
            syscall: CallbackCell::default(),
            sysenter: CallbackCell::default(),
            syscall32: CallbackCell::default(),
        }
    }
}

/// The stack for entry from user mode, outside of the lock as [`EntryPoints`] are.
#[derive(Debug, Default)]
pub struct KernelStack {
    ss: AtomicU16,
    sp: AtomicU64,
}

impl KernelStack {
    /// Sets the stack. The selector gets the guest's privilege.
    #[inline]
    pub fn set(&self, ss: u64, sp: u64) {
        self.ss.store(ss as u16 | 3, Ordering::Relaxed);
        self.sp.store(sp, Ordering::Relaxed);
    }

    /// The selector.
    pub fn ss(&self) -> u16 {
        self.ss.load(Ordering::Relaxed)
    }

    /// The stack pointer.
    #[inline]
    pub fn sp(&self) -> u64 {
        self.sp.load(Ordering::Relaxed)
    }
}

/// What a guest told about one vCPU. Guarded by `Vcpu::cpu`.
#[derive(Clone, Debug)]
pub struct GuestCpu {
    /// CR0 as the guest reads it; bit 3 (TS) is real.
    pub cr0: u64,
    /// CR4 as the guest reads it.
    pub cr4: u64,
    /// Base of FS while the vCPU does not run.
    pub fs_base: u64,
    /// Base of GS in kernel mode while the vCPU does not run.
    pub gs_base_kernel: u64,
    /// Base of GS in user mode while the vCPU does not run.
    pub gs_base_user: u64,
    /// Frames of the GDT; each set one holds a `seg_desc` type reference.
    pub gdt_frames: Box<[Option<Mfn>; 14]>,
    /// Entries of the GDT.
    pub gdt_entries: u16,
    /// Base of the LDT in guest memory.
    pub ldt_base: u64,
    /// Entries of the LDT; 0: none.
    pub ldt_entries: u16,
    /// LDT frames that were faulted in; each set one holds a `seg_desc` type reference.
    pub ldt_frames: Box<[Option<Mfn>; 16]>,
    /// Debug registers; 4 and 5 are unused.
    pub debug: [u64; 8],
    /// Guest virtual address of the I/O bitmap; `None`: none.
    pub io_bitmap: Option<u64>,
    /// Ports that the I/O bitmap covers.
    pub io_bitmap_ports: u32,
}

impl GuestCpu {
    /// CR0 of a PV guest: PE, MP, ET, NE, WP, AM, PG.
    pub const CR0: u64 = 0x8005_0033;
    /// CR0.TS.
    pub const CR0_TS: u64 = 8;
    /// CR4.DE.
    pub(crate) const CR4_DE: u64 = 8;
    /// CR4.FSGSBASE: the guest may read and set the bases of FS and GS by instructions.
    pub const CR4_FSGSBASE: u64 = 1 << 16;
}

impl Default for GuestCpu {
    /// A vCPU whose state was not set yet.
    fn default() -> Self {
        Self {
            cr0: Self::CR0,
            cr4: 0,
            fs_base: 0,
            gs_base_kernel: 0,
            gs_base_user: 0,
            gdt_frames: Box::new([None; 14]),
            gdt_entries: 0,
            ldt_base: 0,
            ldt_entries: 0,
            ldt_frames: Box::new([None; 16]),
            debug: [0, 0, 0, 0, 0, 0, DR6_FIXED_ONES, DR7_FIXED_ONES],
            io_bitmap: None,
            io_bitmap_ports: 0,
        }
    }
}
