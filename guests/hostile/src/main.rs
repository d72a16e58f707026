#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `hostile`: asks for everything that a guest must not have, and checks that the hypervisor refuses with
//! the documented error and that nothing else has changed.
//!
//! Prints `hostile: CASE ok` or `hostile: FAIL CASE: what`, and at last `hostile: PASS n`. On its command line
//! `case=GROUP` runs one group; `case=NAME` of a deadly case does what must end the domain: it prints
//! `hostile: NAME must die` and, should it survive, `hostile: FAIL NAME`; `case=NAME` of an attack keeps dom0 busy for as
//! long as the domain lives: it prints `hostile: NAME from now on`; `case=scatter`, alone since it takes all memory, leaves no
//! free frames in a row to the hypervisor's heap; `case=storm` uses on all vCPUs what one of them takes away (`storm/mod.rs`); `case=keepers` holds all registers against what they were (`keepers/mod.rs`); `case=stretch` does at length what the hypervisor must do in pieces, `case=stretch-control` what it
//! must so do for a control domain, `case=stretch-pairs` what two vCPUs do so at the same time, `case=stretch-hammer` the same without end, `case=stretch-herd` what it must so do for 128 vCPUs, best beside a guest with
//! `case=stretch-herd-beside`. Boots as domU or as dom0, on any hypervisor with the ABI.

extern crate alloc;

#[cfg(freestanding)]
mod attacks;
#[cfg(freestanding)]
mod block;
#[cfg(freestanding)]
mod calls;
#[cfg(freestanding)]
mod deadly;
#[cfg(freestanding)]
mod descriptors;
#[cfg(freestanding)]
mod events;
#[cfg(freestanding)]
mod fifo;
#[cfg(freestanding)]
mod grants;
#[cfg(freestanding)]
mod ground;
#[cfg(freestanding)]
mod herd;
#[cfg(freestanding)]
mod keepers;
#[cfg(freestanding)]
mod memory;
#[cfg(freestanding)]
mod others;
#[cfg(freestanding)]
mod report;
#[cfg(freestanding)]
mod scatter;
#[cfg(freestanding)]
mod stale;
#[cfg(freestanding)]
mod store;
#[cfg(freestanding)]
mod storm;
#[cfg(freestanding)]
mod stretch;
#[cfg(freestanding)]
mod tables;
#[cfg(freestanding)]
mod traps;
#[cfg(freestanding)]
mod vcpus;
#[cfg(freestanding)]
mod wide;
#[cfg(freestanding)]
mod wild;

#[cfg(freestanding)]
pvrt::kernel!(async guest::start);

#[cfg(freestanding)]
mod guest {
    use frontends::xenbus::Xenstore;
    use pvrt::event::Port;
    use pvrt::hypercall::sched;
    use pvrt::{BootInfo, println, probe};
    use ring_abi::sched::SHUTDOWN_CRASH;

    use crate::report::Report;
    use crate::{
        attacks, block, calls, deadly, descriptors, events, fifo, grants, keepers, memory, scatter, stale,
        store, storm, stretch, tables, traps, vcpus, wide, wild,
    };

    /// Exit codes for isa-debug-exit: success and failure.
    const DEBUG_EXIT_OK: u8 = 0x10;
    const DEBUG_EXIT_FAILED: u8 = 0x11;

    /// A group of cases: its name, and what runs it.
    type Group = (&'static str, fn(&mut Report));

    /// Runs the case `scatter`, which prints its own result.
    async fn scatter_alone() {
        let passed = scatter::run();
        println!("hostile: {}scatter{}", if passed { "" } else { "FAIL " }, if passed { " ok" } else { "" });
        pvrt::console::flush().await;
        if !passed {
            sched::shutdown(SHUTDOWN_CRASH);
        }
    }

    /// Runs everything; a failure ends the domain as crashed, so that the toolstack sees it.
    pub(crate) async fn start(boot: BootInfo) {
        probe::install();
        let case = boot.option("case");
        if let Some(case) = case
            && let Some(act) = deadly::find(case)
        {
            println!("hostile: {case} must die");
            pvrt::console::flush().await;
            act();
            println!("hostile: FAIL {case}: survived");
            pvrt::console::flush().await;
            sched::shutdown(SHUTDOWN_CRASH);
        }
        if let Some(attack) = attacks::find(case) {
            attacks::run(attack, boot).await;
        }
        if stretch::run(case).await {
            pvrt::console::flush().await;
            if let Some(port) = pvrt::boot::debug_exit_port() {
                pvrt::pio::write_u8(port, DEBUG_EXIT_OK);
            }
            return;
        }
        if let Some(name @ ("storm" | "keepers")) = case {
            let passed = if name == "storm" { storm::run(boot).await } else { keepers::run(boot).await };
            println!("{name}: {}", if passed { "PASS" } else { "FAIL" });
            pvrt::console::flush().await;
            if !passed {
                sched::shutdown(SHUTDOWN_CRASH);
            }
            return;
        }
        if case == Some("scatter") {
            return scatter_alone().await;
        }
        let mut report = Report::new(boot.initial_domain);
        let groups: [Group; 13] = [
            ("calls", calls::run),
            ("tables", tables::run),
            ("descriptors", descriptors::run),
            ("traps", traps::run),
            ("events", events::run),
            ("fifo", fifo::run),
            ("grants", grants::run),
            ("wide", wide::run),
            ("memory", memory::run),
            ("stale", stale::run),
            ("vcpus", vcpus::run),
            ("wild", wild::run),
            // The tables' cases run again, to see that the cases in between have broken nothing.
            ("tables", tables::run),
        ];
        for (name, run) in groups {
            if case.is_none_or(|case| case == name) {
                report.group(name);
                run(&mut report);
                pvrt::console::flush().await;
            }
        }
        if let Some(info) = boot.store
            && let Ok(store) = Xenstore::connect(info.page, Port::adopt(info.port))
        {
            if case.is_none_or(|case| case == "block") {
                report.group("block");
                block::run(&mut report, &store).await;
            }
            if case.is_none_or(|case| case == "store") {
                report.group("store");
                store::run(&mut report, &store).await;
                // This case comes last, since it ends the connection.
                store::break_ring(&mut report, info.page, info.port).await;
            }
        }
        let passed = report.end();
        pvrt::console::flush().await;
        if let Some(port) = pvrt::boot::debug_exit_port() {
            pvrt::pio::write_u8(port, if passed { DEBUG_EXIT_OK } else { DEBUG_EXIT_FAILED });
        }
        if !passed {
            sched::shutdown(SHUTDOWN_CRASH);
        }
    }
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("hostile is a freestanding image: build it with `cargo xtask build`");
}
