#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `hello`: says who it is, checks its first disk through blkfront, and powers off.
//!
//! Words on its command line: `reads=N` also times N reads of one page, `store-reads=N` N reads of a xenstore node
//! (`store-pause=NS` with a pause before each), `awake` keeps its vCPU runnable for ever, behind all others, `busy`
//! computes all the while, `disk-reads=N` instead of the check N reads of one page with many in flight,
//! `disk-rounds=N` times; `selftest` checks the runtime first, `wait` keeps the guest until the toolstack asks it to
//! stop, `panic` makes it panic at the end. As dom0 the guest reports success or failure by isa-debug-exit
//! (`debug-exit=PORT`).

extern crate alloc;

#[cfg(freestanding)]
mod disk;
#[cfg(freestanding)]
mod selftest;

#[cfg(freestanding)]
pvrt::kernel!(async guest::start);

#[cfg(freestanding)]
mod guest {
    use crate::{disk, selftest};
    use core::hint::black_box;
    use frontends::control::shutdown_request;
    use frontends::xenbus::{Nodes, Xenstore};
    use pvrt::event::Port;
    use pvrt::executor::{spawn, yield_now};
    use pvrt::hypercall::{sched, version};
    use pvrt::time::Utc;
    use pvrt::{BootInfo, println, time};
    use ring_abi::sched::SHUTDOWN_CRASH;

    /// Exit codes for isa-debug-exit.
    const DEBUG_EXIT_OK: u8 = 0x10;
    const DEBUG_EXIT_FAILED: u8 = 0x11;

    /// Runs everything; a failure ends the domain as crashed, so that the toolstack sees it.
    pub(crate) async fn start(boot: BootInfo) {
        if boot.option("selftest").is_some()
            && let Err(error) = selftest::run(boot).await
        {
            fail(&error).await;
        }
        if let Err(error) = report(boot).await {
            fail(&error).await;
        }
        if boot.option("panic").is_some() {
            panic!("asked for on the command line");
        }
        println!("hello: goodbye");
        pvrt::console::flush().await;
        exit(DEBUG_EXIT_OK);
    }

    /// Prints what failed, and ends the domain as crashed.
    async fn fail(error: &dyn Reason) {
        println!("hello: FAILED: {error}");
        pvrt::console::flush().await;
        exit(DEBUG_EXIT_FAILED);
        sched::shutdown(SHUTDOWN_CRASH);
    }

    /// The text of a failure, which may be kept across an await.
    trait Reason: core::fmt::Display + Sync {}

    impl<T: core::fmt::Display + Sync> Reason for T {}

    /// Writes an exit code to isa-debug-exit, if the command line names its port.
    fn exit(code: u8) {
        if let Some(port) = pvrt::boot::debug_exit_port() {
            pvrt::pio::write_u8(port, code);
        }
    }

    /// Computes for ever, between this kernel's other tasks.
    async fn compute() {
        let mut word = 1u64;
        loop {
            for _ in 0..1000 {
                word = black_box(word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
            yield_now().await;
        }
    }

    /// Keeps this vCPU runnable for ever, behind all others. An emulator whose clock counts instructions skips the
    /// time up to the next timer whenever all vCPUs wait, even for the disk. This vCPU never waits, so the emulator
    /// never skips time.
    fn stay_awake() -> ! {
        loop {
            sched::yield_cpu();
        }
    }

    /// Times `count` reads of a node, one after the other, with a pause before each.
    async fn time_store(store: &Xenstore, count: u64, pause_ns: u64) -> Result<(), disk::Error> {
        let (mut sum, mut worst) = (0, 0);
        for _ in 0..count {
            if pause_ns > 0 {
                time::sleep(pause_ns).await;
            }
            let start = time::now_ns();
            store.read("name").await?;
            let took = time::now_ns() - start;
            sum += took;
            worst = worst.max(took);
        }
        let mean = sum / count.max(1);
        println!("hello: {count} reads of the store: {} us each, {} us at worst", mean / 1000, worst / 1000);
        Ok(())
    }

    async fn report(boot: BootInfo) -> Result<(), disk::Error> {
        let version = version::version().unwrap_or(0);
        let extra = version::extra_version().unwrap_or_default();
        let extra = core::str::from_utf8(&extra).unwrap_or("").trim_end_matches('\0');
        println!(
            "hello: a guest of {} KiB on version {}.{}{extra}",
            boot.nr_pages * 4,
            version >> 16,
            version & 0xffff
        );
        println!("hello: clock {}, system time {} ns", Utc(time::wall_ns()), time::now_ns());
        if !boot.command_line.is_empty() {
            println!("hello: command line {:?}", boot.command_line);
        }
        if boot.option("busy").is_some() {
            spawn(compute());
        }
        if boot.option("awake").is_some() {
            stay_awake();
        }
        let Some(info) = boot.store else {
            println!("hello: no xenstore, so no disk");
            return Ok(());
        };
        let store = Xenstore::connect(info.page, Port::adopt(info.port))?;
        let home = store.home().await?;
        let name = match store.read_str("name").await {
            Err(error) if error.is_missing() => "(no name)".into(),
            other => other?,
        };
        println!("hello: xenstore home {home}, name {name}");
        let number = |key| boot.option(key).and_then(|text| text.parse().ok());
        if let Some(count) = number("store-reads") {
            time_store(&store, count, number("store-pause").unwrap_or(0)).await?;
        }
        match number("disk-reads") {
            Some(count) => disk::time_reads(&store, count, number("disk-rounds").unwrap_or(1)).await?,
            None => disk::check(&store, number("reads").unwrap_or(0)).await?,
        }
        if boot.option("wait").is_some() {
            println!("hello: waiting for a shutdown request");
            let request = shutdown_request(&store).await?;
            println!("hello: {request:?} asked for");
            pvrt::console::flush().await;
            sched::shutdown(request.reason());
        }
        Ok(())
    }
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("hello is a freestanding image: build it with `cargo xtask build`");
}
