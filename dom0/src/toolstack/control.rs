//! What a running domain is asked and told: through its nodes in the store, and by the hypervisor.

use alloc::format;
use alloc::string::String;

use pvrt::hypercall::domctl;
use ring_abi::errno::Errno;

use super::{Domain, Toolstack, nodes, uuid};
use crate::builder::SLACK_KIB;
use crate::config::check_name;
use crate::xenstore::XsError;

impl Toolstack {
    /// Asks a domain to do what `reason` (`poweroff`, `reboot`) says.
    ///
    /// # Errors
    /// The store's.
    pub fn request(&self, domain: &Domain, reason: &str) -> Result<(), String> {
        nodes::write_control(&self.0.store, domain.id, "shutdown", reason).map_err(store(domain))
    }

    /// Sends a domain's kernel a magic SysRq key.
    ///
    /// # Errors
    /// The store's.
    pub fn sysrq(&self, domain: &Domain, key: char) -> Result<(), String> {
        nodes::write_control(&self.0.store, domain.id, "sysrq", key.encode_utf8(&mut [0; 4]))
            .map_err(store(domain))
    }

    /// Sends a vCPU what `XEN_DOMCTL_SENDTRIGGER_*` says.
    ///
    /// # Errors
    /// The hypervisor's reason.
    pub fn trigger(&self, domain: &Domain, trigger: u32, vcpu: u32) -> Result<(), String> {
        domctl::send_trigger(domain.id, trigger, vcpu).map_err(refused(domain))
    }

    /// Asks a domain's balloon driver to leave it with `kib` of memory, and lets it have no more.
    ///
    /// # Errors
    /// It is more than the domain's maximum, or the store's or the hypervisor's reason.
    pub fn set_memory(&self, domain: &Domain, kib: u64) -> Result<(), String> {
        let (_, max_kib) = nodes::memory(&self.0.store, domain.id).map_err(store(domain))?;
        if kib > max_kib {
            return Err(format!(
                "{}: {kib} KiB are more than the domain's maximum of {max_kib} KiB; `xl mem-max` sets it",
                domain.name
            ));
        }
        domctl::max_mem(domain.id, kib + SLACK_KIB).map_err(refused(domain))?;
        nodes::write_memory(&self.0.store, domain.id, "target", kib).map_err(store(domain))
    }

    /// Sets the most memory that a domain may be given.
    ///
    /// # Errors
    /// It is less than what the domain has been told to have, or the store's or the hypervisor's reason.
    pub fn set_max_memory(&self, domain: &Domain, kib: u64) -> Result<(), String> {
        let (target_kib, _) = nodes::memory(&self.0.store, domain.id).map_err(store(domain))?;
        if kib < target_kib {
            return Err(format!(
                "{}: {kib} KiB are less than the {target_kib} KiB it is to have; `xl mem-set` sets them",
                domain.name
            ));
        }
        domctl::max_mem(domain.id, kib + SLACK_KIB).map_err(refused(domain))?;
        nodes::write_memory(&self.0.store, domain.id, "static-max", kib).map_err(store(domain))
    }

    /// Asks a domain to use its first `count` vCPUs.
    ///
    /// # Errors
    /// There are not so many, or the store's reason.
    pub fn set_vcpus(&self, domain: &Domain, count: u32) -> Result<(), String> {
        let there_are = domain.config.maxvcpus;
        if count == 0 || count > there_are {
            return Err(format!("{}: it can have 1 to {there_are} vCPUs, not {count}", domain.name));
        }
        nodes::write_vcpus(&self.0.store, domain.id, there_are, count).map_err(store(domain))
    }

    /// Gives a domain another name.
    ///
    /// # Errors
    /// Another has it, it is no name, or the store's reason.
    pub fn rename(&self, domain: &Domain, name: &str) -> Result<(), String> {
        check_name(name).map_err(|why| format!("{name}: {why}"))?;
        {
            let mut domains = self.0.domains.lock();
            if name == nodes::OWN_NAME || domains.values().any(|other| other.name == name) {
                return Err(format!("{name}: a domain of that name exists"));
            }
            let Some(domain) = domains.get_mut(&domain.id) else {
                return Err(format!("{}: no such domain", domain.name));
            };
            domain.name = name.into();
        }
        nodes::rename(&self.0.store, domain.id, &uuid::text(&domain.uuid), name).map_err(store(domain))
    }
}

fn store(domain: &Domain) -> impl Fn(XsError) -> String {
    move |error| format!("{}: xenstore: {}", domain.name, error.name())
}

fn refused(domain: &Domain) -> impl Fn(Errno) -> String {
    move |errno| format!("{}: {errno}", domain.name)
}
