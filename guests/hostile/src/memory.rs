//! `memory_op`: more memory than there is, frames of other domains, calls on other domains, invalid
//! arguments.

use alloc::format;

use ring_abi::errno::Errno::{EACCES, EFAULT, EINVAL, ENOMEM, ENOSYS, EOPNOTSUPP, EPERM, ESRCH};
use ring_abi::hypercall::__HYPERVISOR_MEMORY_OP;
use ring_abi::memory::*;
use ring_abi::types::DOMID_SELF;

use crate::ground::space::*;
use crate::report::{Got, Report};

fn memory<T>(command: u32, arg: &mut T) -> i64 {
    op(__HYPERVISOR_MEMORY_OP, command, arg)
}

/// A reservation for this domain.
pub(crate) fn reservation(list: u64, count: u64, order: u32) -> XenMemoryReservation {
    XenMemoryReservation {
        extent_start: list,
        nr_extents: count,
        extent_order: order,
        domid: DOMID_SELF,
        ..Default::default()
    }
}

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    reservations(report);
    exchanges(report);
    others(report);
}

/// True for a call that did nothing: an error, or no extent done.
fn nothing(got: i64) -> bool {
    got <= 0
}

fn reservations(report: &mut Report) {
    let mut list = [0x10_0000u64; 4];
    let at = list.as_mut_ptr() as u64;
    for (name, mut arg) in [
        ("order 60", reservation(at, 1, 60)),
        ("order -1", reservation(at, 1, u32::MAX)),
        ("2^60 extents of order 4", reservation(at, 1 << 60, 4)),
        ("a list in hypervisor space", reservation(M2P, 4, 0)),
        ("a non-canonical list", reservation(1 << 63, 4, 0)),
        ("a list at the end of everything", reservation(u64::MAX - 7, 4, 0)),
    ] {
        for (what, command) in
            [("populate", XENMEM_POPULATE_PHYSMAP), ("decrease", XENMEM_DECREASE_RESERVATION)]
        {
            if command == XENMEM_DECREASE_RESERVATION
                || !report.privileged
                || name != "2^60 extents of order 4"
            {
                let got = memory(command, &mut arg);
                report.case(&format!("{what}: {name}"), nothing(got), Got(got));
            }
        }
    }
    if !report.privileged {
        // The domain must not get memory beyond the limit that the toolstack set.
        let mut many = [0x20_0000u64; 64];
        let mut arg = reservation(many.as_mut_ptr() as u64, 64, 9);
        let got = memory(XENMEM_POPULATE_PHYSMAP, &mut arg);
        report.case("128 MiB more than it may have", nothing(got), Got(got));
        for domid in [0, 12345, 0x7ff4] {
            for command in [
                XENMEM_POPULATE_PHYSMAP,
                XENMEM_DECREASE_RESERVATION,
                XENMEM_INCREASE_RESERVATION,
                XENMEM_CURRENT_RESERVATION,
                XENMEM_MAXIMUM_RESERVATION,
            ] {
                let mut arg = XenMemoryReservation { domid, ..reservation(at, 1, 0) };
                let mut id = XenMemoryDomain { domid };
                let got = match command {
                    XENMEM_CURRENT_RESERVATION | XENMEM_MAXIMUM_RESERVATION => memory(command, &mut id),
                    _ => memory(command, &mut arg),
                };
                // The hypervisor must not do any extent of a reservation for another domain.
                let asks = matches!(command, XENMEM_CURRENT_RESERVATION | XENMEM_MAXIMUM_RESERVATION);
                let refused = [EPERM, ESRCH].iter().any(|errno| errno.negated() == got);
                let name = format!("op {command} on domain {domid:#x}");
                report.case(&name, refused || got == 0 && !asks, Got(got));
            }
        }
    }
    let mut gone = None;
    for mut mfn in foreign_frames().into_iter().chain([end_of_memory() + 1, u64::MAX]) {
        let mut arg = reservation((&raw mut mfn) as u64, 1, 0);
        if !nothing(memory(XENMEM_DECREASE_RESERVATION, &mut arg)) {
            gone = Some(mfn);
        }
    }
    report.case("giving back foreign frames", gone.is_none(), gone);
}

fn exchanges(report: &mut Report) {
    let scratch = Scratch::new(1);
    let mut give = [base(); 2];
    let mut take = [0x10_0000u64; 2];
    let mut pair = |count_in, order_in, count_out, order_out, done| XenMemoryExchange {
        r#in: reservation(give.as_mut_ptr() as u64, count_in, order_in),
        out: reservation(take.as_mut_ptr() as u64, count_out, order_out),
        nr_exchanged: done,
    };
    for (name, mut arg) in [
        ("sizes that differ", pair(1, 0, 2, 0, 0)),
        ("orders that do not match", pair(1, 1, 1, 0, 0)),
        ("more done than there is", pair(1, 0, 1, 0, 2)),
        ("a product that wraps", pair(1 << 63, 1, 1 << 62, 2, 0)),
        ("order 64", pair(1, 64, 1, 64, 0)),
        ("order 2^31", pair(1, 1 << 31, 1, 1 << 31, 0)),
        ("more than memory", pair(1 << 40, 0, 1 << 40, 0, (1 << 40) - 1)),
        ("a page table in use", pair(1, 0, 1, 0, 0)),
    ] {
        let got = memory(XENMEM_EXCHANGE, &mut arg);
        report.case(&format!("exchange: {name}"), got < 0, Got(got));
    }
    give = [scratch.mfn(0); 2];
    let mut arg = XenMemoryExchange {
        r#in: reservation(give.as_mut_ptr() as u64, 1, 0),
        out: reservation(take.as_mut_ptr() as u64, 1, 0),
        nr_exchanged: 0,
    };
    let got = memory(XENMEM_EXCHANGE, &mut arg);
    report.case("exchange: a mapped page", got < 0, Got(got));
    let mut taken = None;
    for mut mfn in foreign_frames().into_iter().take(24) {
        let mut arg = XenMemoryExchange {
            r#in: reservation((&raw mut mfn) as u64, 1, 0),
            out: reservation(take.as_mut_ptr() as u64, 1, 0),
            nr_exchanged: 0,
        };
        if memory(XENMEM_EXCHANGE, &mut arg) >= 0 {
            taken = Some(mfn);
        }
    }
    report.case("exchange: a foreign frame", taken.is_none(), taken);
}

fn others(report: &mut Report) {
    let mut words = [0u64; 16];
    if !report.privileged {
        for (name, command) in [
            ("machine_memory_map", XENMEM_MACHINE_MEMORY_MAP),
            ("set_memory_map", XENMEM_SET_MEMORY_MAP),
            ("claim_pages", XENMEM_CLAIM_PAGES),
            ("acquire_resource", XENMEM_ACQUIRE_RESOURCE),
        ] {
            report.refused(name, memory(command, &mut words), &[EPERM, ESRCH, EACCES, EINVAL, EFAULT]);
        }
        let mut arg = XenMemAcquireResource { domid: DOMID_SELF, nr_frames: 1, ..Default::default() };
        report.refused("own resource", memory(XENMEM_ACQUIRE_RESOURCE, &mut arg), &[EPERM, EINVAL, EACCES]);
    }
    for command in [30, 40, 63] {
        report.refused(&format!("command {command}"), memory(command, &mut words), &[ENOSYS, EOPNOTSUPP]);
    }
    let mut physmap = XenAddToPhysmap { domid: DOMID_SELF, ..Default::default() };
    let got = memory(XENMEM_ADD_TO_PHYSMAP, &mut physmap);
    report.case("add_to_physmap", got < 0, Got(got));
    let got = memory(XENMEM_GET_VNUMAINFO, &mut words);
    report.refused("vnuma", got, &[EOPNOTSUPP, EFAULT, EINVAL, ENOSYS, ENOMEM, ESRCH]);
}
