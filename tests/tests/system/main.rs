//! System tests: each boots the real images in QEMU. `cargo xtask test` builds the images and runs them; run by
//! hand without it, they say that they are ignored.

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

mod bad_input;
mod bochs;
mod configs;
mod conformance;
mod console;
mod cpus;
mod debugger;
mod disks;
mod domains;
mod edges;
mod gdb;
mod hostile;
mod install;
mod kernels;
mod left_out;
mod linux;
mod linux_blkfront;
mod linux_build;
mod linux_dirty;
mod linux_disk;
mod linux_grub;
mod linux_guest;
mod linux_hostile;
mod linux_life;
mod linux_migrated;
mod linux_network;
mod linux_newer;
mod linux_saved;
mod linux_storm;
mod linux_tap;
mod machine_check;
mod misuse;
mod monitor;
mod network;
mod network_life;
mod network_rules;
mod polls;
mod reset;
mod roots;
mod screen;
mod shell;
mod smap;
mod speculation;
mod spine;
mod storms;
mod xen;

/// One test.
struct Case {
    name: &'static str,
    /// Takes minutes: only with `--soak`.
    soak: bool,
    run: fn() -> Result<()>,
}

/// The cases of a list of functions, named `MODULE::FUNCTION`.
macro_rules! cases {
    ($module:ident: $($function:ident),* $(,)?) => {
        [$($crate::Case {
            name: concat!(stringify!($module), "::", stringify!($function)),
            soak: false,
            run: $function,
        }),*]
    };
}
pub(crate) use cases;

/// Machines at a time: each keeps a CPU of the host busy.
const MACHINES: usize = 2;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(MACHINES);
    let built = std::env::var_os(xtask::test::IMAGES_BUILT).is_some();
    let soak = std::env::var_os(xtask::test::SOAK).is_some();
    let cases = [
        speculation::cases(),
        edges::cases(),
        machine_check::cases(),
        spine::cases(),
        storms::cases(),
        conformance::cases(),
        console::cases(),
        cpus::cases(),
        disks::cases(),
        domains::cases(),
        bad_input::cases(),
        configs::cases(),
        kernels::cases(),
        bochs::cases(),
        shell::cases(),
        smap::cases(),
        misuse::cases(),
        debugger::cases(),
        network::cases(),
        network_life::cases(),
        network_rules::cases(),
        polls::cases(),
        reset::cases(),
        roots::cases(),
        screen::cases(),
        hostile::cases(),
        install::cases(),
        linux::cases(),
        linux_dirty::cases(),
        linux_disk::cases(),
        linux_blkfront::cases(),
        linux_build::cases(),
        linux_grub::cases(),
        linux_hostile::cases(),
        linux_life::cases(),
        linux_network::cases(),
        linux_newer::cases(),
        linux_migrated::cases(),
        linux_saved::cases(),
        linux_storm::cases(),
        linux_tap::cases(),
        xen::cases(),
    ]
    .into_iter()
    .flatten();
    let trials = cases
        .map(|case| {
            let run = case.run;
            let left_out = left_out::reason(case.name, tests::kinds::disks(), tests::emulator());
            if let Some(reason) = left_out.filter(|_| built) {
                println!("left out: {}: {reason}", case.name);
            }
            Trial::test(case.name, move || run().map_err(|error| Failed::from(format!("{error:#}"))))
                .with_ignored_flag(!built || case.soak && !soak || left_out.is_some())
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
