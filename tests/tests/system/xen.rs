//! Our PV kernels on Debian's Xen: they stand on the ABI, not on microhv.

use std::time::Duration;

use anyhow::{Result, ensure};
use ring_abi::sched::SHUTDOWN_POWEROFF;
use tests::Scratch;
use tests::scratch::sha256;
use xtask::images;
use xtask::machine::Disk;
use xtask::session::Outcome;
use xtask::xen::{self, Domain, Options};

use crate::Case;

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![xen:
        a_kernel_runs_as_its_control_domain,
        domains_run_and_read_their_disk,
        a_script_that_fails_is_told,
    ]);
    for case in &mut cases {
        // They make Debian's Xen first.
        case.soak = true;
    }
    cases
}

fn a_kernel_runs_as_its_control_domain() -> Result<()> {
    let options = Options { icount: true, ..Options::default() };
    let bench = images::find("bench")?.bootable();
    let output = xen::prepare()?.boot_kernel_as_dom0(&bench, "ops=10 only=xen_version", &options)?;
    ensure!(output.outcome == Outcome::Succeeded, "it ended with {:?}: {}", output.outcome, output.console);
    ensure!(output.console.contains("bench done"), "the console's end is lost: {}", output.console);
    Ok(())
}

/// Linux's backend and our frontend read the same bytes; both domains' consoles are whole.
fn domains_run_and_read_their_disk() -> Result<()> {
    let scratch = Scratch::new("xen-disk")?;
    let disk = scratch.disk("d.img", 4 * MIB, 5)?;
    let sum = sha256(&disk)?;
    let options =
        Options { disks: vec![Disk { id: Some("data".into()), ..Disk::file(&disk) }], ..Options::default() };
    let domain = |name: &str, lines: &[&str]| -> Result<Domain> {
        Ok(Domain {
            name: name.into(),
            kernel: images::find("hello")?.bootable(),
            ramdisk: None,
            memory_mib: 16,
            extra: String::new(),
            lines: lines.iter().map(|line| line.to_string()).collect(),
        })
    };
    let domains = [domain("one", &[])?, domain("two", &["disk=['phy:/dev/disk/by-id/virtio-data,xvda,w']"])?];
    let (ran, _) = xen::prepare()?.run_domains(&domains, Duration::from_secs(60), &options)?;
    for ran in &ran {
        ensure!(ran.reason == Some(SHUTDOWN_POWEROFF), "{ran:?}");
    }
    ensure!(!ran[0].console.contains(&sum) && ran[1].console.contains(&sum), "{ran:?}");
    Ok(())
}

fn a_script_that_fails_is_told() -> Result<()> {
    let output = xen::prepare()?.run("echo begun; exit 3", &[], &Options::default())?;
    ensure!(output.outcome == Outcome::LineFailed, "it ended with {:?}", output.outcome);
    ensure!(output.console.contains("begun") && output.console.contains("dom0: exit status 3"));
    Ok(())
}
