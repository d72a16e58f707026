//! CPU pools: their names, which the store has at libxl's place, and what is checked before the hypervisor is asked.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::hypercall::sysctl::{self, CpuPool};
use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2, XEN_SCHEDULER_NULL};
use ring_abi::errno::Errno;
use ring_abi::types::DomId;

use super::{Domain, Toolstack, domain_number, uuid};
use crate::config::{USUAL_WEIGHT, check_name};
use crate::xenstore::Nodes;

/// The name of the pool with which the machine begins.
const FIRST_POOL: &str = "Pool-0";

/// The schedulers that a pool may have, as Xen's tools call them.
const SCHEDULERS: [(u32, &str); 2] = [(XEN_SCHEDULER_CREDIT2, "credit2"), (XEN_SCHEDULER_NULL, "null")];

/// What a scheduler is called.
pub fn scheduler_name(scheduler: u32) -> &'static str {
    SCHEDULERS.iter().find(|(number, _)| *number == scheduler).map_or("unknown", |(_, name)| name)
}

/// The scheduler of this name.
pub fn scheduler_number(name: &str) -> Option<u32> {
    SCHEDULERS.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
}

/// The numbers in a set of CPUs.
pub fn cpu_numbers(cpus: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |cpu| cpus >> cpu & 1 != 0)
}

/// A set of CPUs as the tools show it: `0,2,3`.
pub fn cpu_list(cpus: u64) -> String {
    let all: Vec<String> = cpu_numbers(cpus).map(|cpu| cpu.to_string()).collect();
    all.join(",")
}

/// The directory of a pool in the store.
fn directory(id: u32) -> String {
    format!("/local/pool/{id}")
}

/// Does something with each CPU of a set until that fails. The error says what was done before.
fn each(cpus: u64, mut act: impl FnMut(u32) -> Result<(), String>) -> Result<(), String> {
    cpu_numbers(cpus).try_for_each(|cpu| {
        act(cpu).map_err(|why| match cpus & ((1 << cpu) - 1) {
            0 => why,
            done => format!("{why}; done for CPU {}", cpu_list(done)),
        })
    })
}

impl Toolstack {
    /// The pools, in the order of their numbers.
    ///
    /// # Errors
    /// The hypervisor's reason.
    pub fn pools(&self) -> Result<Vec<CpuPool>, String> {
        let mut pools = Vec::new();
        let mut next = 0;
        loop {
            match sysctl::cpu_pool(next) {
                Ok(pool) => {
                    next = pool.id + 1;
                    pools.push(pool);
                }
                Err(Errno::ENOENT) => return Ok(pools),
                Err(errno) => return Err(format!("CPU pools: {errno}")),
            }
        }
    }

    /// What a pool is called.
    pub fn pool_name(&self, id: u32) -> String {
        let name = self.0.store.client().read_str(&format!("{}/name", directory(id)));
        name.unwrap_or_else(|_| if id == 0 { FIRST_POOL.to_string() } else { format!("Pool-{id}") })
    }

    /// The pool of this name or number.
    ///
    /// # Errors
    /// There is none, or the hypervisor's reason.
    pub fn find_pool(&self, text: &str) -> Result<CpuPool, String> {
        let number = domain_number(text).map(|id| u32::from(id.raw()));
        let is_meant = |pool: &CpuPool| match number {
            Some(number) => pool.id == number,
            None => self.pool_name(pool.id) == text,
        };
        self.pools()?.into_iter().find(is_meant).ok_or_else(|| format!("{text}: no such CPU pool"))
    }

    /// Fails unless a pool may have this name.
    ///
    /// # Errors
    /// The text is no valid name, or a pool has it.
    pub fn check_pool_name(&self, name: &str) -> Result<(), String> {
        check_name(name).map_err(|why| format!("{name}: {why}"))?;
        if self.find_pool(name).is_ok() {
            Err(format!("{name}: a CPU pool of that name exists"))
        } else {
            Ok(())
        }
    }

    /// Makes a pool of these CPUs, which are free.
    ///
    /// # Errors
    /// The hypervisor's reason, or the store's. Then there is no pool.
    pub fn create_pool(&self, name: &str, scheduler: u32, cpus: u64) -> Result<u32, String> {
        let id = sysctl::create_cpu_pool(scheduler).map_err(|errno| format!("{name}: {errno}"))?;
        let made = self.add_pool_cpus(id, cpus).and_then(|()| {
            let client = self.0.store.client();
            let written = client.atomically(|tx| {
                tx.write(&format!("{}/uuid", directory(id)), uuid::text(&uuid::fresh()))?;
                tx.write(&format!("{}/name", directory(id)), name)
            });
            written.map_err(|error| format!("{name}: xenstore: {}", error.name()))
        });
        if made.is_err() {
            // What was made goes again; why it was not made whole is what counts.
            let _ = self.end_pool(id);
        }
        made.map(|()| id)
    }

    /// Adds CPUs to a pool.
    ///
    /// # Errors
    /// The hypervisor's reason for the first CPU that cannot be added.
    pub fn add_pool_cpus(&self, id: u32, cpus: u64) -> Result<(), String> {
        each(cpus, |cpu| {
            sysctl::set_pool_cpu(id, cpu, true).map_err(|errno| match errno {
                Errno::ENODEV => self.not_free(cpu),
                Errno::EINVAL => format!("CPU {cpu}: there is no such CPU"),
                other => format!("CPU {cpu}: {other}"),
            })
        })
    }

    /// Why a CPU cannot come into a pool, if the CPU is not free.
    pub fn not_free(&self, cpu: u32) -> String {
        let has = |pool: &CpuPool| cpu_numbers(pool.cpus).any(|number| number == cpu);
        match self.pools().ok().and_then(|pools| pools.into_iter().find(has)) {
            Some(pool) => {
                let pool = self.pool_name(pool.id);
                format!(
                    "CPU {cpu} is not free: `xl cpupool-cpu-remove {pool} {cpu}` takes it out of the CPU pool {pool}"
                )
            }
            None => format!("CPU {cpu} is not online"),
        }
    }

    /// Why the hypervisor refuses the affinity of a vCPU in this pool, in words.
    pub fn affinity_refused(&self, pool: u32, errno: Errno) -> String {
        match sysctl::cpu_pool(pool) {
            Ok(known) if errno == Errno::EINVAL && known.id == pool => {
                let (name, cpus) = (self.pool_name(pool), cpu_list(known.cpus));
                format!("none of the CPUs is in the CPU pool {name}, which has {cpus}")
            }
            _ => format!("{errno}"),
        }
    }

    /// Takes CPUs out of a pool.
    ///
    /// # Errors
    /// The hypervisor's reason for the first CPU that cannot be taken.
    pub fn remove_pool_cpus(&self, id: u32, cpus: u64) -> Result<(), String> {
        let name = self.pool_name(id);
        each(cpus, |cpu| {
            sysctl::set_pool_cpu(id, cpu, false).map_err(|errno| match errno {
                Errno::EBUSY => format!("CPU {cpu} is the last of the CPU pool {name}, which has domains"),
                Errno::EADDRNOTAVAIL => format!("CPU {cpu} is not in the CPU pool {name}"),
                Errno::EINVAL => format!("CPU {cpu}: there is no such CPU"),
                other => format!("CPU {cpu}: {other}"),
            })
        })
    }

    /// Ends a pool without domains; its CPUs are free then.
    ///
    /// # Errors
    /// The pool has domains, or the hypervisor's reason.
    pub fn destroy_pool(&self, pool: &CpuPool) -> Result<(), String> {
        if pool.domains != 0 {
            return Err(format!(
                "{}: {} domain(s) are in this CPU pool",
                self.pool_name(pool.id),
                pool.domains
            ));
        }
        self.end_pool(pool.id)
    }

    fn end_pool(&self, id: u32) -> Result<(), String> {
        let name = self.pool_name(id);
        let pool = sysctl::cpu_pool(id).map_err(|errno| format!("{name}: {errno}"))?;
        self.remove_pool_cpus(id, pool.cpus)?;
        sysctl::destroy_cpu_pool(id).map_err(|errno| format!("{name}: {errno}"))?;
        // A pool whose name could not be written has no directory.
        let _ = self.0.store.client().rm(&directory(id));
        Ok(())
    }

    /// Gives a pool another name, which the configurations of its domains have from then on.
    ///
    /// # Errors
    /// As [`Toolstack::check_pool_name`] says, or the store's reason.
    pub fn rename_pool(&self, pool: &CpuPool, name: &str) -> Result<(), String> {
        self.check_pool_name(name)?;
        let old = self.pool_name(pool.id);
        let written = self.0.store.client().write(&format!("{}/name", directory(pool.id)), name);
        written.map_err(|error| format!("{old}: xenstore: {}", error.name()))?;
        for domain in self.0.domains.lock().values_mut() {
            if domain.config.pool.as_deref() == Some(&*old) {
                Arc::make_mut(&mut domain.config).pool = Some(name.to_string());
            }
        }
        Ok(())
    }

    /// Moves a domain to another pool, for its next lives too.
    ///
    /// # Errors
    /// The hypervisor's reason.
    pub fn migrate(&self, id: DomId, pool: &CpuPool) -> Result<(), String> {
        let name = self.name(id);
        sysctl::move_to_cpu_pool(id, pool.id).map_err(|errno| match errno {
            Errno::EPERM => format!("{name}: dom0 stays in its CPU pool"),
            Errno::ENOENT => format!("{}: the CPU pool has no CPU", self.pool_name(pool.id)),
            other => format!("{name}: {other}"),
        })?;
        let keep = |domain: &mut Domain| {
            let config = Arc::make_mut(&mut domain.config);
            config.pool = Some(self.pool_name(pool.id));
            // As for the life that moved: weight and cap begin anew, and whose CPUs are all elsewhere may use any here.
            (config.cpu_weight, config.cap) = (USUAL_WEIGHT, 0);
            config.cpus.iter_mut().for_each(|set| *set = set.within(pool.cpus));
        };
        self.0.domains.lock().get_mut(&id).map(keep);
        Ok(())
    }
}
