//! An attack on the hypervisor's heap, which grows by adjacent frames. This guest gives back every second frame of
//! its own, takes adjacent frames that are free elsewhere, and then makes the hypervisor allocate. Each call must end
//! in a refusal.

use alloc::vec;
use alloc::vec::Vec;

use pvrt::mem::Pages;
use pvrt::println;
use pvrt::space::*;
use ring_abi::errno::Errno::{self, EEXIST, EINVAL, ENOMEM};
use ring_abi::grant::*;
use ring_abi::guest_context::VcpuGuestContext;
use ring_abi::hypercall::*;
use ring_abi::memory::*;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};
use ring_abi::vcpu::VCPUOP_INITIALISE;

use crate::memory::reservation;

/// Pages that the guest takes together.
const RUN: usize = 512;
/// Pages that this kernel keeps for itself.
const KEPT: usize = 256;
/// A page number that this kernel does not use.
const ELSEWHERE: u64 = 0x10_0000;

/// Runs the attack; true if each call ended as it must.
pub(crate) fn run() -> bool {
    let kept = Pages::alloc(KEPT);
    let mut runs: Vec<Pages> = Vec::with_capacity(1024);
    while let Ok(pages) = Pages::alloc(RUN) {
        runs.push(pages);
    }
    drop(kept);
    let mut given = 0;
    for pages in &runs {
        let odd = (1..RUN).step_by(2);
        let frames: Vec<u64> = odd.clone().map(|n| pages.mfn(n).raw()).collect();
        for n in odd {
            map((pages.va() + n * PAGE_SIZE) as u64, 0);
        }
        let mut arg = reservation(frames.as_ptr() as u64, frames.len() as u64, 0);
        given += op(__HYPERVISOR_MEMORY_OP, XENMEM_DECREASE_RESERVATION, &mut arg).max(0);
    }
    // The page runs have holes, so no code may use them again.
    core::mem::forget(runs);
    let mut taken = 0;
    for order in (1..=9).rev() {
        let mut place = [ELSEWHERE];
        let mut arg = reservation(place.as_mut_ptr() as u64, 1, order);
        while op(__HYPERVISOR_MEMORY_OP, XENMEM_POPULATE_PHYSMAP, &mut arg) == 1 {
            taken += 1 << order;
            place[0] = ELSEWHERE;
        }
    }
    println!("scatter: gave {given} frames back, took {taken} in rows");
    let mut list = vec![0u64; 64];
    let mut frames = 0;
    for nr_frames in 1..=64 {
        let mut setup = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames,
            frame_list: list.as_mut_ptr() as u64,
            ..Default::default()
        };
        let got = one(__HYPERVISOR_GRANT_TABLE_OP, GNTTABOP_SETUP_TABLE, &mut setup);
        if got != 0 || setup.status != GNTST_OKAY {
            break;
        }
        frames = nr_frames;
    }
    println!("scatter: {frames} frames of grant table");
    let context = vec![0u8; size_of::<VcpuGuestContext>()];
    let initialise = |vcpu: u64| {
        call(__HYPERVISOR_VCPU_OP, [VCPUOP_INITIALISE.into(), vcpu, context.as_ptr() as u64, 0, 0])
    };
    let got: Vec<i64> = (0..8).map(|n| initialise(n % 2)).collect();
    println!("scatter: initialise gives {got:?}");
    // The context is invalid, for a vCPU that is initialised or not.
    let allowed = [ENOMEM, EEXIST, EINVAL].map(Errno::negated);
    given > 0 && frames < 64 && got.iter().all(|got| allowed.contains(got))
}
