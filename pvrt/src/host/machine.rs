//! A stand-in that makes domains and gives them memory, and knows what is free.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use ring_abi::domctl::*;
use ring_abi::errno::Errno;
use ring_abi::hypercall::{__HYPERVISOR_DOMCTL, __HYPERVISOR_MEMORY_OP, __HYPERVISOR_SYSCTL};
use ring_abi::memory::{XENMEM_POPULATE_PHYSMAP, XenMemoryReservation};
use ring_abi::sysctl::*;
use spin::Mutex;

use super::pools::Pools;
use super::{Hypervisor, Loopback, install, with_arg};

/// The machine. Clones are the same machine. A [`Loopback`] answers calls that the machine does
/// not know.
#[derive(Clone, Default)]
pub struct Machine(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    /// Frames of each domain, by its number.
    domains: BTreeMap<u16, u64>,
    /// Destroyed, while another domain maps their frames.
    dying: BTreeSet<u16>,
    /// The most that a domain may be given, in KiB, by its number.
    limits: BTreeMap<u16, u64>,
    /// Whether frames of destroyed domains are still mapped.
    held: bool,
    /// Domains that are not paused.
    running: BTreeSet<u16>,
    /// Domains whose memory is tracked.
    tracked: BTreeSet<u16>,
    /// Domains that have shut down, and why.
    down: BTreeMap<u16, u32>,
    /// How often each was resumed.
    resumed: BTreeMap<u16, u32>,
    made: u16,
    pools: Pools,
}

impl Machine {
    /// Frames for domains.
    pub const FRAMES: u64 = 1 << 20;
    /// The number of the first domain that is made.
    pub const FIRST: u16 = 7;

    /// Puts a machine in the place of the thread's stand-in.
    pub fn install() -> Self {
        let machine = Self::default();
        install(Box::new(Both(machine.clone(), Loopback::default())));
        machine
    }

    /// Frames that no domain has.
    pub fn free(&self) -> u64 {
        Self::FRAMES - self.0.lock().domains.values().sum::<u64>()
    }

    /// Domains that are not destroyed.
    pub fn count(&self) -> usize {
        self.0.lock().domains.len()
    }

    /// The number of the domain that was made last.
    pub fn newest(&self) -> u16 {
        Self::FIRST + self.0.lock().made - 1
    }

    /// The most that a domain may be given, in KiB, if that was set.
    pub fn limit_kib(&self, number: u16) -> Option<u64> {
        self.0.lock().limits.get(&number).copied()
    }

    /// Notes a domain that this machine did not make, and that runs.
    pub fn has(&self, number: u16) {
        let mut given = self.0.lock();
        given.domains.entry(number).or_default();
        given.running.insert(number);
        given.down.remove(&number);
    }

    /// Pauses such a domain.
    pub fn pause(&self, number: u16) {
        self.0.lock().running.remove(&number);
    }

    /// A domain shuts down for `reason`.
    pub fn shut_down(&self, number: u16, reason: u32) {
        self.0.lock().down.insert(number, reason);
    }

    /// How often a domain was resumed after that.
    pub fn resumed(&self, number: u16) -> u32 {
        self.0.lock().resumed.get(&number).copied().unwrap_or(0)
    }

    /// Whether a domain's memory is tracked.
    pub fn is_tracked(&self, number: u16) -> bool {
        self.0.lock().tracked.contains(&number)
    }

    /// Lets those that are destroyed stay until they are no longer held.
    pub fn hold(&self, held: bool) {
        let mut given = self.0.lock();
        given.held = held;
        if !held {
            given.dying.clear();
        }
    }

    fn domctl(&self, op: &mut XenDomctl) -> Result<u64, Errno> {
        let mut given = self.0.lock();
        let number = op.domain;
        match op.cmd {
            XEN_DOMCTL_CREATEDOMAIN => {
                op.domain = Self::FIRST + given.made;
                given.domains.insert(op.domain, 0);
                given.pools.set_domain(op.domain.into(), op.payload::<XenDomctlCreatedomain>().cpupool_id);
                given.made += 1;
            }
            XEN_DOMCTL_GETDOMAININFO => {
                let info = given.info(number).ok_or(Errno::ESRCH)?;
                op.set_payload(&info);
            }
            XEN_DOMCTL_MAX_MEM => {
                given.limits.insert(number, op.payload::<XenDomctlMaxMem>().max_memkb);
            }
            XEN_DOMCTL_SHADOW_OP => match op.payload::<XenDomctlShadowOp>().op {
                XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY => drop(given.tracked.insert(number)),
                XEN_DOMCTL_SHADOW_OP_OFF => drop(given.tracked.remove(&number)),
                _ => {}
            },
            XEN_DOMCTL_RESUMEDOMAIN if given.down.remove(&number).is_some() => {
                *given.resumed.entry(number).or_default() += 1;
            }
            XEN_DOMCTL_DESTROYDOMAIN => {
                given.domains.remove(&number).ok_or(Errno::ESRCH)?;
                if given.held {
                    given.dying.insert(number);
                }
            }
            _ => {}
        }
        Ok(0)
    }

    fn sysctl(&self, op: &mut XenSysctl) -> Result<u64, Errno> {
        match op.cmd {
            XEN_SYSCTL_PHYSINFO => op.set_payload(&XenSysctlPhysinfo {
                total_pages: Self::FRAMES,
                free_pages: self.free(),
                nr_cpus: 1,
                ..Default::default()
            }),
            XEN_SYSCTL_GETDOMAININFOLIST => {
                let given = self.0.lock();
                let mut list: XenSysctlGetdomaininfolist = op.payload();
                let known = given.domains.keys().chain(&given.dying).copied().collect::<BTreeSet<u16>>();
                let from = known.range(list.first_domain..).take(list.max_domains as usize);
                list.num_domains = 0;
                for info in from.filter_map(|number| given.info(*number)) {
                    let size = size_of::<XenDomctlGetdomaininfo>() as u64;
                    with_arg(list.buffer + u64::from(list.num_domains) * size, |place| {
                        *place = info;
                        Ok(0)
                    })?;
                    list.num_domains += 1;
                }
                op.set_payload(&list);
            }
            XEN_SYSCTL_SCHED_ID => op.set_payload(&XenSysctlSchedId { sched_id: XEN_SCHEDULER_CREDIT2 }),
            XEN_SYSCTL_CPU_HOTPLUG => self.0.lock().pools.hotplug(&op.payload())?,
            XEN_SYSCTL_CPUPOOL_OP => {
                let mut wanted: XenSysctlCpupoolOp = op.payload();
                self.0.lock().pools.op(&mut wanted, |at, bits| {
                    with_arg(at, |place: &mut u64| {
                        *place = bits;
                        Ok(0)
                    })
                })?;
                op.set_payload(&wanted);
            }
            _ => return Err(Errno::ENOSYS),
        }
        Ok(0)
    }

    fn populate(&self, op: &XenMemoryReservation) -> u64 {
        *self.0.lock().domains.entry(op.domid).or_default() += op.nr_extents;
        op.nr_extents
    }
}

impl Given {
    fn info(&self, number: u16) -> Option<XenDomctlGetdomaininfo> {
        let alive = self.domains.get(&number);
        let mut flags = match alive {
            Some(_) if self.running.contains(&number) => 0,
            Some(_) => XEN_DOMINF_PAUSED,
            None => XEN_DOMINF_DYING,
        };
        if let Some(reason) = self.down.get(&number) {
            flags |= XEN_DOMINF_SHUTDOWN | reason << XEN_DOMINF_SHUTDOWNSHIFT;
        }
        let tot_pages = alive.copied().or(self.dying.contains(&number).then_some(0))?;
        let cpupool = self.pools.of_domain(number.into());
        Some(XenDomctlGetdomaininfo { domain: number, flags, tot_pages, cpupool, ..Default::default() })
    }
}

/// The machine, and for all else the stand-in.
struct Both(Machine, Loopback);

impl Hypervisor for Both {
    fn hypercall(&mut self, number: u32, args: [u64; 5]) -> i64 {
        let result = match number {
            __HYPERVISOR_DOMCTL => with_arg(args[0], |op| self.0.domctl(op)),
            __HYPERVISOR_SYSCTL => with_arg(args[0], |op| self.0.sysctl(op)),
            __HYPERVISOR_MEMORY_OP if args[0] as u32 & 0x3f == XENMEM_POPULATE_PHYSMAP => {
                with_arg(args[1], |op| Ok(self.0.populate(op)))
            }
            __HYPERVISOR_MEMORY_OP => Ok(0),
            _ => return self.1.hypercall(number, args),
        };
        result.map_or_else(Errno::negated, |value| value as i64)
    }
}
