//! Several vCPUs, each of which holds all its registers against what they were, on all ways into the hypervisor and back.
//!
//! vCPUs of odd numbers fill their registers, flags and bases of segments by chance, go into the hypervisor by a call, an exception,
//! an emulated instruction, an interrupt, user mode, or a time of being down, and look at everything behind. vCPUs of even numbers
//! return to segments, stacks and addresses to which no return is possible, and look at what the handler finds. Meanwhile the first
//! vCPU changes the descriptors and the mapping of the LDT that they use, and brings up who is down.
//! `case=keepers seconds=N` on the command line; NMIs come from the toolstack.
#![allow(unsafe_code)] // counts of the handlers

mod players;
mod ways;

use core::sync::atomic::Ordering;

use pvrt::space::*;
use pvrt::{BootInfo, println, time};
use ring_abi::hypercall::*;
use ring_abi::mmu::UVMF_INVLPG;
use ring_abi::vcpu::VCPUOP_UP;

use self::players::*;
use crate::others;

/// Descriptors of ring 3: code of 64, 32 and 16 bits, code that is not present, that cannot be read, that is conforming; data of 32
/// and 16 bits, with a base, that is read-only, that grows down, that is not present, of no length; nothing.
const KINDS: [u64; 14] = [
    0x00af_fb00_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x008f_fb00_0000_ffff,
    0x00af_7b00_0000_ffff,
    0x00af_f900_0000_ffff,
    0x00af_ff00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x008f_f300_0000_ffff,
    0x12cf_f334_5678_ffff,
    0x00cf_f100_0000_ffff,
    0x00cf_f700_0000_0fff,
    0x00cf_7300_0000_ffff,
    0x0040_f300_0000_0000,
    0,
];

/// Runs the game; `false`: a register was not what it was.
pub(crate) async fn run(boot: BootInfo) -> bool {
    let seconds = boot.option("seconds").and_then(|text| text.parse::<u64>().ok()).unwrap_or(5);
    let scratch = Scratch::new(1);
    let (at, mfn) = (scratch.at(0), scratch.mfn(0));
    scratch.protect(0);
    map(at, mfn << 12 | RO);
    let mut seed = time::tsc();
    let mut random = move || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        seed >> 33
    };
    let describe =
        |n: u64, kind: u64| call(__HYPERVISOR_UPDATE_DESCRIPTOR, [(mfn << 12) + n * 8, kind, 0, 0, 0]);
    for n in 0..DESCRIPTORS {
        let got = describe(n, KINDS[n as usize % KINDS.len()]);
        assert_eq!(got, 0, "descriptor {n}");
    }
    LDT.store(at, Ordering::Release);
    let others = players::start();
    let wake = || {
        for vcpu in 1..=others {
            others::operate(VCPUOP_UP, vcpu, 0);
        }
    };
    let end = time::now_ns() + seconds * 1_000_000_000;
    let mut turns = 0u64;
    while time::now_ns() < end && !FAILED.load(Ordering::Acquire) {
        wake();
        let n = random();
        match n % 8 {
            0..=3 => {
                describe(n >> 3 & (DESCRIPTORS - 1), KINDS[(n >> 8) as usize % KINDS.len()]);
            }
            4 => {
                call(__HYPERVISOR_UPDATE_VA_MAPPING, [at, 0, if n & 8 == 0 { UVMF_INVLPG } else { 0 }, 0, 0]);
            }
            _ => {
                map(at, mfn << 12 | RO);
            }
        }
        turns += 1;
        // The console and the timers of this kernel get their turn.
        if turns.is_multiple_of(16) {
            time::sleep(1_000_000).await;
        }
    }
    players::end(wake);
    let count = |word: &core::sync::atomic::AtomicU64| word.load(Ordering::Acquire);
    // SAFETY: words of this image.
    let [nmis, failsafes] = unsafe { [count(&ways::keepers_nmis), count(&ways::keepers_failsafes)] };
    println!(
        "keepers: {others} other vCPUs, {turns} turns, {} rounds, {} times down",
        count(&ROUNDS),
        count(&DOWNS)
    );
    println!(
        "keepers: {} returns refused, {} landed, {nmis} NMIs, {failsafes} failed loads",
        count(&REFUSED),
        count(&LANDED)
    );
    let has_failed = FAILED.load(Ordering::Acquire);
    if has_failed {
        let [vcpu, which, way, wanted, got] = WRONG.each_ref().map(count);
        println!("keepers: FAIL vCPU {vcpu}, register {which}, way {way:#x}: {got:#x}, not {wanted:#x}");
    }
    // vCPUs that are down may yet be brought up by no one, but the hypervisor still has their LDT.
    core::mem::forget(scratch);
    !has_failed
}
