#![cfg_attr(freestanding, no_std)]
#![cfg_attr(freestanding, no_main)]
//! The guest `conformance-guest`: runs every conformance case that its place allows, and reports on the console, one
//! line each, for people and programs; `conformance::run` has the format.
//!
//! The guest depends on the ABI alone: as domU it tries the backends that serve it, as dom0 the hypervisor. On its
//! command line `filter=ID[,ID…]` selects cases, and `role=backend` makes the guest the driver domain of another
//! guest, whose frontends are tried. `vifs=mend` says that a network backend serves again after a ruined ring. The guest powers off when every case passed or was skipped, else it crashes.

extern crate alloc;

#[cfg(freestanding)]
pvrt::kernel!(async guest::start);

#[cfg(freestanding)]
mod guest {
    use conformance::blkfront::agent;
    use conformance::blkif::front;
    use conformance::{Env, Problem, run};
    use pvrt::hypercall::sched;
    use pvrt::{BootInfo, println};
    use ring_abi::sched::SHUTDOWN_CRASH;

    /// Exit codes for isa-debug-exit: success and failure.
    const DEBUG_EXIT_OK: u8 = 0x10;
    const DEBUG_EXIT_FAILED: u8 = 0x11;

    pub(crate) async fn start(boot: BootInfo) {
        let place = async {
            let mut env = Env::of_kernel(&boot).await?;
            front::survey(&mut env).await?;
            env.vifs_mend = boot.option("vifs") == Some("mend");
            if boot.option("role") == Some("backend") {
                agent::driver_domain(&mut env).await?;
            }
            Ok::<_, Problem>(env)
        };
        let clean = match place.await {
            Ok(mut env) => {
                run::run(&mut env, boot.option("filter"), |line| println!("{line}")).await.is_clean()
            }
            Err(problem) => {
                println!("{}broken {problem}", run::PREFIX);
                false
            }
        };
        pvrt::console::flush().await;
        if let Some(port) = pvrt::boot::debug_exit_port() {
            pvrt::pio::write_u8(port, if clean { DEBUG_EXIT_OK } else { DEBUG_EXIT_FAILED });
        }
        if !clean {
            sched::shutdown(SHUTDOWN_CRASH);
        }
    }
}

#[cfg(not(freestanding))]
fn main() {
    eprintln!("conformance-guest is a freestanding image: build it with `cargo xtask build`");
}
