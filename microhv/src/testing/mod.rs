//! A machine of plain memory for host tests: frames in a vector, page tables walked in software.

#![allow(unsafe_code)] // gives out views of its own memory as `SharedBytes`

pub(crate) mod held;
pub mod looks;
mod platform;
mod tlb;
pub(crate) mod turns;
pub mod wild;
mod world;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ring_abi::shared::SharedBytes;
use ring_abi::types::{GuestVa, Maddr, Mfn, Pfn};
use spin::Mutex;
use tlb::Tlb;
pub use tlb::{CPUS, Remembered};
pub use world::{ARGS, World};

use crate::frames::{FrameTable, pte};
use crate::platform::{CpuId, DescriptorWindow, PowerAction, SegmentBase, Vector};

const PAGE: u64 = 4096;

std::thread_local! {
    /// The CPU that this thread is.
    static CPU: Cell<usize> = const { Cell::new(0) };
}

/// Things that happened to a [`TestMachine`].
#[derive(Debug, Default)]
pub struct Events {
    /// What was written to the console.
    pub console: Vec<u8>,
    /// The console takes so many bytes before it is full.
    pub console_limit: Option<usize>,
    /// Power actions asked for.
    pub power: Vec<PowerAction>,
    /// Port writes: port, size, value.
    pub ports: Vec<(u16, u8, u32)>,
    /// Writes to device memory.
    pub mmio: Vec<(u64, u32)>,
    /// How often the GS bases were exchanged.
    pub gs_swaps: u32,
    /// How often descriptor-table registers were loaded.
    pub descriptor_reloads: u32,
    /// Segment bases set.
    pub segment_bases: Vec<(SegmentBase, u64)>,
    /// `invlpg` addresses.
    pub invlpg: Vec<GuestVa>,
    /// CPUs kicked.
    pub kicks: Vec<CpuId>,
    /// Legacy lines routed.
    pub lines: Vec<(u8, Option<Vector>)>,
    /// Legacy lines masked and unmasked.
    pub masked_lines: Vec<(u8, bool)>,
}

/// Configuration space of PCI functions that exist: words of 4 bytes by address-port value.
#[derive(Debug, Default)]
pub struct FakePci {
    address: u32,
    /// The words; absent ones read as all ones and ignore writes.
    pub words: BTreeMap<u32, u32>,
}

impl FakePci {
    fn read(&self, port: u16, size: u8) -> u32 {
        let word = self.words.get(&(self.address & 0x7fff_fffc)).copied().unwrap_or(u32::MAX);
        (word >> ((port & 3) * 8)) & (u32::MAX >> (32 - u32::from(size) * 8))
    }

    fn write(&mut self, port: u16, size: u8, value: u32) {
        let shift = (port & 3) * 8;
        let mask = (u32::MAX >> (32 - u32::from(size) * 8)) << shift;
        if let Some(word) = self.words.get_mut(&(self.address & 0x7fff_fffc)) {
            *word = *word & !mask | value << shift & mask;
        }
    }
}

/// A machine of plain memory.
#[derive(Debug)]
pub struct TestMachine {
    memory: Box<[AtomicU64]>,
    m2p: Box<[AtomicU64]>,
    /// The loaded page tables of each CPU; until the first load, guest addresses are machine addresses.
    cr3: [AtomicU64; CPUS],
    /// CPUs that have not saved what they keep of a vCPU, and so do not park.
    pub keeps_state: AtomicU64,
    /// Answer of `online`.
    pub online: AtomicU64,
    /// CPUs that were asked to let a vCPU's state go, a bit each.
    pub asked_to_let_go: AtomicU64,
    /// What the CPUs remember of page tables.
    tlb: Mutex<Tlb>,
    /// Not 0: accesses choose among what is remembered, by this word.
    adversary: AtomicU64,
    /// What breaks a rule of the model is kept for [`TestMachine::violations`] instead of a panic.
    collects: AtomicBool,
    /// Of each CPU, the questions whether work waits after which an interrupt comes; `u64::MAX`: no interrupt comes.
    interrupt_after: [AtomicU64; CPUS],
    /// Without page tables, frames from this one on are not the guest's.
    pub identity_end: AtomicU64,
    /// System time, set by tests.
    pub now: AtomicU64,
    /// How far each CPU's TSC is ahead of the boot CPU's.
    pub tsc_ahead: [AtomicU64; CPUS],
    /// Answers of `tsc_offset`, where the TSCs are not one clock.
    pub tsc_offsets: [AtomicU64; CPUS],
    /// Whether the TSCs are one clock.
    pub is_one_clock: AtomicBool,
    /// `TimeParams::generation`, raised by tests.
    pub calibrations: AtomicU32,
    /// The programmed timer of each CPU, `u64::MAX` for none.
    pub timers: [AtomicU64; CPUS],
    /// Answer of `heap_has_room`.
    pub heap_has_room: AtomicBool,
    /// Answer of `work_pending`.
    pub pending: AtomicBool,
    /// The CPU says that another than AMD made it.
    pub is_intel: AtomicBool,
    /// TLB flushes of this CPU and of sets.
    pub flushes: AtomicU32,
    /// Answer of port reads.
    pub port_value: AtomicU32,
    /// What happened.
    pub events: Mutex<Events>,
    /// PCI functions.
    pub pci: Mutex<FakePci>,
    /// Descriptor windows that were used.
    windows: AtomicU64,
    bases: [AtomicU64; 3],
    debug: [AtomicU64; 8],
}

impl TestMachine {
    /// A machine with `frames` frames of zeroed memory.
    pub fn new(frames: usize) -> Self {
        CPU.set(0);
        let zeros = |n: usize, v: u64| (0..n).map(|_| AtomicU64::new(v)).collect::<Box<[_]>>();
        Self {
            memory: zeros(frames * 512, 0),
            m2p: zeros(frames, u64::MAX),
            cr3: [const { AtomicU64::new(u64::MAX) }; CPUS],
            keeps_state: AtomicU64::new(0),
            online: AtomicU64::new(1),
            asked_to_let_go: AtomicU64::new(0),
            tlb: Mutex::new(Tlb::new()),
            adversary: AtomicU64::new(0),
            collects: AtomicBool::new(false),
            interrupt_after: [const { AtomicU64::new(u64::MAX) }; CPUS],
            identity_end: AtomicU64::new(frames as u64),
            now: AtomicU64::new(1_000_000),
            tsc_ahead: [const { AtomicU64::new(0) }; CPUS],
            tsc_offsets: [const { AtomicU64::new(0) }; CPUS],
            is_one_clock: AtomicBool::new(true),
            calibrations: AtomicU32::new(1),
            timers: [const { AtomicU64::new(u64::MAX) }; CPUS],
            heap_has_room: AtomicBool::new(true),
            pending: AtomicBool::new(false),
            is_intel: AtomicBool::new(false),
            flushes: AtomicU32::new(0),
            port_value: AtomicU32::new(u32::MAX),
            events: Mutex::new(Events::default()),
            pci: Mutex::new(FakePci::default()),
            windows: AtomicU64::new(0),
            bases: [const { AtomicU64::new(0) }; 3],
            debug: [const { AtomicU64::new(0) }; 8],
        }
    }

    /// Loads an aligned u64 (acquire).
    pub fn load(&self, at: Maddr) -> u64 {
        self.word(at).load(Ordering::Acquire)
    }

    /// Stores an aligned u64 (release).
    pub fn store(&self, at: Maddr, value: u64) {
        self.written(at);
        self.word(at).store(value, Ordering::Release);
    }

    /// Copies out of machine memory.
    pub fn read_bytes(&self, from: Maddr, to: &mut [u8]) {
        self.byte_view().read(from.raw() as usize, to);
    }

    /// Debug register `index` of the processor.
    pub fn debug_register(&self, index: usize) -> u64 {
        self.debug[index].load(Ordering::Relaxed)
    }

    /// Number of frames.
    pub fn frame_count(&self) -> usize {
        self.m2p.len()
    }

    /// The loaded page-table base; `None`: guest addresses are machine addresses.
    pub fn cr3(&self) -> Option<Mfn> {
        let raw = self.cr3[self.me()].load(Ordering::Relaxed);
        (raw != u64::MAX).then(|| Mfn::new(raw))
    }

    /// Takes the page tables away, and what was remembered of them: guest addresses are machine addresses again.
    pub fn identity(&self) {
        self.cr3[self.me()].store(u64::MAX, Ordering::Relaxed);
        self.with_tlb(|tlb, memory, me| {
            tlb.load(memory, me, None);
            tlb.flush(memory, me);
        });
    }

    /// This CPU goes over to a vCPU that runs on `l4`: all is flushed, as a switch does, unless the tables are loaded already.
    pub fn switch_to(&self, l4: Mfn) {
        if self.cr3() == Some(l4) {
            return;
        }
        self.cr3[self.me()].store(l4.raw(), Ordering::Relaxed);
        self.with_tlb(|tlb, memory, me| {
            tlb.load(memory, me, Some(l4));
            tlb.flush(memory, me);
        });
    }

    /// From now on what the CPUs remember of page tables is kept, and held against this frame table.
    pub fn watch(&self, frames: &FrameTable) {
        self.tlb.lock().watch(frames.entries());
    }

    /// CPUs run guests on copies of level 4 tables from now on.
    pub fn run_on_copies(&self) {
        self.with_tlb(|tlb, memory, _| tlb.run_on_copies(memory));
    }

    /// This thread is this CPU from now on.
    pub fn on_cpu(&self, cpu: usize) {
        assert!(cpu < CPUS);
        CPU.set(cpu);
    }

    /// The CPU that this thread is.
    #[allow(clippy::unused_self)] // the machine has the CPUs
    pub(crate) fn me(&self) -> usize {
        CPU.get()
    }

    /// This CPU is in the hypervisor from now on, or in its guest again. In the hypervisor it may remember what does no harm
    /// before the CPU has flushed.
    pub(crate) fn enter(&self, is_inside: bool) {
        self.tlb.lock().enter(self.me(), is_inside);
    }

    /// The CPU that the hypervisor runs on has this vCPU's descriptor window loaded.
    pub fn set_window(&self, window: Option<&DescriptorWindow>) {
        let window = window.map(|window| self.place(window));
        self.with_tlb(|tlb, _, me| tlb.set_vcpu(me, window));
    }

    /// The number of a window, which gets one when it is first used.
    fn place(&self, window: &DescriptorWindow) -> u64 {
        if window.place() == 0 {
            window.replace(self.windows.fetch_add(1, Ordering::Relaxed) + 1);
        }
        window.place()
    }

    /// Accesses choose among what is remembered, by `choice`; 0: they find what the tables say now.
    pub fn set_adversary(&self, choice: u64) {
        self.adversary.store(choice, Ordering::Relaxed);
    }

    /// What breaks a rule of the model is kept from now on, where it was a panic.
    pub fn collect_violations(&self) {
        self.collects.store(true, Ordering::Relaxed);
    }

    /// What broke a rule of the model since the last time.
    pub fn violations(&self) -> Vec<String> {
        self.tlb.lock().take_violations()
    }

    /// All pages that CPUs remember.
    pub fn remembered(&self) -> Vec<Remembered> {
        self.tlb.lock().leaves()
    }

    /// Frames to which the CPU's window on its vCPU's descriptors may lead.
    pub fn window(&self, cpu: usize) -> Vec<Mfn> {
        self.tlb.lock().window(cpu)
    }

    /// A page, `va` or any, that the CPU remembers otherwise than its tables say now.
    pub fn stale(&self, cpu: usize, va: Option<u64>) -> Option<Remembered> {
        let me = CPU.replace(cpu);
        let fits = |leaf: &Remembered| leaf.cpu == cpu && va.is_none_or(|va| va & !(PAGE - 1) == leaf.va);
        let is_stale = |leaf: &Remembered| {
            let wide = (leaf.va << 16) as i64 >> 16;
            self.translate(wide as u64, leaf.writable).is_none_or(|at| at.raw() / PAGE != leaf.frame.raw())
        };
        let found = self.remembered().into_iter().filter(fits).find(is_stale);
        CPU.set(me);
        found
    }

    /// The end of a call: what the CPUs remember by now must be harmless.
    pub fn settle_tlb(&self) {
        self.with_tlb(|tlb, memory, _| tlb.settle(memory));
    }

    /// An interrupt comes at the question whether work waits that follows the next `questions`, and stays until
    /// [`TestMachine::return_to_guest`].
    pub fn interrupt_after(&self, questions: u64) {
        self.interrupt_after[self.me()].store(questions, Ordering::Relaxed);
    }

    /// The way back to the guest: an interrupt that waits is taken.
    pub fn return_to_guest(&self) {
        self.interrupt_after[self.me()].store(u64::MAX, Ordering::Relaxed);
    }

    fn with_tlb(&self, act: impl FnOnce(&mut Tlb, &[AtomicU64], usize)) {
        turns::point();
        let mut tlb = self.tlb.lock();
        tlb.hypervisor_runs_on(self.me());
        act(&mut tlb, &self.memory, self.me());
        if self.collects.load(Ordering::Relaxed) {
            return;
        }
        let violations = tlb.take_violations();
        drop(tlb); // what is dropped by the panic flushes
        #[cfg(not(freestanding))]
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("what a CPU remembers does harm: {violations:#?}");
        }
    }

    /// Gives `act` what an access at `va` may find: by an adversary's choice, or as the tables are now. A processor has done an
    /// access before it takes another's request for a flush, so no CPU is flushed meanwhile.
    fn access<R>(&self, va: u64, write: bool, act: impl FnOnce(Maddr) -> R) -> Option<R> {
        self.with_tlb(|tlb, memory, _| tlb.look(memory));
        let mut tlb = self.tlb.lock();
        let at = self.choose(&tlb, va, write).or_else(|| self.translate(va, write))?;
        if write {
            tlb.written(at.mfn());
            self.set_dirty(va);
        }
        Some(act(at))
    }

    /// The adversary's choice among the frames that the CPU may find at `va`.
    fn choose(&self, tlb: &Tlb, va: u64, write: bool) -> Option<Maddr> {
        let choice = self.adversary.load(Ordering::Relaxed);
        if choice == 0 || self.cr3().is_none() || !pte::is_canonical(va) {
            return None;
        }
        // Another choice each time.
        let next = choice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1) | 1;
        self.adversary.store(next, Ordering::Relaxed);
        let mfn = tlb.translate(self.me(), va, write, next >> 33)?;
        Some(Maddr::new(mfn.raw() * PAGE + va % PAGE))
    }

    /// The machine-to-physical entry of a frame, if the frame has a place in its domain.
    pub fn m2p(&self, mfn: Mfn) -> Option<Pfn> {
        Some(Pfn::new(self.m2p[mfn.raw() as usize].load(Ordering::Relaxed)))
            .filter(|pfn| *pfn != Pfn::INVALID)
    }

    /// The machine address of guest address `va`, with user rights, for writing if `write`.
    pub fn translate(&self, va: u64, write: bool) -> Option<Maddr> {
        if !pte::is_guest_address(GuestVa::new(va)) {
            return None;
        }
        let Some(l4) = self.cr3() else {
            return (va / PAGE < self.identity_end.load(Ordering::Relaxed)).then(|| Maddr::new(va));
        };
        let mut table = l4;
        for level in (1..=4).rev() {
            if table.raw() >= self.frame_count() as u64 {
                return None;
            }
            let entry = self.words(table)[pte::index(va, level)].load(Ordering::Relaxed);
            if entry & (pte::P | pte::US) != pte::P | pte::US || (write && entry & pte::RW == 0) {
                return None;
            }
            table = pte::Pte::new(entry).frame();
        }
        (table.raw() < self.frame_count() as u64).then(|| Maddr::new(table.raw() * PAGE + va % PAGE))
    }

    /// A write at `va` sets A and D in the entry, as a processor does, if the tables allow the write.
    fn set_dirty(&self, va: u64) {
        let (Some(l4), Some(_)) = (self.cr3(), self.translate(va, true)) else { return };
        let table = (2..=4).rev().fold(l4, |table, level| {
            let entry = self.words(table)[pte::index(va, level)].load(Ordering::Relaxed);
            pte::Pte::new(entry).frame()
        });
        self.words(table)[pte::index(va, 1)].fetch_or(pte::A | pte::D, Ordering::Relaxed);
    }

    /// What a guest's store does: `false` when the tables do not allow it, and the guest gets a fault.
    pub fn store_at(&self, va: u64, value: u64) -> bool {
        let to = self.translate(va, true);
        to.is_some_and(|to| {
            self.set_dirty(va);
            self.store(to, value);
            true
        })
    }

    fn words(&self, mfn: Mfn) -> &[AtomicU64; 512] {
        let start = mfn.raw() as usize * 512;
        self.memory[start..start + 512].try_into().expect("512 entries")
    }

    fn written(&self, at: Maddr) {
        self.tlb.lock().written(Mfn::new(at.raw() / PAGE));
    }

    fn byte_view(&self) -> SharedBytes<'static> {
        // SAFETY: atomics are shared and written by anyone, and aligned; the memory lives as long as the machine, which
        // tests keep while they use a view.
        unsafe { SharedBytes::new(self.memory.as_ptr().cast_mut().cast(), size_of_val(&*self.memory)) }
    }

    fn word(&self, at: Maddr) -> &AtomicU64 {
        assert_eq!(at.raw() % 8, 0);
        &self.memory[(at.raw() / 8) as usize]
    }
}
