#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `bench`: times each primitive operation of the PV ABI by the TSC.
//!
//! Prints `bench NAME TICKS ticks-per-op N ops` for each, and at last `bench done`. Under `-icount shift=0` a tick is
//! an executed instruction. Boots as domU or as dom0, on any hypervisor with the ABI. On its command line `ops=N`
//! sets how often each is done, `only=NAME` picks one, and `debug-exit=PORT` reports the end to QEMU.

extern crate alloc;

#[cfg(freestanding)]
mod asm;
#[cfg(freestanding)]
mod measure;
#[cfg(freestanding)]
mod operations;

#[cfg(freestanding)]
pvrt::kernel!(async start);

/// Exit code for isa-debug-exit: everything succeeded.
#[cfg(freestanding)]
const DEBUG_EXIT_OK: u8 = 0x10;

#[cfg(freestanding)]
async fn start(boot: pvrt::BootInfo) {
    let ops = boot.option("ops").and_then(|text| text.parse().ok()).unwrap_or(1000);
    let bench = measure::Bench::new(ops, boot.option("only"));
    operations::run(&bench);
    pvrt::install_handlers();
    pvrt::println!("bench done");
    pvrt::console::flush().await;
    if let Some(port) = pvrt::boot::debug_exit_port() {
        pvrt::pio::write_u8(port, DEBUG_EXIT_OK);
    }
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("bench is a freestanding image: build it with `cargo xtask build`");
}
