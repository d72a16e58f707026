//! Steps that change page tables and memory.

use alloc::format;

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::mmu::*;
use ring_abi::types::{DOMID_SELF, Mfn};

use super::*;
use crate::frames::pte::P;
use crate::hypercall::Outcome;
use crate::testing::wild::step::{Entry, Page, Pick};

/// Where an instruction lies in the page of arguments.
const CODE: u64 = 0xe00;
/// Where a set of vCPUs lies there.
const SET: u64 = ARGS + 0xf00;

impl Wild {
    pub(super) fn batch(&self, requests: &[(Pick, u8, Entry, u8); 3], whose: u8, split: bool) -> Option<()> {
        const BYTES: u64 = size_of::<MmuUpdate>() as u64;
        let at = if split { ARGS + 0x1000 - BYTES } else { ARGS };
        let mut count = 0;
        for &(table, slot, entry, mode) in requests {
            if mode & 0xf0 == 0xf0 {
                continue;
            }
            let table = self.pick(table);
            let level = self.hv.frames.info(Mfn::new(table)).map_or(0, |info| info.page_type().0.level());
            let slot = Self::slot(level, slot);
            let mut val = self.entry(entry);
            if level > 1 && val & P != 0 {
                // A table of the level below, if the caller has one.
                val = self.below(level, entry).unwrap_or(val);
            }
            let old = self.named(table, slot);
            self.note(table);
            old.into_iter().for_each(|frame| self.note(frame));
            let command = [0, 2, 0, 1][usize::from(mode & 3)];
            let command = if mode & 12 == 0 { command } else { 0 };
            self.put(at + count * BYTES, &MmuUpdate { ptr: (table << 12) + slot * 8 + command, val })?;
            count += 1;
        }
        let whose = self.whose(whose);
        let domains = if whose == DOMID_SELF || whose & 1 == 0 {
            u64::from(whose)
        } else {
            u64::from(DOMID_SELF) | (u64::from(whose) + 1) << 16
        };
        self.call(__HYPERVISOR_MMU_UPDATE, &[at, count, 0, domains]).map(|_| ())
    }

    pub(super) fn map(&self, page: Page, entry: Entry, flush: u8, dom: Option<u8>) -> Option<()> {
        let va = Self::va(page);
        let flags =
            [0, 0, 0, UVMF_INVLPG, UVMF_INVLPG | UVMF_ALL, UVMF_TLB_FLUSH, UVMF_TLB_FLUSH | UVMF_ALL, 0]
                [usize::from(flush & 7)];
        let (_, own) = self.loaded()?;
        let (flags, vcpus) = match flags {
            UVMF_INVLPG | UVMF_TLB_FLUSH if flush & 8 != 0 => (flags | SET, u64::from(flush >> 4 & 3)),
            _ if flags & UVMF_ALL != 0 => (flags, u64::MAX),
            _ => (flags, 1 << own),
        };
        let has_set = flags & SET == SET;
        if has_set {
            self.put(SET, &vcpus)?;
        }
        // If the CPU remembers another page for the page of arguments, the hypervisor may read another set than this.
        let is_read =
            !has_set || va & !0xfff != ARGS && self.hv.platform.stale(self.cpu(), Some(ARGS)).is_none();
        let entry = self.entry(entry);
        self.note_at(va);
        let result = match dom {
            None => self.call(__HYPERVISOR_UPDATE_VA_MAPPING, &[va, entry, flags]),
            Some(dom) => {
                let dom = u64::from(dom) % DOMAINS as u64;
                self.call(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, &[va, entry, flags, dom])
            }
        };
        if result? == Ok(Outcome::OK) && is_read {
            match flags & UVMF_FLUSHTYPE_MASK {
                UVMF_INVLPG => self.expect_flushed(vcpus, Some(va)),
                UVMF_TLB_FLUSH => self.expect_flushed(vcpus, None),
                _ => {}
            }
        }
        Some(())
    }

    /// The caller asked for a flush for `vcpus`, a bit each, and the call succeeded: the CPUs that have them remember only what the
    /// tables say.
    pub(super) fn expect_flushed(&self, vcpus: u64, va: Option<u64>) {
        let Some((dom, _)) = self.loaded().filter(|_| self.is_alone) else { return };
        for cpu in 0..self.cpus {
            let loaded = self.state().loaded[cpu];
            let is_meant = |(other, vcpu)| other == dom && vcpus >> vcpu & 1 != 0;
            if loaded.is_some_and(is_meant)
                && let Some(stale) = self.hv.platform.stale(cpu, va)
            {
                self.tell(format!("CPU {cpu} was flushed, and remembers {stale:x?}"));
            }
        }
    }

    pub(super) fn ext(&self, ops: &[(u8, u8); 2], whose: u8) -> Option<()> {
        const COMMANDS: [u32; 24] = [
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_PIN_L2_TABLE,
            MMUEXT_PIN_L3_TABLE,
            MMUEXT_PIN_L4_TABLE,
            MMUEXT_UNPIN_TABLE,
            MMUEXT_UNPIN_TABLE,
            MMUEXT_UNPIN_TABLE,
            MMUEXT_NEW_BASEPTR,
            MMUEXT_NEW_USER_BASEPTR,
            MMUEXT_TLB_FLUSH_LOCAL,
            MMUEXT_INVLPG_LOCAL,
            MMUEXT_TLB_FLUSH_ALL,
            MMUEXT_INVLPG_ALL,
            MMUEXT_CLEAR_PAGE,
            MMUEXT_COPY_PAGE,
            MMUEXT_TLB_FLUSH_MULTI,
            MMUEXT_PIN_L4_TABLE,
            MMUEXT_NEW_USER_BASEPTR,
            MMUEXT_PIN_L1_TABLE,
            MMUEXT_CLEAR_PAGE,
            u32::MAX,
            u32::MAX,
        ];
        // If the CPU remembers another page for the page of arguments, the hypervisor may read other operations than these.
        let is_read = self.hv.platform.stale(self.cpu(), Some(ARGS)).is_none();
        let (_, own) = self.loaded()?;
        let (mut count, mut set) = (0u64, 0);
        let mut last = None;
        for &(command, arg) in ops {
            let cmd = COMMANDS[usize::from(command) % COMMANDS.len()];
            if cmd == u32::MAX {
                continue;
            }
            let has_set = cmd == MMUEXT_TLB_FLUSH_MULTI;
            let cmd = if has_set && arg & 4 != 0 { MMUEXT_INVLPG_MULTI } else { cmd };
            let is_address = matches!(cmd, MMUEXT_INVLPG_LOCAL | MMUEXT_INVLPG_ALL | MMUEXT_INVLPG_MULTI);
            let arg1 = if is_address { Self::va(arg) } else { self.pick(arg) };
            let arg2 = if has_set { SET } else { self.pick(arg.rotate_left(3)) };
            if has_set {
                set = u64::from(arg & 3);
                self.put(SET, &set)?;
            }
            self.put(ARGS + count * 24, &MmuextOp { cmd, arg1, arg2, ..MmuextOp::default() })?;
            if !is_address {
                self.note(arg1);
            }
            last = Some((cmd, arg1));
            count += 1;
        }
        let whose = self.whose(whose);
        let result = self.call(__HYPERVISOR_MMUEXT_OP, &[ARGS, count, 0, whose.into()])?;
        if result == Ok(Outcome::OK) && whose == DOMID_SELF && is_read {
            match last {
                Some((MMUEXT_TLB_FLUSH_LOCAL | MMUEXT_NEW_BASEPTR, _)) => self.expect_flushed(1 << own, None),
                Some((MMUEXT_TLB_FLUSH_ALL, _)) => self.expect_flushed(u64::MAX, None),
                Some((MMUEXT_TLB_FLUSH_MULTI, _)) => self.expect_flushed(set, None),
                Some((MMUEXT_INVLPG_LOCAL, va)) => self.expect_flushed(1 << own, Some(va)),
                Some((MMUEXT_INVLPG_ALL, va)) => self.expect_flushed(u64::MAX, Some(va)),
                Some((MMUEXT_INVLPG_MULTI, va)) => self.expect_flushed(set, Some(va)),
                _ => {}
            }
        }
        Some(())
    }

    pub(super) fn memory(&self, op: u8, frames: [Pick; 2], count: u8, whose: u8) -> Option<()> {
        let op = [
            XENMEM_INCREASE_RESERVATION,
            XENMEM_DECREASE_RESERVATION,
            XENMEM_POPULATE_PHYSMAP,
            XENMEM_DECREASE_RESERVATION,
        ][usize::from(op & 3)];
        let frames = frames.map(|frame| self.pick(frame));
        self.put(ARGS + 0x100, &frames)?;
        let request = XenMemoryReservation {
            extent_start: ARGS + 0x100,
            nr_extents: u64::from(count & 1) + 1,
            domid: self.whose(whose),
            ..XenMemoryReservation::default()
        };
        self.put(ARGS, &request)?;
        self.call(__HYPERVISOR_MEMORY_OP, &[op.into(), ARGS])?.ok()?;
        let frames = if op == XENMEM_DECREASE_RESERVATION { frames } else { self.get(ARGS + 0x100)? };
        frames.into_iter().for_each(|frame| self.note(frame));
        Some(())
    }

    pub(super) fn exchange(&self, frames: [Pick; 2], pair: bool) -> Option<()> {
        let frames = frames.map(|frame| self.pick(frame));
        self.put(ARGS + 0x100, &frames)?;
        self.put(ARGS + 0x200, &[1u64, 2])?;
        let list = |extent_start, extent_order| XenMemoryReservation {
            extent_start,
            nr_extents: 2u64 >> extent_order,
            extent_order,
            domid: DOMID_SELF,
            ..XenMemoryReservation::default()
        };
        let request = XenMemoryExchange {
            r#in: list(ARGS + 0x100, 0),
            out: list(ARGS + 0x200, pair.into()),
            nr_exchanged: 0,
        };
        self.put(ARGS, &request)?;
        frames.into_iter().for_each(|frame| self.note(frame));
        self.call(__HYPERVISOR_MEMORY_OP, &[XENMEM_EXCHANGE.into(), ARGS]).map(|_| ())
    }

    pub(super) fn emulate(&self, table: u8, slot: u8, entry: Entry, how: u8) -> Option<()> {
        // xchg [rbx], rax; mov [rbx], rax; lock and [rbx], rax; lock cmpxchg [rbx], rcx
        const CODES: [[u8; 5]; 4] = [
            [0x48, 0x87, 0x03, 0x90, 0x90],
            [0x48, 0x89, 0x03, 0x90, 0x90],
            [0xf0, 0x48, 0x21, 0x03, 0x90],
            [0xf0, 0x48, 0x0f, 0xb1, 0x0b],
        ];
        self.me()?;
        self.put(ARGS + CODE, &CODES[usize::from(how & 3)])?;
        // The tables are mapped at the first pages, the level 1 tables at the last of them.
        let page = if table & 7 == 7 { 5 } else { u64::from(table & 7) };
        let at = (page << 12) + Self::slot(1, slot) * 8;
        let entry = self.entry(entry);
        if let Some(frame) = self.hv.platform.translate(at, false) {
            self.named(frame.raw() >> 12, Self::slot(1, slot)).into_iter().for_each(|frame| self.note(frame));
        }
        let mut regs = CpuUserRegs {
            rip: ARGS + CODE,
            rbx: at,
            rax: entry,
            rcx: entry,
            cs: 0xe033,
            ..CpuUserRegs::default()
        };
        self.with(&mut regs, |cur| {
            crate::emul::table_writes::may_be(cur, at, 3) && crate::emul::table_writes::emulate(cur, at)
        })
        .map(|_| ())
    }

    pub(super) fn touch(&self, page: Page, slot: u8, entry: Entry) -> Option<()> {
        let at = Self::va(page) + u64::from(slot & 15) * 8;
        self.me()?;
        let value = self.entry(entry);
        self.put(at, &value)
    }

    pub(super) fn gdt(&self, frames: [Pick; 2], count: u8) -> Option<()> {
        let frames = frames.map(|frame| self.pick(frame));
        self.put(ARGS, &frames)?;
        frames.into_iter().for_each(|frame| self.note(frame));
        self.call(__HYPERVISOR_SET_GDT, &[ARGS, u64::from(count % 3) * 512]).map(|_| ())
    }

    pub(super) fn ldt(&self, page: Page, entries: u8, fault: bool) -> Option<()> {
        let op = MmuextOp {
            cmd: MMUEXT_SET_LDT,
            arg1: Self::va(page),
            arg2: u64::from(entries),
            ..MmuextOp::default()
        };
        self.put(ARGS, &op)?;
        self.call(__HYPERVISOR_MMUEXT_OP, &[ARGS, 1, 0, DOMID_SELF.into()])?.ok()?;
        if fault {
            let hv = &self.hv;
            self.with(&mut CpuUserRegs::default(), |cur| hv.fault_in_ldt(cur.domain, cur.vcpu, 0))?;
        }
        Some(())
    }

    pub(super) fn descriptor(&self, frame: Pick, slot: u8, value: u8) -> Option<()> {
        let at = (self.pick(frame) << 12) + u64::from(slot & 15) * 8;
        let value = [0, 0x00af_9b00_0000_ffff, self.entry((value, 1)), u64::MAX][usize::from(value & 3)];
        self.call(__HYPERVISOR_UPDATE_DESCRIPTOR, &[at, value]).map(|_| ())
    }

    pub(super) fn multi(&self, maps: [(Page, Entry); 2]) -> Option<()> {
        for (n, (page, entry)) in (0u64..).zip(maps) {
            let list = MulticallEntry {
                op: __HYPERVISOR_UPDATE_VA_MAPPING.into(),
                args: [Self::va(page), self.entry(entry), 0, 0, 0, 0],
                ..MulticallEntry::default()
            };
            self.note_at(Self::va(page));
            self.put(ARGS + n * size_of::<MulticallEntry>() as u64, &list)?;
        }
        self.call(__HYPERVISOR_MULTICALL, &[ARGS, 2]).map(|_| ())
    }
}
