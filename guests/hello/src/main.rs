#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `hello`: says who it is, checks its first disk through blkfront, and powers off.
//!
//! On its command line `wait` keeps it until the toolstack asks it to stop, and `panic` makes it panic at the end.

extern crate alloc;

#[cfg(freestanding)]
mod disk;

#[cfg(freestanding)]
pvrt::kernel!(async guest::start);

#[cfg(freestanding)]
mod guest {
    use crate::disk;
    use frontends::control::shutdown_request;
    use frontends::xenbus::{Nodes, Xenstore};
    use pvrt::event::Port;
    use pvrt::hypercall::{sched, version};
    use pvrt::time::Utc;
    use pvrt::{BootInfo, println, time};
    use ring_abi::sched::SHUTDOWN_CRASH;

    /// Runs everything; a failure ends the domain as crashed, so that the toolstack sees it.
    pub(crate) async fn start(boot: BootInfo) {
        if let Err(error) = report(boot).await {
            println!("hello: FAILED: {error}");
            pvrt::console::flush().await;
            sched::shutdown(SHUTDOWN_CRASH);
        }
        if boot.option("panic").is_some() {
            panic!("asked for on the command line");
        }
        println!("hello: goodbye");
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
        disk::check(&store).await?;
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
