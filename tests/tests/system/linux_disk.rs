//! A Debian system on a disk of its own: what it is served, and what of it lasts.

use anyhow::Result;
use tests::Scratch;

use crate::Case;
use crate::linux_guest::{Debian, check_file_system, machine, root_copy};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_disk:
        debian_boots_to_a_login_and_powers_off,
    ]);
    for case in &mut cases {
        // Each has a Debian system made, and boots it.
        case.soak = true;
    }
    cases
}

fn debian_boots_to_a_login_and_powers_off() -> Result<()> {
    let scratch = Scratch::new("debian-login")?;
    let root = root_copy(&scratch)?;
    let mut debian = Debian::boot(machine("debian-login", &root), "")?;
    let state = debian.succeed("systemctl is-system-running --wait", 120)?;
    assert!(state.contains("running"), "{state}");
    debian.succeed("systemctl --failed --no-legend | grep . && exit 1; true", 60)?;
    debian.succeed("test $(stat -f -c %T /) = ext2/ext3 && echo kept > /root/kept && sync", 60)?;
    debian.power_off()?;
    check_file_system(&root, false)?;

    // What was written is there the next time.
    let mut debian = Debian::boot(machine("debian-login-again", &root), "")?;
    debian.succeed("test $(cat /root/kept) = kept", 60)?;
    debian.power_off()?;
    check_file_system(&root, false)
}
