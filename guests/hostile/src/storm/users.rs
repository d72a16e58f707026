//! vCPUs that use two addresses without end, whatever the first vCPU does to what is mapped there, and vCPUs that call the
//! hypervisor about one page at the same time.
//!
//! The probe's state is one for all vCPUs, so accesses that may trap have a handler of their own here, which only needs the stack of
//! the vCPU that trapped.
#![allow(unsafe_code)] // accesses that may trap, in assembly

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pvrt::mem::Pages;
use pvrt::space::*;
use ring_abi::callback::*;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;
use ring_abi::mmu::*;
use ring_abi::segment::FLAT_KERNEL_CS;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use crate::others;

const STACK_PAGES: usize = 4;
/// Words of the page that the users write: every word of this many.
const STEP: u64 = 40;
/// How often a vCPU does what it does before it lets others run.
const ROUNDS_IN_A_ROW: u64 = 4096;
const CALLS_IN_A_ROW: u64 = 64;
/// A selector of the LDT's first descriptor.
const LOCAL: u32 = 7;

global_asm!(
    r#"
    .section .text.storm, "ax"
    .balign 16
    # rdi = address: rax = the word there, rdx = 1, or 0 after a trap.
storm_read:
    mov rax, [rdi]
    mov edx, 1
    ret
    # rdi = address, rsi = word.
storm_write:
    mov [rdi], rsi
    mov edx, 1
    ret
    # edi = selector.
storm_load:
    mov es, edi
    mov edx, 1
    ret
storm_end:
    xor edx, edx
    ret

    # On the stack: rcx, r11, error code, rip, cs, flags, rsp, ss. Only the three functions above trap. The cs there
    # is that of ring 0, in which this kernel does not run.
storm_trap:
    pop rcx
    pop r11
    add rsp, 8
    push rax
    lea rax, [rip + storm_end]
    mov [rsp + 8], rax
    pop rax
    or qword ptr [rsp + 8], 3
    iretq

    # A segment could not be loaded again, since the LDT is another now. On the stack: rcx, r11, ds, es, fs, gs, then as above. The
    # hypervisor has loaded null.
storm_failsafe:
    pop rcx
    pop r11
    lea rsp, [rsp + 32]
    or qword ptr [rsp + 8], 3
    iretq
    .text
    "#
);

unsafe extern "C" {
    fn storm_read();
    fn storm_write();
    fn storm_load();
    fn storm_trap();
    fn storm_failsafe();
}

/// Calls one of the functions above: what came of it, if nothing trapped.
fn guarded(function: unsafe extern "C" fn(), first: u64, second: u64) -> Option<u64> {
    let (value, done): (u64, u64);
    // SAFETY: the function writes no other memory than what the caller names: memory of this domain that is set apart for that, or
    // an address at which nothing is mapped, for which the handler comes back.
    unsafe {
        core::arch::asm!("call {}", in(reg) function, in("rdi") first, in("rsi") second, out("rax") value,
            out("rdx") done, clobber_abi("C"));
    }
    (done != 0).then_some(value)
}

/// The addresses that the users use; 0: none. At the first they must never see another domain's word.
pub(super) static OWN: AtomicU64 = AtomicU64::new(0);
pub(super) static BORROWED: AtomicU64 = AtomicU64::new(0);
/// The word that the users write.
pub(super) static WORD: AtomicU64 = AtomicU64::new(0);
/// The address that the callers map their page at, its frame, and the address behind the LDT that they use.
pub(super) static CALLED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Another domain's word that was read where this domain's memory is.
pub(super) static FOREIGN_WORD: AtomicU64 = AtomicU64::new(0);
/// How often the users have been round, what trapped, and calls that succeeded and were refused.
pub(super) static ROUNDS: AtomicU64 = AtomicU64::new(0);
pub(super) static TRAPPED: AtomicU64 = AtomicU64::new(0);
pub(super) static CALLS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static ENDS: AtomicBool = AtomicBool::new(false);
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// Brings up all vCPUs but the first; how many there are.
pub(super) fn start() -> u32 {
    let mut count = 0;
    for vcpu in 1..8 {
        let Ok(stack) = Pages::zeroed(STACK_PAGES) else { break };
        let top = (stack.va() + STACK_PAGES * PAGE_SIZE) as u64;
        core::mem::forget(stack); // the vCPU's until the domain ends
        RUNNING.fetch_add(1, Ordering::AcqRel);
        let entry = if vcpu == 1 { user } else { caller };
        if !others::start(vcpu, top, entry) {
            RUNNING.fetch_sub(1, Ordering::AcqRel);
            break;
        }
        count += 1;
    }
    count
}

/// Lets the vCPUs go down.
pub(super) fn end() {
    ENDS.store(true, Ordering::Release);
    while RUNNING.load(Ordering::Acquire) > 0 {
        pvrt::hypercall::sched::yield_cpu();
    }
}

fn catch_traps() {
    let info = |vector| TrapInfo {
        vector,
        flags: 0,
        cs: FLAT_KERNEL_CS,
        address: storm_trap as *const () as u64,
        ..TrapInfo::default()
    };
    // Segment not present, general protection, page fault: all with an error code.
    let table = [info(11), info(13), info(14), TrapInfo::default()];
    call(__HYPERVISOR_SET_TRAP_TABLE, [table.as_ptr() as u64, 0, 0, 0, 0]);
    let address = storm_failsafe as *const () as u64;
    let mut failsafe =
        CallbackRegister { r#type: CALLBACKTYPE_FAILSAFE, address, ..CallbackRegister::default() };
    op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut failsafe);
}

fn leave(vcpu: u32) -> ! {
    RUNNING.fetch_sub(1, Ordering::AcqRel);
    others::go_down(vcpu)
}

/// Writes to the addresses, and reads what is there.
extern "C" fn user(vcpu: u32) -> ! {
    catch_traps();
    let mut place = 0;
    while !ENDS.load(Ordering::Acquire) {
        place = (place + STEP) % PAGE_SIZE as u64;
        let word = WORD.load(Ordering::Relaxed);
        for (at, is_own) in [(OWN.load(Ordering::Acquire), true), (BORROWED.load(Ordering::Acquire), false)] {
            if at == 0 {
                continue;
            }
            let read = guarded(storm_read, at + place, 0);
            if let Some(seen) = read.filter(|seen| is_own && super::is_anothers(*seen)) {
                FOREIGN_WORD.store(seen, Ordering::Release);
            }
            if guarded(storm_write, at + place, word).is_none() {
                TRAPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        let round = ROUNDS.fetch_add(1, Ordering::Release);
        if round.is_multiple_of(ROUNDS_IN_A_ROW) {
            pvrt::hypercall::sched::yield_cpu();
        }
    }
    leave(vcpu)
}

/// Calls the hypervisor about one page, in every order, as the other callers do at the same time.
extern "C" fn caller(vcpu: u32) -> ! {
    const SELF: u64 = DOMID_SELF as u64;
    catch_traps();
    let mut seed = u64::from(vcpu).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ pvrt::time::tsc();
    while !ENDS.load(Ordering::Acquire) {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let [at, mfn] = [0, 1].map(|n| CALLED[n].load(Ordering::Acquire));
        let level = (seed >> 40) as u32 & 3;
        let list = [mfn];
        let result = match seed >> 60 {
            0 | 1 => call(__HYPERVISOR_UPDATE_VA_MAPPING, [at, mfn << 12 | RW, 0, 0, 0]),
            2 | 3 => call(__HYPERVISOR_UPDATE_VA_MAPPING, [at, mfn << 12 | RO, 0, 0, 0]),
            4 | 5 => call(__HYPERVISOR_UPDATE_VA_MAPPING, [at, 0, 0, 0, 0]),
            6 => extended(MMUEXT_PIN_L1_TABLE + level, mfn, 0),
            7 => extended(MMUEXT_UNPIN_TABLE, mfn, 0),
            8 => call(__HYPERVISOR_SET_GDT, [(&raw const list) as u64, 512, 0, 0, 0]),
            9 => call(__HYPERVISOR_SET_GDT, [0; 5]),
            10 => extended(MMUEXT_SET_LDT, at, 512),
            11 => i64::from(guarded(storm_load, LOCAL.into(), 0).is_some()) - 1,
            12 => extended(MMUEXT_SET_LDT, 0, 0),
            13 => extended(MMUEXT_CLEAR_PAGE, mfn, 0),
            14 => i64::from(guarded(storm_write, at, super::DESCRIPTOR).is_some()) - 1,
            _ => extended_as(MMUEXT_TLB_FLUSH_ALL, 0, 0, SELF),
        };
        let calls = CALLS[usize::from(result < 0)].fetch_add(1, Ordering::Relaxed);
        if calls.is_multiple_of(CALLS_IN_A_ROW) {
            pvrt::hypercall::sched::yield_cpu();
        }
    }
    leave(vcpu)
}
