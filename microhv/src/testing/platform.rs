//! [`TestMachine`] as the hypervisor sees it.

use alloc::vec;
use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::guest_context::CpuUserRegs;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{GuestVa, Maddr, Mfn, Pfn};
use zerocopy::IntoBytes;

use super::looks::{Look, note};
use super::{CPUS, PAGE, TestMachine};
use crate::frames::pte::{self, Pte};
use crate::platform::{
    Clock, CpuId, CpuSet, CpuidResult, Cpus, DescriptorPage, DescriptorWindow, DescriptorWindows, Devices,
    GROUP, GuestFault, GuestMemory, MachineFacts, MachineInfo, MachineMemory, Paging, Platform, PowerAction,
    Registers, SegmentBase, SerialConsole, Settled, TimeParams, Vector,
};

impl MachineMemory for TestMachine {
    fn table(&self, mfn: Mfn) -> &[AtomicU64; 512] {
        note(Look::Contents(mfn));
        self.with_tlb(|tlb, memory, _| tlb.hand_out(memory, mfn));
        self.words(mfn)
    }

    fn present_groups(&self, mfn: Mfn) -> u64 {
        note(Look::Contents(mfn));
        self.with_tlb(|tlb, memory, me| tlb.checked(memory, mfn, me));
        let any = |group: &[AtomicU64]| group.iter().any(|entry| Pte::load(entry).is_present());
        let groups = self.words(mfn).chunks(GROUP).enumerate();
        groups.fold(0, |bits, (n, group)| bits | u64::from(any(group)) << n)
    }

    fn write_bytes(&self, to: Maddr, from: &[u8]) {
        let last = to.raw() + from.len().max(1) as u64 - 1;
        (to.raw() / PAGE..=last / PAGE).for_each(|frame| self.written(Maddr::new(frame * PAGE)));
        self.byte_view().write(to.raw() as usize, from);
    }

    fn copy_bytes(&self, to: Maddr, from: Maddr, len: usize) {
        [from, to].into_iter().for_each(|at| note(Look::Contents(at.mfn())));
        let mut bytes = vec![0; len];
        self.read_bytes(from, &mut bytes);
        self.write_bytes(to, &bytes);
    }

    fn zero_frame(&self, mfn: Mfn) {
        note(Look::Contents(mfn));
        self.with_tlb(|tlb, memory, _| tlb.cleared(memory, mfn));
        for word in self.words(mfn) {
            word.store(0, Ordering::Relaxed);
        }
    }

    fn shared(&self, mfn: Mfn) -> SharedBytes<'static> {
        note(Look::Contents(mfn));
        self.tlb.lock().hold(mfn);
        self.byte_view()
            .slice(mfn.raw() as usize * PAGE as usize, PAGE as usize)
            .expect("a frame of the machine")
    }

    fn m2p(&self, mfn: Mfn) -> Pfn {
        Self::m2p(self, mfn).unwrap_or(Pfn::INVALID)
    }

    fn set_m2p(&self, mfn: Mfn, pfn: Pfn) {
        self.m2p[mfn.raw() as usize].store(pfn.raw(), Ordering::Relaxed);
    }
}

impl GuestMemory for TestMachine {
    fn copy_from_guest(&self, _: Settled<'_>, to: &mut [u8], va: GuestVa) -> Result<(), GuestFault> {
        let mut done = 0;
        while done < to.len() {
            let at = va.wrapping_add(done as u64);
            let len = (to.len() - done).min(PAGE as usize - at.offset());
            let bytes = &mut to[done..done + len];
            self.access(at.raw(), false, |from| self.read_bytes(from, bytes))
                .ok_or(GuestFault { copied: done })?;
            done += len;
        }
        Ok(())
    }

    fn copy_to_guest(&self, _: Settled<'_>, va: GuestVa, from: &[u8]) -> Result<(), GuestFault> {
        let mut done = 0;
        while done < from.len() {
            let at = va.wrapping_add(done as u64);
            let len = (from.len() - done).min(PAGE as usize - at.offset());
            let bytes = &from[done..done + len];
            let write = |to: Maddr| self.byte_view().write(to.raw() as usize, bytes);
            self.access(at.raw(), true, write).ok_or(GuestFault { copied: done })?;
            done += len;
        }
        Ok(())
    }

    fn write_frame<const N: usize>(
        &self,
        settled: Settled<'_>,
        va: GuestVa,
        words: [u64; N],
    ) -> Result<(), GuestFault> {
        self.copy_to_guest(settled, va, words.as_bytes())
    }

    fn read_words(&self, settled: Settled<'_>, to: &mut [u64], va: GuestVa) -> Result<(), GuestFault> {
        self.copy_from_guest(settled, to.as_mut_bytes(), va)
    }

    fn read_frame<const N: usize>(&self, settled: Settled<'_>, va: GuestVa) -> Result<[u64; N], GuestFault> {
        let mut words = [0; N];
        self.copy_from_guest(settled, words.as_mut_bytes(), va)?;
        Ok(words)
    }
}

impl Paging for TestMachine {
    fn load_cr3(&self, l4: Mfn) {
        self.cr3[self.me()].store(l4.raw(), Ordering::Relaxed);
        self.with_tlb(|tlb, memory, me| tlb.load(memory, me, Some(l4)));
    }

    fn load_cr3_flushing(&self, l4: Mfn) {
        self.load_cr3(l4);
        self.flush_tlb_local();
    }

    fn flush_tlb_local(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.with_tlb(|tlb, memory, me| tlb.flush(memory, me));
    }

    fn invlpg(&self, va: GuestVa) {
        self.events.lock().invlpg.push(va);
        self.with_tlb(|tlb, memory, me| tlb.flush_page(memory, me, va.raw()));
    }

    fn flush_tlb(&self, cpus: CpuSet) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.with_tlb(|tlb, memory, _| {
            let flushed = (0..CPUS).filter(|cpu| cpus.bits() >> cpu & 1 != 0);
            flushed.for_each(|cpu| tlb.flush(memory, cpu));
        });
    }

    fn root_changed(&self, l4: Mfn) -> bool {
        self.tlb.lock().root_changed(l4)
    }

    fn fill_hypervisor_slots(&self, l4: Mfn) {
        self.written(l4.maddr());
        self.tlb.lock().root_changed(l4);
        for slot in &self.words(l4)[pte::HYPERVISOR_FIRST_SLOT..=pte::HYPERVISOR_LAST_SLOT] {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

impl DescriptorWindows for TestMachine {
    fn create_window(&self, _window: &DescriptorWindow) -> bool {
        true
    }

    fn destroy_window(&self, _window: &DescriptorWindow) {}

    fn set_descriptor_page(&self, window: &DescriptorWindow, page: DescriptorPage, frame: Option<Mfn>) {
        let place = self.place(window);
        self.with_tlb(|tlb, _, _| tlb.set_window(place, page, frame));
    }

    fn reload_descriptor_tables(&self, _window: &DescriptorWindow, _ldt_entries: u16) {
        self.events.lock().descriptor_reloads += 1;
    }
}

impl Registers for TestMachine {
    fn frame_of(&self, _: CpuId) -> Option<CpuUserRegs> {
        None
    }

    fn swap_gs(&self) {
        self.events.lock().gs_swaps += 1;
    }

    fn set_segment_base(&self, base: SegmentBase, value: u64) {
        self.bases[base as usize].store(value, Ordering::Relaxed);
        self.events.lock().segment_bases.push((base, value));
    }

    fn segment_base(&self, base: SegmentBase) -> u64 {
        self.bases[base as usize].load(Ordering::Relaxed)
    }

    fn load_user_gs(&self, _selector: u16) {}

    fn set_debug_register(&self, index: u8, value: u64) {
        self.debug[index as usize].store(value, Ordering::Relaxed);
    }

    fn set_base_instructions(&self, _on: bool) {}

    fn set_task_switched(&self, _on: bool) {}

    fn set_xcr0(&self, _value: u64) {}
}

impl Clock for TestMachine {
    fn now_ns(&self) -> u64 {
        let offset = self.tsc_offsets[self.me()].load(Ordering::Relaxed);
        self.tsc().wrapping_add(offset)
    }

    fn tsc(&self) -> u64 {
        let ahead = self.tsc_ahead[self.me()].load(Ordering::Relaxed);
        self.now.load(Ordering::Relaxed).wrapping_add(ahead)
    }

    fn tsc_offset(&self, cpu: CpuId) -> u64 {
        self.tsc_offsets[cpu.index()].load(Ordering::Relaxed)
    }

    fn time_params(&self) -> TimeParams {
        TimeParams {
            tsc: 0,
            system_ns: 0,
            mul: 1 << 31,
            shift: 1,
            generation: self.clock_generation(),
            tsc_khz: 1_000_000,
            is_one_clock: self.is_one_clock.load(Ordering::Relaxed),
        }
    }

    fn clock_generation(&self) -> u32 {
        self.calibrations.load(Ordering::Relaxed)
    }

    fn set_timer(&self, deadline_ns: Option<u64>) {
        self.timers[self.me()].store(deadline_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Cpus for TestMachine {
    fn cpu(&self) -> CpuId {
        CpuId::new(self.me() as u32).expect("few CPUs")
    }

    fn online(&self) -> CpuSet {
        CpuSet::from_bits(self.online.load(Ordering::Relaxed))
    }

    fn kick(&self, cpu: CpuId) {
        self.events.lock().kicks.push(cpu);
    }

    fn park(&self, cpu: CpuId) -> bool {
        super::turns::point();
        if CpuSet::from_bits(self.keeps_state.load(Ordering::SeqCst)).contains(cpu) {
            return false;
        }
        self.online.fetch_and(!CpuSet::only(cpu).bits(), Ordering::SeqCst);
        true
    }

    fn unpark(&self, cpu: CpuId) -> bool {
        self.online.fetch_or(CpuSet::only(cpu).bits(), Ordering::SeqCst);
        true
    }

    fn ask_to_let_go(&self, cpu: CpuId) {
        self.asked_to_let_go.fetch_or(CpuSet::only(cpu).bits(), Ordering::SeqCst);
    }

    fn work_pending(&self) -> bool {
        super::turns::point();
        let interrupt_after = &self.interrupt_after[self.me()];
        let left = interrupt_after.load(Ordering::Relaxed);
        if left != u64::MAX && left > 0 {
            interrupt_after.store(left - 1, Ordering::Relaxed);
        }
        left == 0 || self.pending.load(Ordering::Relaxed)
    }
}

impl SerialConsole for TestMachine {
    fn console_write(&self, bytes: &[u8]) -> usize {
        let mut events = self.events.lock();
        let room =
            events.console_limit.map_or(usize::MAX, |limit| limit.saturating_sub(events.console.len()));
        let count = bytes.len().min(room);
        events.console.extend_from_slice(&bytes[..count]);
        count
    }

    fn console_is_busy(&self) -> bool {
        let events = self.events.lock();
        events.console_limit.is_some_and(|limit| events.console.len() >= limit)
    }

    fn console_log(&self, from: u64, to: &mut [u8]) -> (u64, usize) {
        let events = self.events.lock();
        let start = (from as usize).min(events.console.len());
        let len = to.len().min(events.console.len() - start);
        to[..len].copy_from_slice(&events.console[start..start + len]);
        (start as u64, len)
    }

    fn clear_console_log(&self) {
        self.events.lock().console.clear();
    }
}

impl Devices for TestMachine {
    fn port_in(&self, port: u16, size: u8) -> u32 {
        if (0xcfc..0xd00).contains(&port) {
            return self.pci.lock().read(port, size);
        }
        self.port_value.load(Ordering::Relaxed)
    }

    fn port_out(&self, port: u16, size: u8, value: u32) {
        match port {
            0xcf8 => self.pci.lock().address = value,
            0xcfc..0xd00 => self.pci.lock().write(port, size, value),
            _ => self.events.lock().ports.push((port, size, value)),
        }
    }

    fn mmio_write(&self, at: Maddr, value: u32) {
        self.events.lock().mmio.push((at.raw(), value));
    }

    fn msi_message(&self, vector: Vector) -> (u64, u32) {
        (0xfee0_0000, vector.0.into())
    }

    fn route_line(&self, line: u8, vector: Option<Vector>) {
        self.events.lock().lines.push((line, vector));
    }

    fn mask_line(&self, line: u8, masked: bool) {
        self.events.lock().masked_lines.push((line, masked));
    }

    fn power(&self, action: PowerAction) {
        self.events.lock().power.push(action);
    }
}

impl MachineFacts for TestMachine {
    fn cpuid(&self, leaf: u32, _subleaf: u32) -> CpuidResult {
        match leaf {
            0 if self.is_intel.load(Ordering::Relaxed) => CpuidResult { eax: 0xd, ..CpuidResult::default() },
            0 => CpuidResult { eax: 0xd, ebx: 0x6874_7541, edx: 0x6974_6e65, ecx: 0x444d_4163 },
            0x8000_0000 => CpuidResult { eax: 0x8000_0008, ..CpuidResult::default() },
            0x8000_0008 => CpuidResult { eax: 0x3028, ..CpuidResult::default() },
            _ => CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        }
    }

    fn xcr0_mask(&self) -> u64 {
        7
    }

    fn efer(&self) -> u64 {
        0xd01
    }

    fn heap_has_room(&self, _bytes: usize) -> bool {
        self.heap_has_room.load(Ordering::Relaxed)
    }

    fn command_line(&self) -> &str {
        ""
    }

    fn build_id(&self) -> &[u8] {
        &[1, 2, 3, 4]
    }

    fn machine_info(&self) -> MachineInfo {
        MachineInfo { cpus: 1, cpu_khz: 1_000_000, ..MachineInfo::default() }
    }
}

impl Platform for TestMachine {}
