//! Control of the machine, by the toolstack: interface version 0x15.

mod cpus;

use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XenDomctlGetdomaininfo};
use ring_abi::payload::Payload;
use ring_abi::sysctl::*;
use ring_abi::types::{GuestVa, PAGE_SIZE};

use super::domctl::{domain_info, write_leaves};
use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::emul::most_shown_to_any;
use crate::platform::Platform;
use crate::return_stack;

/// Keys that one call may press.
const MAX_KEYS: u32 = 32;
/// Bytes of the log copied at a time.
const CHUNK: usize = 256;
/// What the toolstack calls a distance of a node to itself.
const LOCAL_DISTANCE: u32 = 10;

/// `sysctl(op)`. Only a privileged domain may.
///
/// # Errors
/// `NotPermitted`; `Fault`; `Access`: another interface version; as each operation says; `NoSys`: no such operation.
pub fn sysctl<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    let _filled = return_stack::fill_at_end();
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let arg = GuestVa::new(args[0]);
    let mut op: XenSysctl = cur.copy_in(arg)?;
    HypercallError::Access.when(op.interface_version != XEN_SYSCTL_INTERFACE_VERSION)?;
    cur.hv.reap_dead();
    match op.cmd {
        XEN_SYSCTL_READCONSOLE => asked(&mut op, |wanted| read_console(cur, wanted))?,
        XEN_SYSCTL_PHYSINFO => op.set_payload(&physical(cur)),
        XEN_SYSCTL_SCHED_ID => op.set_payload(&XenSysctlSchedId { sched_id: XEN_SCHEDULER_CREDIT2 }),
        XEN_SYSCTL_GETDOMAININFOLIST => asked(&mut op, |wanted| domain_list(cur, wanted))?,
        XEN_SYSCTL_DEBUG_KEYS => asked(&mut op, |wanted| debug_keys(cur, wanted))?,
        XEN_SYSCTL_GETCPUINFO => asked(&mut op, |wanted| cpus::info(cur, wanted))?,
        XEN_SYSCTL_CPU_HOTPLUG => cpus::hotplug(cur, op.payload())?,
        XEN_SYSCTL_AVAILHEAP => {
            let avail_bytes = cur.hv.frames.free_pages() * PAGE_SIZE as u64;
            op.set_payload(&XenSysctlAvailheap { avail_bytes, ..op.payload() });
        }
        XEN_SYSCTL_CPUTOPOINFO => asked(&mut op, |wanted| cpus::topology(cur, wanted))?,
        XEN_SYSCTL_NUMAINFO => asked(&mut op, |wanted| numa(cur, wanted))?,
        XEN_SYSCTL_GET_CPU_POLICY => asked(&mut op, |wanted| cpu_policy(cur, wanted))?,
        XEN_SYSCTL_CPUPOOL_OP => asked(&mut op, |wanted| cpus::pool(cur, wanted))?,
        _ => return Err(HypercallError::NoSys),
    }
    cur.copy_out(arg, &op)?;
    Ok(Outcome::OK)
}

/// Lets `work` answer in the place of its arguments.
fn asked<T: Payload>(op: &mut XenSysctl, work: impl FnOnce(&mut T) -> Answer) -> Answer {
    let mut wanted = op.payload();
    work(&mut wanted)?;
    op.set_payload(&wanted);
    Ok(())
}

fn debug_keys<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlDebugKeys) -> Answer {
    HypercallError::TooBig.when(wanted.nr_keys > MAX_KEYS)?;
    for index in 0..wanted.nr_keys {
        cur.hv.debug_key(cur.copy_in_at(GuestVa::new(wanted.keys), u64::from(index))?);
    }
    Ok(())
}

fn physical<P: Platform>(cur: &Current<'_, P>) -> XenSysctlPhysinfo {
    let machine = cur.hv.platform.machine_info();
    let (ids, threads) = (cpus::ids(cur), cur.hv.sched.threads_per_core());
    XenSysctlPhysinfo {
        threads_per_core: threads,
        cores_per_socket: ids.div_ceil(threads),
        nr_cpus: cur.hv.sched.online().count(),
        max_cpu_id: ids - 1,
        nr_nodes: 1,
        max_node_id: 0,
        cpu_khz: machine.cpu_khz,
        capabilities: XEN_SYSCTL_PHYSCAP_PV | XEN_SYSCTL_PHYSCAP_GNTTAB_V1 | XEN_SYSCTL_PHYSCAP_GNTTAB_V2,
        total_pages: cur.hv.frames.total_pages(),
        free_pages: cur.hv.frames.free_pages(),
        max_mfn: cur.hv.frames.end().raw().saturating_sub(1),
        hw_cap: machine.hw_cap,
        ..XenSysctlPhysinfo::default()
    }
}

/// Reads the log: from `index` on when incremental, else from its oldest byte.
fn read_console<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlReadconsole) -> Answer {
    let mut chunk = [0; CHUNK];
    let mut from = if wanted.incremental != 0 { u64::from(wanted.index) } else { 0 };
    let mut done = 0;
    let buffer = GuestVa::new(wanted.buffer);
    while done < wanted.count {
        let room = ((wanted.count - done) as usize).min(CHUNK);
        let (start, len) = cur.hv.platform.console_log(from, &mut chunk[..room]);
        if len == 0 {
            break;
        }
        cur.copy_to_guest(buffer.wrapping_add(u64::from(done)), &chunk[..len])?;
        done += len as u32;
        from = start + len as u64;
    }
    if wanted.clear != 0 {
        cur.hv.platform.clear_console_log();
    }
    wanted.count = done;
    wanted.index = from as u32;
    Ok(())
}

/// Writes what each domain from `first_domain` on is, until there is no room.
fn domain_list<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlGetdomaininfolist) -> Answer {
    let mut next = wanted.first_domain;
    wanted.num_domains = 0;
    while wanted.num_domains < wanted.max_domains
        && let Some(domain) = cur.hv.domains.first_from(next)
    {
        let info: XenDomctlGetdomaininfo = domain_info(cur.hv, &domain);
        cur.copy_out_at(GuestVa::new(wanted.buffer), u64::from(wanted.num_domains), &info)?;
        wanted.num_domains += 1;
        match domain.id.raw().checked_add(1) {
            Some(id) => next = id,
            None => break,
        }
    }
    Ok(())
}

/// What the CPU says, or what a PV guest sees of that.
fn cpu_policy<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlCpuPolicy) -> Answer {
    let is_of_guests = match wanted.index {
        XEN_SYSCTL_CPU_POLICY_RAW | XEN_SYSCTL_CPU_POLICY_HOST => false,
        XEN_SYSCTL_CPU_POLICY_PV_MAX | XEN_SYSCTL_CPU_POLICY_PV_DEFAULT => true,
        XEN_SYSCTL_CPU_POLICY_HVM_MAX | XEN_SYSCTL_CPU_POLICY_HVM_DEFAULT => {
            return Err(HypercallError::NotSupported);
        }
        _ => return Err(HypercallError::Invalid),
    };
    wanted.nr_leaves = write_leaves(cur, wanted.leaves, wanted.nr_leaves, |leaf, subleaf| {
        if is_of_guests {
            most_shown_to_any(cur.hv, leaf, subleaf)
        } else {
            cur.hv.platform.cpuid(leaf, subleaf)
        }
    })?;
    wanted.nr_msrs = 0;
    Ok(())
}

fn numa<P: Platform>(cur: &Current<'_, P>, wanted: &mut XenSysctlNumainfo) -> Answer {
    HypercallError::NoBuffers.when((wanted.meminfo != 0 || wanted.distance != 0) && wanted.num_nodes < 1)?;
    if wanted.meminfo != 0 {
        let bytes = PAGE_SIZE as u64;
        let info = XenSysctlMeminfo {
            memsize: cur.hv.frames.total_pages() * bytes,
            memfree: cur.hv.frames.free_pages() * bytes,
        };
        cur.copy_out(GuestVa::new(wanted.meminfo), &info)?;
    }
    if wanted.distance != 0 {
        cur.copy_out(GuestVa::new(wanted.distance), &LOCAL_DISTANCE)?;
    }
    wanted.num_nodes = 1;
    Ok(())
}
