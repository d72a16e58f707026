//! This process's address space, read from its page tables; frames that are not the guest's; and raw hypercalls
//! on both.
#![allow(unsafe_code)] // memory by address

use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use ring_abi::hypercall::*;
use ring_abi::mmu::{MmuUpdate, MmuextOp, UVMF_INVLPG};
use ring_abi::types::{DOMID_SELF, Mfn, PAGE_SIZE, Pfn};

use super::{kernel, probe, pte};

/// The machine-to-physical table.
pub(crate) const M2P: u64 = 0xffff_8000_0000_0000;
/// Bits of an entry of plain memory.
pub(crate) const RW: u64 = RO | pte::RW | pte::D;
/// Bits of an entry of memory that is not to be written.
pub(crate) const RO: u64 = pte::P | pte::US | pte::A;

const PAGE: u64 = PAGE_SIZE as u64;
/// Addresses for scratch memory, with page tables of their own at each level.
const WINDOW: u64 = 0x1000_0000_0000;

/// The slot of the kernel's map of all memory in a top table.
const MEMORY_SLOT: usize = (kernel::DIRECT_MAP >> 39 & 511) as usize;

/// The end of the part of the window that was given out.
static TAKEN: AtomicU64 = AtomicU64::new(WINDOW);
/// The frame of the top table with which the kernel runs in this process.
static BASE: OnceLock<u64> = OnceLock::new();

/// Keeps all of this process in memory, so that the hypervisor finds it there.
///
/// # Errors
/// The kernel's own.
pub(super) fn keep_in_memory() -> Result<(), String> {
    // SAFETY: changes no mapping.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        return Err(format!("mlockall: {}", std::io::Error::last_os_error()));
    }
    // Calls on a vCPU name the first, so this process stays there. SAFETY: the argument is a bitmap of CPUs.
    let bound = unsafe {
        let mut cpus: libc::cpu_set_t = core::mem::zeroed();
        libc::CPU_SET(0, &mut cpus);
        libc::sched_setaffinity(0, size_of_val(&cpus), &cpus)
    };
    if bound != 0 {
        return Err(format!("sched_setaffinity: {}", std::io::Error::last_os_error()));
    }
    Ok(())
}

/// Finds the top table: starts at a page of this process, and looks for the table that holds an entry for the
/// last one, level by level.
///
/// # Errors
/// What was not found.
pub(super) fn install() -> Result<(), String> {
    let at = pages(1);
    let mut child = frame_of(at)?;
    for level in 0..4 {
        let slot = (at >> (12 + 9 * level) & 511) as usize;
        let is_parent = |page: &u64| {
            let held = kernel::word(*page, slot).unwrap_or(0);
            // There is a second top table, for user mode, which lacks the kernel's map of memory.
            let whole = level < 3 || kernel::word(*page, MEMORY_SLOT).is_some_and(|word| word & pte::P != 0);
            held & pte::P != 0 && (held & pte::FRAME) >> 12 == child && whole
        };
        let parent = (0..kernel::pages()).filter(|page| kernel::frame(*page).is_some()).find(is_parent);
        let frame = parent.and_then(kernel::frame);
        child = frame.ok_or_else(|| format!("no table of level {} of this process", level + 1))?;
    }
    BASE.set(child).map_err(|_| "installed twice".into())
}

/// The frame of a page of this process, as the kernel says.
fn frame_of(at: u64) -> Result<u64, String> {
    const PRESENT: u64 = 1 << 63;
    const NUMBER: u64 = (1 << 55) - 1;
    let cannot = |error: std::io::Error| format!("/proc/self/pagemap: {error}");
    let mut bytes = [0; 8];
    let file = std::fs::File::open("/proc/self/pagemap").map_err(cannot)?;
    file.read_exact_at(&mut bytes, at / PAGE * 8).map_err(cannot)?;
    let entry = u64::from_le_bytes(bytes);
    let page = (entry & PRESENT != 0).then_some(entry & NUMBER);
    page.and_then(kernel::frame).ok_or_else(|| format!("no frame at {at:#x}: {entry:#x}"))
}

/// New pages at addresses of their own, zeroed.
fn pages(count: usize) -> u64 {
    // A page stays unmapped between any two, so that an access beyond the end traps.
    let at = TAKEN.fetch_add((count as u64 + 1) * PAGE, Ordering::Relaxed);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: addresses that nothing else uses.
    let got = unsafe { libc::mmap(at as *mut _, count * PAGE_SIZE, rights, flags, -1, 0) };
    assert_eq!(got as u64, at, "scratch pages: {}", std::io::Error::last_os_error());
    // A write to each page makes the kernel give it a frame of its own.
    for n in 0..count as u64 {
        probe::write(at + n * PAGE, 0);
    }
    at
}

/// A hypercall, whatever its number and arguments.
pub(crate) fn call(number: u32, args: [u64; 5]) -> i64 {
    // SAFETY: this process asks for what must be refused, and for what concerns memory set apart for it.
    unsafe { pvrt::hypercall::raw(number, args) }
}

/// A hypercall with a structure by address.
pub(crate) fn op<T>(number: u32, command: u32, arg: &mut T) -> i64 {
    call(number, [command.into(), (&raw mut *arg) as u64, 0, 0, 0])
}

/// A hypercall with an array of one.
pub(crate) fn one<T>(number: u32, command: u32, arg: &mut T) -> i64 {
    call(number, [command.into(), (&raw mut *arg) as u64, 1, 0, 0])
}

/// One request of `mmu_update` on this guest's tables and frames.
pub(crate) fn update(ptr: u64, val: u64) -> i64 {
    update_as(ptr, val, DOMID_SELF.into())
}

/// One request of `mmu_update` with the domains of `whose`.
pub(crate) fn update_as(ptr: u64, val: u64, whose: u64) -> i64 {
    let request = MmuUpdate { ptr, val };
    call(__HYPERVISOR_MMU_UPDATE, [(&raw const request) as u64, 1, 0, whose, 0])
}

/// One operation of `mmuext_op`.
pub(crate) fn extended(cmd: u32, arg1: u64, arg2: u64) -> i64 {
    extended_as(cmd, arg1, arg2, DOMID_SELF.into())
}

/// One operation of `mmuext_op` on another domain.
pub(crate) fn extended_as(cmd: u32, arg1: u64, arg2: u64, domain: u64) -> i64 {
    let request = MmuextOp { cmd, arg1, arg2, ..MmuextOp::default() };
    call(__HYPERVISOR_MMUEXT_OP, [(&raw const request) as u64, 1, 0, domain, 0])
}

/// `update_va_mapping` with a flush of that address.
pub(crate) fn map(va: u64, entry: u64) -> i64 {
    call(__HYPERVISOR_UPDATE_VA_MAPPING, [va, entry, UVMF_INVLPG, 0, 0])
}

/// The frame of the top table.
pub(crate) fn base() -> u64 {
    *BASE.get().expect("installed at the start")
}

/// Entry `slot` of the table in frame `mfn`.
pub(crate) fn entry(mfn: u64, slot: usize) -> u64 {
    own_page(mfn).and_then(|page| kernel::word(page, slot)).unwrap_or(0)
}

/// Where the kernel maps a frame of this guest, an address that this process cannot reach.
pub(crate) fn linear(mfn: u64) -> u64 {
    kernel::DIRECT_MAP + own_page(mfn).unwrap_or(0) * PAGE
}

/// The page number of a frame, if the hypervisor's M2P and the kernel's P2M agree.
fn own_page(mfn: u64) -> Option<u64> {
    let page = probe::read(M2P + mfn * 8).ok()?;
    (kernel::frame(page) == Some(mfn)).then_some(page)
}

/// Frames of the tables that map `va`, from the top one down: L4, L3, L2, L1.
pub(crate) fn tables(va: u64) -> [u64; 4] {
    let mut frames = [base(), 0, 0, 0];
    for level in 0..3 {
        let slot = va >> (39 - 9 * level) & 511;
        frames[level + 1] = (entry(frames[level], slot as usize) & pte::FRAME) >> 12;
    }
    frames
}

/// The entry that maps `va`.
pub(crate) fn leaf(va: u64) -> u64 {
    entry(tables(va)[3], (va >> 12 & 511) as usize)
}

/// One past the last frame of the machine's memory.
pub(crate) fn end_of_memory() -> u64 {
    const XENMEM_MAXIMUM_RAM_PAGE: u64 = 2;
    call(__HYPERVISOR_MEMORY_OP, [XENMEM_MAXIMUM_RAM_PAGE, 0, 0, 0, 0]).max(0x1000) as u64
}

/// Frames all over the machine that are other domains', the hypervisor's, or free.
pub(crate) fn foreign_frames() -> Vec<u64> {
    let end = end_of_memory();
    let step = (end / 96).max(1);
    (0..96).map(|n| n * step + n % 7).filter(|mfn| *mfn < end && own_page(*mfn).is_none()).collect()
}

/// Pages of memory, and as many addresses with tables below them, that nothing else uses. Drop restores the
/// kernel's entries at the addresses, and makes the pages writable again.
pub(crate) struct Scratch {
    /// The memory.
    pub(crate) pages: Pages,
    window: u64,
    /// What the kernel mapped in the window.
    before: Vec<u64>,
}

/// Memory in pages.
pub(crate) struct Pages {
    at: u64,
    frames: Vec<u64>,
    /// The pages' numbers, noted since cases change the hypervisor's M2P.
    numbers: Vec<u64>,
    /// The kernel's entries for them.
    direct: Vec<u64>,
}

impl Pages {
    /// Frame of page `n`.
    pub(crate) fn mfn(&self, n: usize) -> Mfn {
        Mfn::new(self.frames[n])
    }

    /// Number of page `n` in this guest.
    pub(crate) fn pfn(&self, n: usize) -> Pfn {
        Pfn::new(self.numbers[n])
    }

    /// Where the kernel maps page `n`.
    fn direct_address(&self, n: usize) -> u64 {
        kernel::DIRECT_MAP + self.numbers[n] * PAGE
    }
}

impl Scratch {
    /// `count` pages, zeroed, and as many addresses.
    ///
    /// # Panics
    /// When memory is used up.
    pub(crate) fn new(count: usize) -> Self {
        let (at, window) = (pages(count), pages(count));
        let each = |at: u64| (0..count as u64).map(move |n| at + n * PAGE);
        // The kernel must not map anything at these addresses itself. SAFETY: pages of this function's own,
        // which nothing refers to.
        let closed = unsafe { libc::mprotect(window as *mut _, count * PAGE_SIZE, libc::PROT_NONE) };
        assert_eq!(closed, 0, "scratch addresses: {}", std::io::Error::last_os_error());
        let before = each(window).map(leaf).collect();
        each(window).for_each(|va| assert_eq!(map(va, 0), 0, "scratch addresses"));
        let frames: Vec<u64> = each(at).map(|va| (leaf(va) & pte::FRAME) >> 12).collect();
        let numbers: Vec<u64> = frames.iter().map(|frame| own_page(*frame).expect("own memory")).collect();
        let direct: Vec<u64> =
            numbers.iter().map(|number| leaf(kernel::DIRECT_MAP + number * PAGE)).collect();
        let present = direct.iter().all(|entry| entry & pte::P != 0);
        assert!(present, "the kernel's map of its own memory: {direct:x?}");
        Self { pages: Pages { at, frames, numbers, direct }, window, before }
    }

    /// Address `n` that is free to be mapped.
    pub(crate) fn at(&self, n: usize) -> u64 {
        assert!(n < self.before.len());
        self.window + n as u64 * PAGE
    }

    /// Frame of page `n`.
    pub(crate) fn mfn(&self, n: usize) -> u64 {
        self.pages.frames[n]
    }

    /// Address of page `n`.
    pub(crate) fn page(&self, n: usize) -> u64 {
        assert!(n < self.before.len());
        self.pages.at + n as u64 * PAGE
    }

    /// Whether `va` is one of these addresses or pages.
    pub(super) fn holds(&self, va: u64) -> bool {
        let len = self.before.len() as u64 * PAGE;
        [self.window, self.pages.at].iter().any(|start| va.checked_sub(*start).is_some_and(|off| off < len))
    }

    /// Machine address of the L1 entry for address `n`.
    pub(crate) fn entry_address(&self, n: usize) -> u64 {
        (tables(self.at(n))[3] << 12) + (self.at(n) >> 12 & 511) * 8
    }

    /// Makes page `n` read-only here and in the kernel's map, as a table or descriptor page must be.
    pub(crate) fn protect(&self, n: usize) -> i64 {
        let got = map(self.page(n), self.mfn(n) << 12 | RO);
        if got != 0 {
            return got;
        }
        map(self.pages.direct_address(n), self.pages.direct[n] & !pte::RW)
    }

    /// Unmaps page `n` from this process and from the kernel's map; [`Scratch::unprotect`] maps the page there
    /// again.
    pub(crate) fn hide(&self, n: usize) -> i64 {
        let got = map(self.page(n), 0);
        if got != 0 {
            return got;
        }
        map(self.pages.direct_address(n), 0)
    }

    /// Makes page `n` writable again.
    pub(crate) fn unprotect(&self, n: usize) -> i64 {
        let got = map(self.page(n), self.mfn(n) << 12 | RW);
        if got != 0 {
            return got;
        }
        map(self.pages.direct_address(n), self.pages.direct[n])
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for n in 0..self.before.len() {
            if map(self.at(n), self.before[n]) != 0 || self.unprotect(n) != 0 {
                println!("hostile: page {:#x} is not as the kernel left it", self.mfn(n));
            }
        }
    }
}
