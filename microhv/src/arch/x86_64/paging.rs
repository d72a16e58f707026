//! The hypervisor's part of every address space, L4 slots 256-271; which page tables are loaded, and the TLB: the library's
//! [`Paging`].
//!
//! | slot | address | what |
//! | --- | --- | --- |
//! | 256 | 0xffff800000000000 | M2P, readable in ring 3 |
//! | 260 | 0xffff820000000000 | descriptor windows, 128 KiB for each vCPU: 15 GDT pages, a hole, 16 LDT pages |
//! | 261 | 0xffff82d080200000 | the image; device registers, uncached, 1 GiB above it; the screen's memory, write-combining; the CPUs' areas |
//! | 262- | 0xffff830000000000 | all machine memory, 2 MiB pages, never executable |
//!
//! All guests share these tables: an L4 becomes ours by a copy of sixteen entries. The tables are global, and
//! supervisor-only but for the M2P.
#![allow(unsafe_code)] // page tables

use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use microhv::boot::memory_map::{MemoryMap, Range};
use microhv::boot::speculation::is_emulated;
use microhv::frames::copies::COPIES;
use microhv::frames::pte::{self, A, D, FRAME, G, NX, P, PCD, PSE, PWT, RW, US, index};
use microhv::nospec::clamp;
use microhv::platform::{CpuId, CpuSet, Cpus, Paging};
use microhv::sync::{Mutex, rank, wait_until};
use ring_abi::segment::HYPERVISOR_VIRT_START;
use ring_abi::types::{GuestVa, Mfn};
use x86_64::VirtAddr;
use x86_64::instructions::tlb::{InvPcidCommand, Pcid, flush_pcid};
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::cpu::{self, cpuid};
use super::machine::Machine;
use super::percpu::{self, AREA_BYTES, FLUSH_ORDERS, GUARD_OFFSET, USES_CONTEXTS, this_cpu};

/// Entry of a table above L1.
pub(crate) const TABLE: u64 = P | RW | A | D;
/// Hypervisor data.
const DATA: u64 = P | RW | A | D | G | NX;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;

/// Where the M2P starts.
pub(crate) const M2P: u64 = HYPERVISOR_VIRT_START;
/// Where the descriptor windows start.
pub(crate) const WINDOWS: u64 = 0xffff_8200_0000_0000;
/// Bytes of one descriptor window.
pub(crate) const WINDOW_BYTES: u64 = 128 << 10;
/// What the windows' level 1 tables map, each.
pub(crate) const WINDOW_TABLE_BYTES: u64 = LARGE_PAGE;
/// Offset of the LDT in a window.
pub(crate) const WINDOW_LDT: u64 = 64 << 10;
/// An address within the image less this is the machine address.
pub(crate) const IMAGE: u64 = 0xffff_82d0_8000_0000;
/// Where device registers are mapped; the image ends before.
pub(crate) const DEVICES: u64 = 0xffff_82d0_c000_0000;
/// Where the screen's memory is mapped: 256 MiB, ahead of the CPUs' areas and by the L2 table of the device registers.
const SCREEN: u64 = DEVICES + (256 << 20);
/// In an entry of a large page: the upper half of the PAT. With neither of the other bits, write-combining (`PAT_VALUE`).
const LARGE_PAT: u64 = 1 << 12;
/// Where machine memory is mapped.
pub(crate) const DIRECT: u64 = 0xffff_8300_0000_0000;
/// Device register pages that can be mapped.
const DEVICE_PAGES: usize = 512;

/// The hypervisor's L4, for the time when no guest runs.
static HYPERVISOR_L4: AtomicU64 = AtomicU64::new(0);
/// Machine address of the M2P.
static M2P_BASE: AtomicU64 = AtomicU64::new(0);
/// Frames that the M2P has entries for.
static M2P_FRAMES: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
    static boot_l4: u8;
}

/// Machine addresses of the image.
pub(crate) fn image_range() -> Range {
    Range { start: (&raw const __image_start) as u64 - IMAGE, end: (&raw const __image_end) as u64 - IMAGE }
}

/// The direct map's address of machine memory.
#[inline(always)]
pub(crate) fn direct(maddr: u64) -> u64 {
    DIRECT + maddr
}

/// The machine address behind an address of the direct map or the image.
pub(crate) fn machine_address(va: u64) -> u64 {
    if va >= DIRECT { va - DIRECT } else { va - IMAGE }
}

/// The hypervisor's own L4.
pub(crate) fn hypervisor_l4() -> u64 {
    HYPERVISOR_L4.load(Ordering::Relaxed)
}

/// Takes a zeroed frame for a table under construction.
fn new_table(map: &mut MemoryMap) -> u64 {
    let at = map.take(PAGE, PAGE, 4 << 30).expect("RAM for the hypervisor's page tables");
    // SAFETY: the frame was free RAM below 4 GiB, which the boot tables have in the direct map.
    unsafe { core::ptr::write_bytes(direct(at) as *mut u8, 0, PAGE as usize) };
    at
}

/// Writes the entry of `level` for `va`. Tables on the way that are absent are made, with `flags` in their entries.
fn map_page(map: &mut MemoryMap, va: u64, level: u8, entry: u64, flags: u64) {
    let table = table_of(va, level, || Some(new_table(map) | flags)).expect("absent tables are made");
    table[index(va, level)].store(entry, Ordering::Relaxed);
}

/// Builds the final tables while the boot tables are loaded. Loads nothing.
pub(crate) fn build(map: &mut MemoryMap) {
    let ram_end = map.ram_end().next_multiple_of(LARGE_PAGE);
    HYPERVISOR_L4.store(new_table(map), Ordering::Relaxed);
    map_image(map);
    for at in (0..ram_end).step_by(LARGE_PAGE as usize) {
        map_page(map, DIRECT + at, 2, at | DATA | PSE, TABLE);
    }
    build_m2p(map, ram_end / PAGE);
    // These tables are allocated now and filled later, since each guest's L4 will point to them.
    let areas = percpu::areas().step_by(LARGE_PAGE as usize).map(|va| (va, 1));
    for (va, level) in [(WINDOWS, 2), (DEVICES, 1)].into_iter().chain(areas) {
        table_of(va, level, || Some(new_table(map) | TABLE));
    }
    map_area(CpuId::BOOT, Some(machine_address(percpu::boot_area().as_ptr() as u64)));
}

/// Maps the area of `cpu`, which is the memory from `maddr` on, but for its guard page; `None` unmaps the area.
pub(crate) fn map_area(cpu: CpuId, maddr: Option<u64>) {
    let start = percpu::area_address(cpu);
    let Some(table) = table_of(start, 1, || None) else { return };
    for offset in (0..AREA_BYTES as u64).step_by(PAGE as usize) {
        let maddr = maddr.filter(|_| offset != GUARD_OFFSET as u64);
        let entry = maddr.map_or(0, |maddr| (maddr + offset) | DATA);
        table[index(start + offset, 1)].store(entry, Ordering::Release);
    }
}

/// The frames of the boot tables, which nothing uses any more once the final tables are loaded: the way of the other CPUs into
/// the hypervisor's address space.
pub(crate) struct StartTables([&'static [AtomicU64; 512]; 4]);

impl StartTables {
    /// Tables that hold the hypervisor's slots, and the page at `code` once more at its machine address, to be executed.
    pub(crate) fn for_page(code: u64) -> Self {
        let frames = [0, 1, 2, 3].map(|n| (&raw const boot_l4) as u64 - IMAGE + n * PAGE);
        let tables = frames.map(table);
        tables.iter().flat_map(|table| table.iter()).for_each(|entry| entry.store(0, Ordering::Relaxed));
        let [l4, ..] = tables;
        let slots = pte::HYPERVISOR_FIRST_SLOT..=pte::HYPERVISOR_LAST_SLOT;
        for (slot, own) in l4[slots.clone()].iter().zip(&table(hypervisor_l4())[slots]) {
            slot.store(own.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let entries = [frames[1] | TABLE, frames[2] | TABLE, frames[3] | TABLE, code | P | A];
        for ((table, entry), level) in tables.iter().zip(entries).zip([4, 3, 2, 1]) {
            table[index(code, level)].store(entry, Ordering::Release);
        }
        Self(tables)
    }

    /// What CR3 is to be, below 4 GiB.
    pub(crate) fn base(&self) -> u32 {
        machine_address(self.0[0].as_ptr() as u64) as u32
    }
}

fn map_image(map: &mut MemoryMap) {
    let (start, end) = ((&raw const __image_start) as u64, (&raw const __image_end) as u64);
    let (text_end, rodata_end) = ((&raw const __text_end) as u64, (&raw const __rodata_end) as u64);
    // The boot CPU's area is used at its place in the row of areas.
    let area = percpu::boot_area().as_ptr() as u64;
    for va in (start..end).step_by(PAGE as usize) {
        let flags = match va {
            _ if va < text_end => P | A | G,
            _ if va < rodata_end => P | A | G | NX,
            _ => DATA,
        };
        let entry = if (area..area + AREA_BYTES as u64).contains(&va) { 0 } else { (va - IMAGE) | flags };
        map_page(map, va, 1, entry, TABLE);
    }
}

/// Maps an M2P for `frames` frames, rounded up to whole large pages of it, all entries "none".
fn build_m2p(map: &mut MemoryMap, frames: u64) {
    let bytes = (frames * 8).next_multiple_of(LARGE_PAGE);
    let base = map.take(bytes, LARGE_PAGE, 4 << 30).expect("RAM for the M2P");
    // SAFETY: free RAM below 4 GiB, which the boot tables have in the direct map.
    unsafe { core::ptr::write_bytes(direct(base) as *mut u8, 0xff, bytes as usize) };
    for offset in (0..bytes).step_by(LARGE_PAGE as usize) {
        let entry = (base + offset) | P | US | A | G | NX;
        map_page(map, M2P + offset, 2, entry | PSE, TABLE | US);
    }
    M2P_BASE.store(base, Ordering::Relaxed);
    M2P_FRAMES.store(bytes / 8, Ordering::Relaxed);
}

/// Loads the final tables; the boot tables' 1:1 map is gone then.
///
/// # Safety
/// After [`build`], on a stack of the image or of a CPU's area.
pub(crate) unsafe fn load() {
    // QEMU's emulator drops global entries, too, at each load of CR3: such entries are of no use there, and without them
    // one load does what else takes three flushes of all that the emulator has translated.
    //
    // SAFETY: the tables map the image, where code, data and stack are; global pages only now, so that none of the
    // boot tables' entries can stay.
    unsafe {
        cpu::set_cr3(hypervisor_l4());
        if !is_emulated(cpuid) {
            Cr4::update(|cr4| cr4.insert(Cr4Flags::PAGE_GLOBAL));
        }
    }
}

/// A table in the direct map.
pub(crate) fn table(maddr: u64) -> &'static [AtomicU64; 512] {
    // SAFETY: every caller passes a page-table frame of the hypervisor or one that the frame table vouches for; the
    // direct map covers all RAM for ever. The boot tables' covers what `new_table` takes.
    unsafe { &*(direct(maddr) as *const [AtomicU64; 512]) }
}

/// The M2P entry of `mfn` for writing, through the direct map.
#[inline]
pub(crate) fn m2p_entry(mfn: u64) -> Option<&'static AtomicU64> {
    let frames = M2P_FRAMES.load(Ordering::Relaxed);
    if mfn >= frames {
        return None;
    }
    let mfn = clamp(mfn as usize, frames as usize) as u64;
    // SAFETY: `build_m2p` took contiguous RAM for all entries below `M2P_FRAMES`.
    Some(unsafe { &*(direct(M2P_BASE.load(Ordering::Relaxed) + mfn * 8) as *const AtomicU64) })
}

/// The hypervisor's table of `level` on the way to `va`. Where one is absent, `make` gives its entry; `None`: nor does that.
pub(crate) fn table_of(
    va: u64,
    level: u8,
    mut make: impl FnMut() -> Option<u64>,
) -> Option<&'static [AtomicU64; 512]> {
    let mut at = table(hypervisor_l4());
    for step in (level + 1..=4).rev() {
        let slot = &at[index(va, step)];
        let mut entry = slot.load(Ordering::Acquire);
        if entry & P == 0 {
            entry = make()?;
            slot.store(entry, Ordering::Release);
        }
        at = table(entry & FRAME);
    }
    Some(at)
}

/// Pages of a descriptor window.
const WINDOW_PAGES: usize = (WINDOW_BYTES / PAGE) as usize;

/// Maps a frame, or nothing, at a page of a descriptor window. Writable: the processor sets "accessed" in descriptors.
fn replace_page(entry: &AtomicU64, va: u64, maddr: Option<u64>) {
    let value = maddr.map_or(0, |at| at | (DATA & !G));
    if entry.swap(value, Ordering::Release) & P != 0 {
        flush_page(va);
    }
}

/// Maps the frames of `pages` in the first pages of the window at `va`, and nothing in the rest.
pub(crate) fn set_window(va: u64, pages: &[u64]) {
    let Some(table) = table_of(va, 1, || None) else { return };
    // A window is aligned to its size.
    let entries = &table[index(va, 1)..][..WINDOW_PAGES];
    let (mapped, rest) = entries.split_at(pages.len());
    for (n, (entry, &page)) in mapped.iter().zip(pages).enumerate() {
        replace_page(entry, va + n as u64 * PAGE, Some(page));
    }
    // Most pages of most windows are empty, and stay so. Nobody else changes the window meanwhile.
    for (n, entry) in (pages.len() as u64..).zip(rest) {
        if entry.load(Ordering::Relaxed) != 0 {
            replace_page(entry, va + n * PAGE, None);
        }
    }
}

/// Maps a frame, or nothing, at the page `va` of a descriptor window.
pub(crate) fn set_window_page(va: u64, maddr: Option<u64>) {
    if let Some(table) = table_of(va, 1, || None) {
        replace_page(&table[index(va, 1)], va, maddr);
    }
}

/// Makes sure that the windows around `va` have an L1 table, for which `make` gives a zeroed frame; `false`: `make`
/// had no frame.
pub(crate) fn has_window_table(va: u64, make: impl Fn() -> Option<u64>) -> bool {
    table_of(va, 1, || Some(make()? | TABLE)).is_some()
}

/// The frames whose device registers are mapped, by place in the window.
static DEVICE_FRAMES: Mutex<rank::DeviceWindow, ArrayVec<u64, DEVICE_PAGES>> =
    Mutex::new(ArrayVec::new_const());

/// The address of device memory at `maddr`, uncached. The first call for a page maps it. `None`: all places are used.
pub(crate) fn device(maddr: u64) -> Option<u64> {
    let frame = maddr & !(PAGE - 1);
    let mut used = DEVICE_FRAMES.lock();
    let known = used.iter().position(|&mapped| mapped == frame);
    let place = known.unwrap_or(used.len());
    let va = DEVICES + place as u64 * PAGE;
    if known.is_none() {
        let table = table_of(va, 1, || None)?;
        used.try_push(frame).ok()?;
        table[index(va, 1)].store(frame | DATA | PCD | PWT, Ordering::Release);
    }
    Some(va + maddr % PAGE)
}

/// Maps the screen's memory, at most 254 MiB, write-combining; the address of its first byte. Once, at start-up, after the PAT was set.
pub(crate) fn map_screen(range: Range) -> Option<u64> {
    let first = range.start & !(LARGE_PAGE - 1);
    let table = table_of(SCREEN, 2, || None)?;
    for (offset, at) in (first..range.end).step_by(LARGE_PAGE as usize).enumerate() {
        table.get(index(SCREEN, 2) + offset)?.store(at | DATA | PSE | LARGE_PAT, Ordering::Release);
    }
    Some(SCREEN + (range.start - first))
}

/// Flushes all by turning global pages off and on; `false`: global pages are off, so a load of CR3 flushes
/// all.
#[inline]
fn flush_by_global_pages() -> bool {
    const GLOBAL: u64 = Cr4Flags::PAGE_GLOBAL.bits();
    let cr4 = Cr4::read_raw();
    let is_on = cr4 & GLOBAL != 0;
    if is_on {
        // SAFETY: turns global pages off and on again, nothing else.
        unsafe {
            Cr4::write_raw(cr4 & !GLOBAL);
            Cr4::write_raw(cr4);
        }
    }
    is_on
}

/// Flushes this CPU's TLB, global entries and all process contexts included.
#[inline]
pub(crate) fn flush_local() {
    if !flush_by_global_pages() && !flush_contexts() {
        // SAFETY: what is loaded already.
        unsafe { cpu::set_cr3(cpu::cr3()) };
    }
}

/// Flushes all process contexts; `false`: there is one.
#[inline]
fn flush_contexts() -> bool {
    let are_used = USES_CONTEXTS.load(Ordering::Relaxed);
    if are_used {
        // SAFETY: the flag is set where the CPU has the instruction; dropping cached translations is always allowed.
        unsafe { flush_pcid(InvPcidCommand::All) };
    }
    are_used
}

/// Flushes one page of this CPU's TLB, in all process contexts.
#[inline]
fn flush_page(va: u64) {
    cpu::invlpg(va);
    if USES_CONTEXTS.load(Ordering::Relaxed)
        && let Ok(va) = VirtAddr::try_new(va)
    // at another the instruction would fault, and such an address is of no page
    {
        for context in (1..=COPIES as u16).filter_map(|number| Pcid::new(number).ok()) {
            // SAFETY: as above.
            unsafe { flush_pcid(InvPcidCommand::Address(va, context)) };
        }
    }
}

impl Paging for Machine {
    #[inline]
    fn load_cr3(&self, l4: Mfn) {
        // SAFETY: a validated L4, or the hypervisor's: both hold the hypervisor's slots.
        unsafe { cpu::set_cr3(l4.maddr().raw()) };
        percpu::local().own.copies.loaded_another();
    }

    #[inline]
    fn load_cr3_flushing(&self, l4: Mfn) {
        self.load_cr3(l4);
        if !flush_by_global_pages() {
            flush_contexts();
        }
    }

    fn flush_tlb_local(&self) {
        flush_local();
    }

    #[inline]
    fn invlpg(&self, va: GuestVa) {
        // XSA-279: a non-canonical address does nothing; the hypervisor's own pages may be dropped at any time.
        flush_page(va.raw());
    }

    fn flush_tlb(&self, cpus: CpuSet) {
        let me = this_cpu();
        let order = FLUSH_ORDERS.order();
        // Read after the order: a CPU that is up later flushes before it uses a guest's tables.
        let others = cpus.without(me).and(percpu::online());
        let others = || others.iter().filter_map(|cpu| Some((cpu, percpu::local_of(cpu)?)));
        for (cpu, local) in others() {
            if !local.flushes.has_done(order) && local.flushes.ask() {
                self.kick(cpu);
            }
        }
        if cpus.contains(me) {
            flush_local();
        }
        // Locks may be held: whoever waits for one serves meanwhile.
        for (cpu, local) in others() {
            let is_over = || local.flushes.is_over(order, || percpu::online().contains(cpu));
            if !is_over() {
                wait_until(&mut { is_over });
            }
        }
    }

    #[inline]
    fn root_changed(&self, l4: Mfn) -> bool {
        percpu::forget_copies(l4.maddr().raw())
    }

    fn fill_hypervisor_slots(&self, l4: Mfn) {
        // A CPU may have a copy of what the frame was before.
        percpu::forget_copies(l4.maddr().raw());
        let (from, to) = (table(hypervisor_l4()), table(l4.maddr().raw()));
        for slot in pte::HYPERVISOR_FIRST_SLOT..=pte::HYPERVISOR_LAST_SLOT {
            to[slot].store(from[slot].load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
