#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `bench`: times each primitive operation of the PV ABI by the TSC.
//!
//! Prints `bench NAME TICKS ticks-per-op N ops` for each, and at last `bench done`. Under `-icount shift=0` a tick is
//! an executed instruction. Boots as domU or as dom0, on any hypervisor with the ABI. On the guest's command line
//! `ops=N` sets how often each operation is done, `only=NAME` selects one, and `debug-exit=PORT` reports the end to
//! QEMU.
//!
//! Operations that need a partner are timed with `partner=N` instead: the measuring domain has two vCPUs, and domain
//! N runs this image with `echo=M`, where M is the number of the measuring domain.
//!
//! With `role=` the guest is one of several that use the machine's CPUs at the same time: see `several/mod.rs`.

extern crate alloc;

#[cfg(freestanding)]
mod asm;
#[cfg(freestanding)]
mod daemons;
#[cfg(freestanding)]
mod measure;
#[cfg(freestanding)]
mod operations;
#[cfg(freestanding)]
mod partner;
#[cfg(freestanding)]
mod polling;
#[cfg(freestanding)]
mod second;
#[cfg(freestanding)]
mod several;
#[cfg(freestanding)]
mod timers;
#[cfg(freestanding)]
mod vcpus;

#[cfg(freestanding)]
pvrt::kernel!(async start);

/// Exit code for isa-debug-exit: everything succeeded.
#[cfg(freestanding)]
const DEBUG_EXIT_OK: u8 = 0x10;

#[cfg(freestanding)]
async fn start(boot: pvrt::BootInfo) {
    let ops = boot.option("ops").and_then(|text| text.parse().ok()).unwrap_or(1000);
    let bench = measure::Bench::new(ops, boot.option("only"));
    let domain = |key| boot.option(key)?.parse().ok().map(ring_abi::types::DomId::new);
    if let Some(role) = boot.option("role") {
        several::run(boot, role).await;
    } else if domain("echo").is_some() || domain("partner").is_some() {
        if let Err(error) = with_others(boot, &bench, domain("echo"), domain("partner")).await {
            pvrt::println!("bench partner skipped: {error}");
        }
    } else {
        operations::run(&bench);
        pvrt::install_handlers();
    }
    pvrt::println!("bench done");
    pvrt::console::flush().await;
    if let Some(port) = pvrt::boot::debug_exit_port() {
        pvrt::pio::write_u8(port, DEBUG_EXIT_OK);
    }
}

/// Times the operations that need another vCPU, another domain or a daemon.
#[cfg(freestanding)]
async fn with_others(
    boot: pvrt::BootInfo,
    bench: &measure::Bench,
    client: Option<ring_abi::types::DomId>,
    server: Option<ring_abi::types::DomId>,
) -> Result<(), alloc::string::String> {
    let info = boot.store.ok_or("no xenstore")?;
    let port = pvrt::event::Port::adopt(info.port);
    let store =
        frontends::xenbus::Xenstore::connect(info.page, port).map_err(|error| alloc::format!("{error}"))?;
    if let Some(client) = client {
        partner::echo(&store, client).await?;
    }
    if let Some(server) = server {
        second::run(bench);
        daemons::run(bench, &store).await;
        partner::run(bench, &store, server).await?;
    }
    Ok(())
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("bench is a freestanding image: build it with `cargo xtask build`");
}
