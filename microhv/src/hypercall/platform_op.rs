//! Control of the platform, by dom0: interface version 0x03000001.

use ring_abi::platform::*;
use ring_abi::types::GuestVa;

use super::{Answer, Args, Current, HypercallError, HypercallResult, Outcome};
use crate::platform::{CpuId, Platform, PowerAction};

const NS_PER_SECOND: u64 = 1_000_000_000;
/// ACPI's "soft off".
const SLEEP_OFF: u32 = 5;

/// `platform_op(op)`. Only a privileged domain may.
///
/// # Errors
/// `NotPermitted`; `Fault`; `Access`: another interface version; `Invalid`: an impossible time or CPU;
/// `NoSuchDomain` (`-ESRCH`): no such firmware information; `NoSys`: no such operation.
pub fn platform_op<P: Platform>(cur: &mut Current<'_, P>, args: &Args) -> HypercallResult {
    HypercallError::NotPermitted.when(!cur.domain.privileged)?;
    let arg = GuestVa::new(args[0]);
    let mut op: XenPlatformOp = cur.copy_in(arg)?;
    HypercallError::Access.when(op.interface_version != XENPF_INTERFACE_VERSION)?;
    match op.cmd {
        XENPF_SETTIME32 => {
            let time: XenpfSettime32 = op.payload();
            set_time(cur, u64::from(time.secs), time.nsecs, time.system_time)?;
        }
        XENPF_SETTIME64 => {
            let time: XenpfSettime64 = op.payload();
            HypercallError::Invalid.when(time.mbz != 0)?;
            set_time(cur, time.secs, time.nsecs, time.system_time)?;
        }
        XENPF_GET_CPUINFO => {
            let mut info: XenpfPcpuinfo = op.payload();
            let (known, online) = (cur.hv.sched.known_cpus(), cur.hv.sched.online());
            info.max_present = known.bits().ilog2();
            info.flags = match CpuId::new(info.xen_cpuid) {
                Some(cpu) if online.contains(cpu) => XEN_PCPU_FLAGS_ONLINE,
                Some(cpu) if known.contains(cpu) => 0,
                _ => XEN_PCPU_FLAGS_INVALID,
            };
            info.apic_id = info.xen_cpuid;
            info.acpi_id = info.xen_cpuid;
            op.set_payload(&info);
            cur.copy_out(arg, &op)?;
        }
        XENPF_ENTER_ACPI_SLEEP => {
            let wanted: XenpfEnterAcpiSleep = op.payload();
            HypercallError::NotSupported.when(wanted.sleep_state != SLEEP_OFF)?;
            cur.hv.platform.power(PowerAction::Off);
        }
        XENPF_FIRMWARE_INFO => return Err(HypercallError::NoSuchDomain),
        _ => return Err(HypercallError::NoSys),
    }
    Ok(Outcome::OK)
}

/// Sets the wall clock: it was `secs`, `nsecs` at system time `system_ns`.
fn set_time<P: Platform>(cur: &Current<'_, P>, secs: u64, nsecs: u32, system_ns: u64) -> Answer {
    HypercallError::Invalid.when(u64::from(nsecs) >= NS_PER_SECOND)?;
    let wall_ns = secs.checked_mul(NS_PER_SECOND).and_then(|ns| ns.checked_add(nsecs.into()));
    let wall_ns = wall_ns.filter(|ns| *ns >= system_ns).ok_or(HypercallError::Invalid)?;
    cur.hv.set_wall_clock(wall_ns, system_ns);
    Ok(())
}
