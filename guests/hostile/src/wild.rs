//! Random hypercalls with nearly valid arguments, whose effects must stay within this domain.

use alloc::vec::Vec;

use ring_abi::hypercall::*;

use crate::ground::{self, probe, seed, space::*};
use crate::report::Report;

/// Calls made.
const CALLS: u32 = 30_000;
/// Pages that the calls may change in any way.
const PAGES: usize = 8;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next() as usize % from.len()]
    }
}

/// Whether a call could rightly end, stop or break this kernel.
fn is_own_harm(number: u32, args: &[u64; 5]) -> bool {
    let command = args[0] as u32;
    match number {
        // Trap handlers, the stack, callbacks, contexts: a random one would break this kernel. `iret` would
        // not return.
        __HYPERVISOR_SET_TRAP_TABLE
        | __HYPERVISOR_SET_CALLBACKS
        | __HYPERVISOR_CALLBACK_OP
        | __HYPERVISOR_IRET
        | __HYPERVISOR_SET_SEGMENT_BASE
        | __HYPERVISOR_SET_DEBUGREG => true,
        // block, shutdown, poll, watchdog.
        __HYPERVISOR_SCHED_OP => matches!(command, 1..=6),
        // initialise, up, down, areas, vcpu_info.
        __HYPERVISOR_VCPU_OP => matches!(command, 0..=2 | 5 | 10 | 13),
        // close, bind_vcpu, reset; FIFO.
        __HYPERVISOR_EVENT_CHANNEL_OP => matches!(command, 3 | 8 | 10..=13),
        // Grant version and references of this kernel's table.
        __HYPERVISOR_GRANT_TABLE_OP => matches!(command, 8 | 11),
        __HYPERVISOR_VM_ASSIST => true,
        // A multicall of random calls would contain the calls above.
        __HYPERVISOR_MULTICALL => true,
        __HYPERVISOR_CONSOLE_IO => true,
        _ => false,
    }
}

/// Numbers that some call may take for an address, a frame, a command or a length.
fn values(scratch: &Scratch) -> Vec<u64> {
    let [l4, l3, l2, l1] = tables(scratch.at(0));
    let mut pool: Vec<u64> = alloc::vec![
        0,
        1,
        2,
        8,
        63,
        64,
        511,
        512,
        4095,
        4096,
        0x7ff0,
        0x7ff1,
        0x7ff2,
        0x7ff4,
        M2P,
        0xffff_8300_0000_0000,
        1 << 63,
        0x8000_0000_0000,
        u64::MAX,
        u64::MAX - 7,
        1 << 31,
        1 << 32,
        0x8000_0001,
        l4 << 12,
        l3 << 12,
        l1,
        l2,
    ];
    for n in 0..PAGES {
        pool.extend([scratch.at(n), scratch.at(n) + 4090, scratch.mfn(n), scratch.mfn(n) << 12 | RW]);
    }
    pool.extend(foreign_frames().into_iter().take(8));
    pool
}

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    if report.privileged {
        // Random calls of the control domain could break the machine.
        return;
    }
    let scratch = Scratch::new(PAGES);
    for n in 0..PAGES / 2 {
        map(scratch.at(n), scratch.mfn(n) << 12 | RW);
    }
    let pool = values(&scratch);
    // Pages that calls take as arguments are filled with random values of the same kind.
    let mut random = Random(0x4d4b_1234_5678_9abc ^ seed());
    let seed = random.0;
    let mut done = [0u32; 64];
    for _ in 0..CALLS {
        for word in 0..24 {
            let value = match random.next() % 3 {
                0 => random.pick(&pool),
                1 => random.next() % 40,
                _ => random.next() >> (random.next() % 64),
            };
            let _ = probe::write(scratch.at(0) + word * 8, value);
        }
        let number = (random.next() % 58) as u32;
        let mut args = [0u64; 5];
        for arg in &mut args {
            *arg = match random.next() % 4 {
                0 => random.pick(&pool),
                1 => scratch.at(0) + random.next() % 160,
                2 => random.next() % 40,
                _ => random.next() >> (random.next() % 64),
            };
        }
        if is_own_harm(number, &args) || ground::is_own_harm(number, &args, &scratch) {
            continue;
        }
        let result = call(number, args);
        if result >= 0 {
            done[number as usize] += 1;
        }
        map(scratch.at(0), scratch.mfn(0) << 12 | RW);
    }
    let alive = call(__HYPERVISOR_XEN_VERSION, [0, 0, 0, 0, 0]) > 0;
    let sum: u32 = done.iter().sum();
    report.case("random calls", alive, (seed, sum));
    // The pages may be tables or descriptors now, or gone, so they are never freed.
    core::mem::forget(scratch);
}
