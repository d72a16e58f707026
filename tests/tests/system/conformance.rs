//! The conformance cases, booted: as dom0, and as a guest with the disks that they want.

use anyhow::Result;
use tests::{Machine, Scratch};
use xtask::conformance::{Place, as_backend, report_on};
use xtask::qemu::RunDirectory;

use crate::Case;

const MIB: usize = 1 << 20;
/// Hundreds of cases, each with a limit of its own: many times what they take on an idle host.
const LIMIT: u64 = 600;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases =
        Vec::from(crate::cases![conformance: every_case_passes_as_dom0, every_case_passes_as_a_guest]);
    cases.push(Case {
        name: "conformance::debians_xen_passes_but_for_what_is_explained",
        // Debian's packages are fetched first.
        soak: true,
        run: debians_xen_passes_but_for_what_is_explained,
    });
    cases.push(Case {
        name: "conformance::debians_block_frontend_passes_but_for_what_is_explained",
        soak: true,
        run: debians_block_frontend_passes_but_for_what_is_explained,
    });
    cases.push(Case {
        name: "conformance::newer_block_frontend_passes_but_for_what_is_explained",
        soak: true,
        run: newer_block_frontend_passes_but_for_what_is_explained,
    });
    cases.push(Case {
        name: "conformance::a_hostile_driver_domain_harms_its_frontends_domain_alone",
        soak: true,
        run: a_hostile_driver_domain_harms_its_frontends_domain_alone,
    });
    cases
}

/// The first frontend that is not ours: a case that it does not pass is wrong, or explained in the document.
fn debians_block_frontend_passes_but_for_what_is_explained() -> Result<()> {
    block_frontend_passes(None)
}

fn newer_block_frontend_passes_but_for_what_is_explained() -> Result<()> {
    block_frontend_passes(Some("newer"))
}

fn block_frontend_passes(kernel: Option<&str>) -> Result<()> {
    let report = report_on(Place::Linux, None, kernel)?;
    report.print();
    anyhow::ensure!(report.is_clean(), "not explained: {:?}", report.unexplained());
    Ok(())
}

/// Its guest is left with requests that nobody will answer, and is destroyed after its backend is gone.
fn a_hostile_driver_domain_harms_its_frontends_domain_alone() -> Result<()> {
    let files = RunDirectory::new()?;
    let backend = as_backend("blkfront.hostile,blkfront.ring", &xtask::guest::debian_boot()?, &files)?;
    let machine = Machine::new("conformance-backend").seconds(LIMIT).with(|machine| {
        machine.modules = backend.modules;
        machine.script = backend.script;
    });
    machine.run()?.succeeded()?.says(" 0 fail ")?.says(" 0 error")?.says("hello: xenstore home")?;
    Ok(())
}

/// A case that the real system does not pass is wrong, or explained in the document.
fn debians_xen_passes_but_for_what_is_explained() -> Result<()> {
    let report = report_on(Place::Xen, None, None)?;
    report.print();
    anyhow::ensure!(report.is_clean(), "not explained: {:?}", report.unexplained());
    Ok(())
}

/// The kernel reports a failed case as a failed line.
fn every_case_passes_as_dom0() -> Result<()> {
    let guest = xtask::images::find(xtask::conformance::IMAGE)?.bootable();
    let machine = Machine::new("conformance-dom0").seconds(LIMIT).with(|machine| machine.dom0 = guest);
    passes(machine)
}

/// The machine runs all cases, and none fails.
pub(crate) fn passes(machine: Machine) -> Result<()> {
    machine.run()?.succeeded()?.says("conformance: end ")?.says(" 0 fail ")?.says(" 0 error")?;
    Ok(())
}

/// The guest crashes when a case failed.
fn every_case_passes_as_a_guest() -> Result<()> {
    let scratch = Scratch::new("conformance")?;
    let (writable, read_only) = (scratch.disk("rw", 16 * MIB, 1)?, scratch.disk("ro", 4 * MIB, 2)?);
    let big = xtask::conformance::big_sector_disk(&scratch.disk("big", 4 * MIB, 3)?, tests::kinds::disks());
    let machine = Machine::new("conformance")
        .disk(&writable)
        .read_only_disk(&read_only)
        .seconds(LIMIT)
        .with(|machine| machine.qemu_arguments.extend(big))
        .line(&format!("xl create -c /boot/conformance.cfg {}", xtask::conformance::GUEST_DISKS));
    passes(machine)
}
