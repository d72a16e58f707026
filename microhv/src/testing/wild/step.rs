//! What guests and the control domain may do next, in small numbers whose meaning depends on the state.

/// A frame: bits 6 and 7 say among which it is chosen.
///
/// 0: those that were just unmapped, granted, freed; 1: the caller's; 2: the caller's page tables; 3: any.
pub type Pick = u8;

/// A page-table entry: its frame, and an index of its flags.
pub type Entry = (Pick, u8);

/// A page of the address space: bits 4 and 5 the region of 2 MiB, 0-3 the page there. The page of arguments is left
/// alone unless bits 6 and 7 are set.
pub type Page = u8;

/// One step on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The CPU.
    pub cpu: u8,
    /// What happens there.
    pub act: Act,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // small numbers, explained at each variant
pub enum Act {
    /// The CPU goes over to a vCPU of a domain.
    Switch { dom: u8, vcpu: u8 },
    /// The guest writes an entry into a page of its own, through what the processor remembers.
    Touch { page: Page, slot: u8, entry: Entry },
    /// `mmu_update`: page table, slot, entry; `mode` & 3 is the command, and 0xf0 leaves the request out. `split`: the second
    /// half of the list lies in the next page.
    Batch { requests: [(Pick, u8, Entry, u8); 3], whose: u8, split: bool },
    /// `update_va_mapping`.
    Map { page: Page, entry: Entry, flush: u8 },
    /// `update_va_mapping_otherdomain`.
    MapOther { page: Page, entry: Entry, flush: u8, dom: u8 },
    /// `mmuext_op`: command, frame or page.
    Ext { ops: [(u8, u8); 2], whose: u8 },
    /// `memory_op`: increase, decrease, populate.
    Memory { op: u8, frames: [Pick; 2], count: u8, whose: u8 },
    /// `XENMEM_exchange` of two frames for two single ones, or a pair.
    Exchange { frames: [Pick; 2], pair: bool },
    /// An entry of the caller's grant table.
    Grant { gref: u8, frame: Pick, to: u8, flags: u8 },
    /// `GNTTABOP_map_grant_ref`.
    MapGrant { granter: u8, gref: u8, page: Page, flags: u8 },
    /// `GNTTABOP_unmap_grant_ref`, or `unmap_and_replace`, of up to two mappings.
    Unmap { which: [u8; 2], count: u8, replace: bool, page: Page },
    /// `GNTTABOP_copy` from a grant into a frame, or back.
    Copy { granter: u8, gref: u8, frame: Pick, back: bool },
    /// `GNTTABOP_swap_grant_ref`.
    Swap { a: u8, b: u8 },
    /// `set_gdt`.
    Gdt { frames: [Pick; 2], count: u8 },
    /// `MMUEXT_SET_LDT`, and the fault that brings its first page in.
    Ldt { page: Page, entries: u8, fault: bool },
    /// `update_descriptor`.
    Descriptor { frame: Pick, slot: u8, value: u8 },
    /// `VCPUOP_register_vcpu_info`, and areas by address.
    Area { what: u8, frame: Pick, page: Page, vcpu: u8 },
    /// A write to a page table that faults.
    Emulate { table: u8, slot: u8, entry: Entry, how: u8 },
    /// `multicall` of two mappings.
    Multi { maps: [(Page, Entry); 2] },
    /// An event channel opened, closed, sent to.
    Event { what: u8, port: u8 },
    /// The FIFO of event channels: control blocks, words, priorities, the way back, and words that the guest writes.
    Fifo { what: u8, frame: Pick, port: u8, value: u8 },
    /// Grant tables of version 2: the version, status words, copies of parts.
    Wide { what: u8, granter: u8, gref: u8, frame: Pick, at: [u8; 2], len: u8 },
    /// The control domain asks for something about a domain: its `hypercall_init`, types of frames, pause, limit.
    Control { what: u8, dom: u8, frame: Pick },
    /// The control domain destroys a domain; interrupted, it goes on when the control domain's call does.
    Destroy { dom: u8 },
    /// A new domain in the place of one that is gone.
    Create { dom: u8 },
    /// During the next call an interrupt comes, after so many questions.
    Interrupt { after: u8 },
    /// The call that was interrupted is executed again.
    Continue,
}

/// The bytes of an input.
#[derive(Debug)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u8(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn entry(&mut self) -> Entry {
        (self.u8(), self.u8())
    }
}

/// The steps that `bytes` mean, at most `most`.
#[must_use]
pub fn decode(bytes: &[u8], most: usize) -> Vec<Step> {
    let mut b = Bytes(bytes);
    let mut steps = Vec::new();
    while !b.0.is_empty() && steps.len() < most {
        let first = b.u8();
        let cpu = b.u8();
        let act = act(first, &mut b);
        steps.push(Step { cpu, act });
    }
    steps
}

fn act(first: u8, b: &mut Bytes<'_>) -> Act {
    match first {
        0xe0..=0xeb => return Act::Fifo { what: b.u8(), frame: b.u8(), port: b.u8(), value: b.u8() },
        0xec..=0xf3 => {
            let (what, granter, gref, frame) = (b.u8(), b.u8(), b.u8(), b.u8());
            return Act::Wide { what, granter, gref, frame, at: [b.u8(), b.u8()], len: b.u8() };
        }
        _ => {}
    }
    match first % 64 {
        0..=3 => Act::Switch { dom: b.u8(), vcpu: b.u8() },
        4..=6 => Act::Touch { page: b.u8(), slot: b.u8(), entry: b.entry() },
        7..=15 => Act::Batch {
            requests: core::array::from_fn(|_| (b.u8(), b.u8(), b.entry(), b.u8())),
            whose: b.u8(),
            split: b.u8() & 1 != 0,
        },
        16..=24 => Act::Map { page: b.u8(), entry: b.entry(), flush: b.u8() },
        25 => Act::MapOther { page: b.u8(), entry: b.entry(), flush: b.u8(), dom: b.u8() },
        26..=33 => Act::Ext { ops: core::array::from_fn(|_| (b.u8(), b.u8())), whose: b.u8() },
        34..=36 => Act::Memory { op: b.u8(), frames: [b.u8(), b.u8()], count: b.u8(), whose: b.u8() },
        37..=39 => Act::Exchange { frames: [b.u8(), b.u8()], pair: b.u8() & 3 != 0 },
        40 | 41 => Act::Grant { gref: b.u8(), frame: b.u8(), to: b.u8(), flags: b.u8() },
        42..=44 => Act::MapGrant { granter: b.u8(), gref: b.u8(), page: b.u8(), flags: b.u8() },
        45 | 46 => {
            Act::Unmap { which: [b.u8(), b.u8()], count: b.u8(), replace: b.u8() & 3 == 0, page: b.u8() }
        }
        47 => Act::Copy { granter: b.u8(), gref: b.u8(), frame: b.u8(), back: b.u8() & 1 != 0 },
        48 => Act::Swap { a: b.u8(), b: b.u8() },
        49 | 50 => Act::Gdt { frames: [b.u8(), b.u8()], count: b.u8() },
        51 => Act::Ldt { page: b.u8(), entries: b.u8(), fault: b.u8() & 3 != 0 },
        52 => Act::Descriptor { frame: b.u8(), slot: b.u8(), value: b.u8() },
        53 => Act::Area { what: b.u8(), frame: b.u8(), page: b.u8(), vcpu: b.u8() },
        54 => Act::Emulate { table: b.u8(), slot: b.u8(), entry: b.entry(), how: b.u8() },
        55 => Act::Multi { maps: core::array::from_fn(|_| (b.u8(), b.entry())) },
        56 => Act::Event { what: b.u8(), port: b.u8() },
        57 => Act::Control { what: b.u8(), dom: b.u8(), frame: b.u8() },
        58 => Act::Destroy { dom: b.u8() },
        59 => Act::Create { dom: b.u8() },
        60 | 61 => Act::Interrupt { after: b.u8() },
        _ => Act::Continue,
    }
}
