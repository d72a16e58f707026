//! What the other vCPUs do: one kind keeps its registers whatever happens, the other returns to where no return is possible.
#![allow(unsafe_code)] // segment registers, and the ways in assembly

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pvrt::mem::Pages;
use pvrt::space::*;
use ring_abi::callback::*;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::types::PAGE_SIZE;
use ring_abi::vcpu::VCPUOP_DOWN;

use super::ways::*;
use crate::others;

/// Pages of a vCPU: the stack of its code, and its record.
const PAGES: usize = 5;
/// CF PF AF ZF SF DF OF NT AC ID.
const FLAGS: u64 = 0x24_4cd5;
const CR4_FSGSBASE: u64 = 1 << 16;
const USER_CS: u64 = FLAT_KERNEL_CS as u64;
const KERNEL_CS: u64 = USER_CS & !3;
const SS: u64 = FLAT_KERNEL_SS as u64;
const RAX: usize = 0;
const RCX: usize = 2;
const R11: usize = 10;
const FLAGS_AT: usize = 15;
/// The registers that CPUID changes, and those that SYSCALL does, by the user's code here too.
const BY_CPUID: u64 = 0b1111;
const BY_CALL: u64 = 1 << RAX | 1 << RCX | 1 << R11;
const BY_USER: u64 = BY_CALL | 1 << 3 | 1 << FLAGS_AT;
/// Descriptors of the LDT.
pub(super) const DESCRIPTORS: u64 = 16;

/// Where the LDT is mapped while it is.
pub(super) static LDT: AtomicU64 = AtomicU64::new(0);
/// Rounds of those that keep; returns that were refused, and that were not.
pub(super) static ROUNDS: AtomicU64 = AtomicU64::new(0);
pub(super) static REFUSED: AtomicU64 = AtomicU64::new(0);
pub(super) static LANDED: AtomicU64 = AtomicU64::new(0);
/// How often a vCPU took itself down.
pub(super) static DOWNS: AtomicU64 = AtomicU64::new(0);
/// What was wrong at first: number of the vCPU, of the register, the way, what was wanted, what was found.
pub(super) static WRONG: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
pub(super) static FAILED: AtomicBool = AtomicBool::new(false);
static ENDS: AtomicBool = AtomicBool::new(false);
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Brings up all vCPUs but the first; how many there are.
pub(super) fn start() -> u32 {
    for vcpu in 1..16 {
        let Ok(pages) = Pages::zeroed(PAGES) else { return vcpu - 1 };
        let top = (pages.va() + (PAGES - 1) * PAGE_SIZE) as u64;
        core::mem::forget(pages); // the vCPU's until the domain ends
        RUNNING.fetch_add(1, Ordering::AcqRel);
        if !others::start(vcpu, top, if vcpu % 2 == 1 { keeper } else { refused }) {
            RUNNING.fetch_sub(1, Ordering::AcqRel);
            return vcpu - 1;
        }
    }
    15
}

/// Lets the vCPUs go down; `wake` brings those up that are down for a while.
pub(super) fn end(mut wake: impl FnMut()) {
    ENDS.store(true, Ordering::Release);
    while RUNNING.load(Ordering::Acquire) > 0 {
        wake();
        pvrt::hypercall::sched::yield_cpu();
    }
}

/// A vCPU that plays.
struct Player {
    vcpu: u32,
    seed: u64,
    record: *mut Record,
    /// Places at which the bases of FS, the user's GS and the kernel's GS are.
    bases: [u64; 3],
    has_instructions: bool,
}

impl Player {
    fn new(vcpu: u32) -> Self {
        let stack: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mov {}, rsp", out(reg) stack) };
        // The stack's last page is the one ahead of the record's.
        let record = (stack | 4095) + 1 + RECORD;
        call(__HYPERVISOR_STACK_SWITCH, [SS, record, 0, 0, 0]);
        let user = extended(MMUEXT_NEW_USER_BASEPTR, base(), 0);
        assert_eq!(user, 0, "new_user_baseptr");
        let mut player = Self {
            vcpu,
            seed: u64::from(vcpu) << 32 ^ pvrt::time::tsc(),
            record: record as *mut Record,
            bases: [0; 3],
            has_instructions: false,
        };
        for n in 0..PLACES {
            let place = player.place(n as u64);
            player.record().places[n] = place;
        }
        for which in 0..3 {
            player.set_base(which);
        }
        player
    }

    fn record(&mut self) -> &mut Record {
        // SAFETY: this vCPU's page, which nobody else uses.
        unsafe { &mut *self.record }
    }

    fn place(&self, n: u64) -> u64 {
        self.record as u64 + core::mem::offset_of!(Record, places) as u64 + n * 8
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.seed ^ self.seed >> 29
    }

    fn below(&mut self, count: u64) -> u64 {
        (self.random() >> 20) % count
    }

    /// Gives FS (0), the user's GS (1) or the kernel's GS (2) another base.
    fn set_base(&mut self, which: u64) {
        let n = self.below(PLACES as u64);
        let place = self.place(n);
        self.bases[which as usize] = place;
        // SAFETY: no code of this vCPU but the ways uses FS or GS; the instructions are there if CR4 has them.
        unsafe {
            match which {
                0 if self.has_instructions => asm!("wrfsbase {}", in(reg) place),
                2 if self.has_instructions => asm!("wrgsbase {}", in(reg) place),
                _ => assert_eq!(call(__HYPERVISOR_SET_SEGMENT_BASE, [which, place, 0, 0, 0]), 0, "a base"),
            }
        }
    }

    /// Loads flat selectors or none, which the bases do not outlive.
    fn load_selectors(&mut self) {
        let n = self.random() >> 13;
        let [ds, fs, gs] = [0, 1, 2].map(|bit| if n >> bit & 1 == 0 { 0 } else { SS as u32 });
        // SAFETY: as in `set_base`; in 64-bit mode any data segment will do.
        unsafe {
            asm!("mov ds, {0:e}", "mov es, {0:e}", "mov fs, {1:e}", "mov gs, {2:e}", in(reg) ds, in(reg) fs, in(reg) gs)
        };
        self.set_base(0);
        self.set_base(2);
    }

    fn set_instructions(&mut self, on: bool) {
        let cr4: u64;
        // SAFETY: CR4 of this vCPU, whose other bits stay.
        unsafe { asm!("mov {}, cr4", out(reg) cr4) };
        let wanted = if on { cr4 | CR4_FSGSBASE } else { cr4 & !CR4_FSGSBASE };
        // SAFETY: as above; the processor has the instructions.
        unsafe { asm!("mov cr4, {}", in(reg) wanted) };
        self.has_instructions = on;
    }

    /// Fills all registers by chance, and goes one of the ways.
    fn play(&mut self, way: unsafe extern "C" fn()) {
        let mut wanted = [0; 16].map(|_: u64| self.random());
        wanted[FLAGS_AT] = wanted[FLAGS_AT] & FLAGS | 0x202;
        let record = self.record();
        record.wanted = wanted;
        record.way = way as *const () as u64;
    }

    fn go(&mut self) {
        self.record().stray = 0;
        // SAFETY: the record's way comes back, and keeps what a function keeps.
        unsafe { keepers_play(self.record) };
    }

    fn wrong(&self, which: usize, wanted: u64, got: u64) {
        if FAILED.swap(true, Ordering::AcqRel) {
            return;
        }
        // SAFETY: this vCPU's page.
        let way = unsafe { (*self.record).way };
        let all = [self.vcpu.into(), which as u64, way, wanted, got];
        WRONG.iter().zip(all).for_each(|(word, value)| word.store(value, Ordering::Release));
    }

    /// Holds what was found against what was wanted, but for the registers of `changed`.
    fn check(&mut self, changed: u64) {
        let record = self.record();
        let (wanted, got, stray) = (record.wanted, record.got, record.stray);
        for n in (0..16).filter(|n| changed >> n & 1 == 0) {
            let mask = if n == FLAGS_AT { FLAGS } else { u64::MAX };
            if wanted[n] & mask != got[n] & mask {
                self.wrong(n, wanted[n], got[n]);
            }
        }
        if stray != 0 {
            self.wrong(20, 0, stray);
        }
    }

    fn check_rest(&mut self) {
        let record = self.record();
        let bases = record.bases;
        for (n, which) in [(0, 0), (1, 2)] {
            if bases[n] != self.bases[which] {
                self.wrong(18 + n, self.bases[which], bases[n]);
            }
        }
    }

    /// One round of those that keep.
    fn keep(&mut self) {
        match self.below(16) {
            0 => self.load_selectors(),
            1..=4 => {
                let which = self.below(3);
                self.set_base(which);
            }
            _ => {}
        }
        let spins = self.random() >> 40 & if self.below(64) == 0 { 0xf_ffff } else { 0xff };
        let changed = match self.below(12) {
            0 | 1 => self.then(keepers_spin, |wanted, _| wanted[RCX] = spins, 1 << RCX),
            2 => self.then(keepers_call, |wanted, _| wanted[RAX] = __HYPERVISOR_XEN_VERSION.into(), BY_CALL),
            3 => self.then(keepers_call, |wanted, _| [wanted[RAX], wanted[5]] = [29, 0], BY_CALL),
            4 => {
                DOWNS.fetch_add(1, Ordering::Relaxed);
                let [op, down] = [__HYPERVISOR_VCPU_OP, VCPUOP_DOWN].map(u64::from);
                self.then(
                    keepers_call,
                    |wanted, vcpu| [wanted[RAX], wanted[5], wanted[4]] = [op, down, vcpu],
                    BY_CALL,
                )
            }
            5 => self.then(keepers_undefined, |_, _| {}, 0),
            6 => self.then(keepers_breakpoint, |_, _| {}, 0),
            7 => self.then(keepers_fault, |_, _| {}, 0),
            8 => self.then(keepers_protection, |_, _| {}, 0),
            9 => self.then(keepers_cpuid, |wanted, _| wanted[RAX] = 0, BY_CPUID),
            _ => return self.visit_user_mode(spins),
        };
        self.check(changed);
        self.check_rest();
    }

    fn then(
        &mut self,
        way: unsafe extern "C" fn(),
        change: impl Fn(&mut [u64; 16], u64),
        changed: u64,
    ) -> u64 {
        self.play(way);
        let vcpu = self.vcpu.into();
        change(&mut self.record().wanted, vcpu);
        self.go();
        changed
    }

    fn visit_user_mode(&mut self, spins: u64) {
        self.play(keepers_iret);
        let stack = self.random();
        let user = self.bases;
        let record = self.record();
        let flags = record.wanted[FLAGS_AT];
        record.iret = [
            record.wanted[RAX],
            record.wanted[R11],
            spins,
            0,
            keepers_user as *const () as u64,
            USER_CS,
            flags,
            stack,
            SS,
        ];
        self.go();
        self.check(BY_USER);
        self.check_rest();
        let got = self.record().user;
        for (n, (wanted, got)) in
            [(user[0], got[0]), (user[1], got[1]), (flags & FLAGS, got[2] & FLAGS)].into_iter().enumerate()
        {
            if wanted != got {
                self.wrong(24 + n, wanted, got);
            }
        }
    }

    /// Loads a selector that may be bad by now.
    fn load_local(&mut self) {
        let selector = (self.below(DESCRIPTORS) << 3 | 7) as u32;
        self.play(keepers_load);
        self.record().wanted[RAX] = selector.into();
        self.record().vector = u64::MAX;
        self.go();
        let was_loaded = self.record().vector == u64::MAX;
        self.check(if was_loaded { 0 } else { 1 << FLAGS_AT });
    }

    /// Returns to a place, a segment, a stack that may all be impossible: whatever comes of that, all registers are what the frame
    /// of the return says.
    fn refuse(&mut self) {
        let is_local = self.below(2) == 0;
        let local = self.below(DESCRIPTORS) << 3 | 4;
        let any = self.random();
        let cs = match self.below(8) {
            0 => KERNEL_CS,
            1 => USER_CS,
            2 => 0xe023,
            3 => [0, 0xe008, 0xe010, 0xe038, 0xe040, 0xfff8, 0xffff, 0xe02b][any as usize >> 9 & 7],
            4 => any >> 17 & 0xffff,
            _ => local,
        };
        // In kernel mode nothing but 64-bit code has a stack on which the handler's frame can be.
        let cs = if cs == KERNEL_CS { cs } else { cs | 3 };
        let ss = match self.below(4) {
            0 => SS,
            1 => [0, 0xe033, 0xe010, 0xe018, 0xe040, 0xfff8, 3, 0xe023][any as usize >> 33 & 7],
            _ if is_local => self.below(DESCRIPTORS) << 3 | 7,
            _ => any >> 40 & 0xffff,
        };
        let landing = keepers_landing as *const () as u64;
        let rip =
            [landing, landing, 1 << 47, 1 << 63, u64::MAX, 0xffff_8300_0000_0000, any, 0x7fff_ffff_ffff]
                [any as usize >> 50 & 7];
        let flags = any.rotate_left(20) | if any >> 59 & 3 == 0 { 0 } else { 0x200 };
        let flags = if any >> 61 & 3 == 0 { flags } else { flags & !0x100 };
        self.play(keepers_iret);
        let stack = if cs == KERNEL_CS { self.record as u64 } else { any.rotate_right(7) };
        let record = self.record();
        let [rax, r11, rcx] = [RAX, R11, RCX].map(|n| record.wanted[n]);
        record.iret = [rax, r11, rcx, 0, rip, cs, flags, stack, ss];
        self.go();
        self.check(1 << FLAGS_AT);
        let record = self.record();
        let (vector, frame) = (record.vector, record.frame);
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let at = usize::from(has_error);
        let [got_rip, got_cs, got_rsp, got_ss] =
            [frame[at], frame[at + 1] & 0xffff, frame[at + 3], frame[at + 4]];
        let is_long = cs | 3 == USER_CS;
        if got_cs != cs {
            self.wrong(30, cs, got_cs);
        }
        if is_long && vector != 1 && got_rip != rip {
            self.wrong(31, rip, got_rip);
        }
        if is_long && (got_rsp, got_ss & !3) != (stack, ss & 0xfffc) {
            self.wrong(32, stack, got_rsp);
        }
        let count = if vector == 6 || vector == 1 { &LANDED } else { &REFUSED };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn has_base_instructions() -> bool {
    let features: u64;
    // SAFETY: CPUID, as the hypervisor answers; rbx is put back.
    unsafe {
        asm!("push rbx", ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e", "cpuid", "mov {}, rbx", "pop rbx", out(reg) features,
            inout("eax") 7 => _, inout("ecx") 0 => _, out("edx") _);
    }
    features & 1 != 0
}

fn callbacks(failsafe: unsafe extern "C" fn(), nmi: unsafe extern "C" fn(), syscall: unsafe extern "C" fn()) {
    for (kind, entry) in
        [(CALLBACKTYPE_FAILSAFE, failsafe), (CALLBACKTYPE_NMI, nmi), (CALLBACKTYPE_SYSCALL, syscall)]
    {
        let address = entry as *const () as u64;
        let mut callback = CallbackRegister { r#type: kind, address, ..CallbackRegister::default() };
        op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut callback);
    }
}

fn gate(vector: u8, address: u64) -> TrapInfo {
    TrapInfo {
        vector,
        flags: if vector == 3 { 3 } else { 0 },
        cs: FLAT_KERNEL_CS,
        address,
        ..TrapInfo::default()
    }
}

fn leave(vcpu: u32) -> ! {
    RUNNING.fetch_sub(1, Ordering::AcqRel);
    others::go_down(vcpu)
}

extern "C" fn keeper(vcpu: u32) -> ! {
    let mut player = Player::new(vcpu);
    let stray = keepers_stray as *const () as u64;
    let mut table = [0; 20].map(|_: u8| TrapInfo::default());
    for (n, info) in table.iter_mut().take(19).enumerate() {
        *info = gate(n as u8 + u8::from(n >= 2), stray);
    }
    for info in &mut table[..19] {
        let handler = match info.vector {
            3 => keepers_on_breakpoint,
            6 => keepers_on_undefined,
            13 => keepers_on_protection,
            14 => keepers_on_fault,
            _ => continue,
        };
        info.address = handler as *const () as u64;
    }
    call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]);
    callbacks(keepers_failsafe, keepers_nmi, keepers_syscall);
    let has_instructions = has_base_instructions();
    let mut round = 0u64;
    while !ENDS.load(Ordering::Acquire) && !FAILED.load(Ordering::Acquire) {
        if has_instructions && round.is_multiple_of(512) {
            player.set_instructions(round / 512 % 2 == u64::from(vcpu / 2 % 2));
        }
        player.keep();
        round += 1;
        ROUNDS.fetch_add(1, Ordering::Relaxed);
    }
    leave(vcpu)
}

extern "C" fn refused(vcpu: u32) -> ! {
    let mut player = Player::new(vcpu);
    let end = |vector: u8| gate(vector, keepers_ends as *const () as u64 + u64::from(vector) * 16);
    let mut table = [0; 32].map(|_: u8| TrapInfo::default());
    for (n, info) in table.iter_mut().take(31).enumerate() {
        *info = end(n as u8 + u8::from(n >= 2));
    }
    call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]);
    callbacks(keepers_failsafe, keepers_nmi, keepers_stray);
    while !ENDS.load(Ordering::Acquire) && !FAILED.load(Ordering::Acquire) {
        if player.below(32) == 0 {
            extended(MMUEXT_SET_LDT, LDT.load(Ordering::Acquire), DESCRIPTORS);
        }
        if player.below(4) == 0 {
            player.load_local();
        }
        player.refuse();
    }
    leave(vcpu)
}
