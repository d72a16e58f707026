//! Requests to a running domain, through its nodes in the store and by the hypervisor.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use pvrt::executor::{Either, select, time};
use pvrt::hypercall::domctl;
use ring_abi::errno::Errno;

use super::{Domain, Toolstack, nodes, uuid};
use crate::builder::SLACK_KIB;
use crate::config::{DomainConfig, MEMORY_MAX_MIB, check_name};
use crate::xenstore::XsError;

/// How long a domain may take to acknowledge a request: as long as with Xen's `xl`.
const ACKNOWLEDGE_NS: u64 = 60_000_000_000;
/// The node of requests, under `control`.
const REQUEST: &str = "shutdown";

impl Toolstack {
    /// Asks a domain to shut down for `reason` (`poweroff`, `reboot`).
    ///
    /// # Errors
    /// The store's.
    pub fn request(&self, domain: &Domain, reason: &str) -> Result<(), String> {
        nodes::write_control(&self.0.store, domain.id, REQUEST, reason).map_err(store(domain))
    }

    /// Waits until a domain has acknowledged a [`Toolstack::request`], or is over.
    ///
    /// # Errors
    /// The domain did not acknowledge in time, or the store's error. The request stays, so the domain may
    /// still follow it.
    pub async fn acknowledged(&self, domain: &Domain) -> Result<(), String> {
        let over = self.wait_until(|_| domain.fate.lock().end.is_some());
        let taken = nodes::control_taken(&self.0.store, domain.id, REQUEST);
        match time::timeout(ACKNOWLEDGE_NS, select(taken, over)).await {
            Ok(Either::Left(taken)) => taken.map_err(store(domain)),
            Ok(Either::Right(())) => Ok(()),
            Err(_) => Err(format!("{}: no acknowledgement of the request within a minute", domain.name)),
        }
    }

    /// Sends a domain's kernel a magic SysRq key.
    ///
    /// # Errors
    /// The store's.
    pub fn sysrq(&self, domain: &Domain, key: char) -> Result<(), String> {
        nodes::write_control(&self.0.store, domain.id, "sysrq", key.encode_utf8(&mut [0; 4]))
            .map_err(store(domain))
    }

    /// Sends a vCPU the trigger `XEN_DOMCTL_SENDTRIGGER_*`.
    ///
    /// # Errors
    /// The hypervisor's reason.
    pub fn trigger(&self, domain: &Domain, trigger: u32, vcpu: u32) -> Result<(), String> {
        domctl::send_trigger(domain.id, trigger, vcpu).map_err(refused(domain))
    }

    /// Asks a domain's balloon driver to shrink or grow the domain to `kib` of memory, and lowers or raises the
    /// hypervisor's limit to that. The function does not wait for the driver. A domain whose driver does not shrink
    /// keeps its memory, and gets no more while it is above the limit.
    ///
    /// # Errors
    /// `kib` is more than the domain's maximum, or the store's or the hypervisor's reason.
    pub fn set_memory(&self, domain: &Domain, kib: u64) -> Result<(), String> {
        let (_, max_kib) = nodes::memory(&self.0.store, domain.id).map_err(store(domain))?;
        if kib > max_kib {
            return Err(format!(
                "{}: {kib} KiB are more than the domain's maximum of {max_kib} KiB; `xl mem-max` sets it",
                domain.name
            ));
        }
        domctl::max_mem(domain.id, kib + SLACK_KIB).map_err(refused(domain))?;
        nodes::write_memory(&self.0.store, domain.id, "target", kib).map_err(store(domain))?;
        self.keep(domain, |config| config.memory_mib = mib(kib));
        Ok(())
    }

    /// Keeps a change of a running domain in its configuration, as Xen's `xl` does, so that a reboot does not
    /// undo the change.
    fn keep(&self, domain: &Domain, change: impl FnOnce(&mut DomainConfig)) {
        if let Some(now) = self.0.domains.lock().get_mut(&domain.id) {
            change(Arc::make_mut(&mut now.config));
        }
    }

    /// Keeps a new scheduler weight and cap in the domain's configuration, for its next life.
    pub fn keep_share(&self, id: ring_abi::types::DomId, weight: u16, cap: u16) {
        if let Some(domain) = self.domain(id) {
            self.keep(&domain, |config| (config.cpu_weight, config.cap) = (weight, cap));
        }
    }

    /// Sets the most memory that a domain may be given.
    ///
    /// # Errors
    /// `kib` is less than the domain's memory target or more than any domain may have, or the store's or the
    /// hypervisor's reason.
    pub fn set_max_memory(&self, domain: &Domain, kib: u64) -> Result<(), String> {
        let (target_kib, _) = nodes::memory(&self.0.store, domain.id).map_err(store(domain))?;
        if kib < target_kib {
            return Err(format!(
                "{}: {kib} KiB are less than the {target_kib} KiB it is to have; `xl mem-set` sets them",
                domain.name
            ));
        }
        let most = MEMORY_MAX_MIB << 10;
        if kib > most {
            return Err(format!("{}: {kib} KiB are more than a domain may have, {most} KiB", domain.name));
        }
        domctl::max_mem(domain.id, kib + SLACK_KIB).map_err(refused(domain))?;
        nodes::write_memory(&self.0.store, domain.id, "static-max", kib).map_err(store(domain))?;
        self.keep(domain, |config| config.maxmem_mib = mib(kib));
        Ok(())
    }

    /// Asks a domain to use its first `count` vCPUs.
    ///
    /// # Errors
    /// The domain has fewer vCPUs, or the store's reason.
    pub async fn set_vcpus(&self, domain: &Domain, count: u32) -> Result<(), String> {
        let there_are = domain.config.maxvcpus;
        if count == 0 || count > there_are {
            return Err(format!("{}: it can have 1 to {there_are} vCPUs, not {count}", domain.name));
        }
        let wanted = || self.is_wanted(domain);
        nodes::write_vcpus(&self.0.store, domain.id, there_are, count, wanted)
            .await
            .map_err(store(domain))?;
        self.keep(domain, |config| config.vcpus = count);
        Ok(())
    }

    /// Gives a domain another name.
    ///
    /// # Errors
    /// Another domain has the name, the text is no valid name, or the store's reason.
    pub fn rename(&self, domain: &Domain, name: &str) -> Result<(), String> {
        check_name(name).map_err(|why| format!("{name}: {why}"))?;
        // There is no await between check and change, since the making of a domain also claims a name in one
        // step.
        if !self.is_free_name(name) {
            return Err(format!("{name}: a domain of that name exists"));
        }
        match self.0.domains.lock().get_mut(&domain.id) {
            Some(domain) => domain.name = name.into(),
            None => return Err(format!("{}: no such domain", domain.name)),
        }
        self.follow_name(domain, name);
        nodes::rename(&self.0.store, domain.id, &uuid::text(&domain.uuid), name).map_err(store(domain))
    }
}

impl Toolstack {
    /// Tells everybody who knows the domain by its name of another name.
    pub(super) fn follow_name(&self, domain: &Domain, name: &str) {
        self.0.consoles.rename(domain.id, name);
        self.0.network.rename(&domain.name, name);
    }
}

/// KiB in MiB, rounded up, at least 1.
fn mib(kib: u64) -> u64 {
    kib.div_ceil(1024).max(1)
}

fn store(domain: &Domain) -> impl Fn(XsError) -> String {
    move |error| format!("{}: xenstore: {}", domain.name, error.name())
}

fn refused(domain: &Domain) -> impl Fn(Errno) -> String {
    move |errno| format!("{}: {errno}", domain.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolstack::End;
    use crate::toolstack::disks::tests::start;
    use crate::xenstore::Nodes;
    use pvrt::executor::{block_on_test, spawn};
    use pvrt::host::Machine;
    use ring_abi::sched::SHUTDOWN_POWEROFF;

    const NODE: &str = "/local/domain/1/control/shutdown";

    #[test]
    fn a_request_is_over_when_its_domain_has_taken_it() {
        // Most kernels empty the node; some remove it.
        for gone in [false, true] {
            let (toolstack, client) = start();
            block_on_test(async {
                let one = toolstack.find("one").unwrap();
                toolstack.request(&one, "poweroff").unwrap();
                assert_eq!(client.read_str(NODE).as_deref(), Ok("poweroff"));
                let begun = time::now_ns();
                spawn(async move {
                    time::sleep(5_000_000_000).await;
                    if gone { client.rm(NODE) } else { client.write(NODE, "") }.unwrap();
                });
                assert_eq!(toolstack.acknowledged(&one).await, Ok(()));
                let took = time::now_ns() - begun;
                assert!((5_000_000_000..6_000_000_000).contains(&took), "{took} ns");
            });
        }
    }

    #[test]
    fn one_that_does_not_take_it_has_a_minute() {
        let (toolstack, client) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            toolstack.request(&one, "reboot").unwrap();
            let begun = time::now_ns();
            let told = toolstack.acknowledged(&one).await.unwrap_err();
            assert_eq!(told, "one: no acknowledgement of the request within a minute");
            assert!(time::now_ns() - begun >= ACKNOWLEDGE_NS);
            assert_eq!(client.read_str(NODE).as_deref(), Ok("reboot"), "it may still follow it");
        });
    }

    /// As with `libxl_set_memory_target` and `libxl_domain_setmaxmem`, the hypervisor's limit follows the target at
    /// once, whether or not the domain's balloon driver does.
    #[test]
    fn a_domain_that_keeps_its_memory_is_asked_and_bound_all_the_same() {
        let machine = Machine::install();
        let (toolstack, client) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            for (node, kib) in [("target", "65536"), ("static-max", "131072")] {
                client.write(&alloc::format!("/local/domain/1/memory/{node}"), kib).unwrap();
            }
            let target = || client.read_str("/local/domain/1/memory/target").unwrap();
            for kib in [131_072, 32_768, 98_304, 0] {
                assert_eq!(toolstack.set_memory(&one, kib), Ok(()));
                assert_eq!((machine.limit_kib(1), target()), (Some(kib + 1024), alloc::format!("{kib}")));
            }
            let more = toolstack.set_memory(&one, 131_073).unwrap_err();
            assert!(more.contains("maximum of 131072 KiB"), "{more}");
            toolstack.set_memory(&one, 65_537).unwrap();
            assert!(toolstack.set_max_memory(&one, 65_536).unwrap_err().contains("less than the 65537 KiB"));
            // With a higher maximum, the domain's target may be raised.
            toolstack.set_max_memory(&one, 262_144).unwrap();
            toolstack.set_memory(&one, 200_000).unwrap();
            assert_eq!(machine.limit_kib(1), Some(201_024));
            // No domain may have more than a configuration may ask for.
            let most = 16u64 << 30;
            toolstack.set_max_memory(&one, most).unwrap();
            let more = toolstack.set_max_memory(&one, most + 1).unwrap_err();
            assert_eq!(more, "one: 17179869185 KiB are more than a domain may have, 17179869184 KiB");
            toolstack.set_max_memory(&one, 262_144).unwrap();
            // A reboot keeps the changes.
            let now = toolstack.find("one").unwrap().config;
            assert_eq!((now.memory_mib, now.maxmem_mib), (196, 256));
        });
    }

    #[test]
    fn nobody_waits_for_a_domain_that_is_over() {
        let (toolstack, client) = start();
        block_on_test(async {
            let one = toolstack.find("one").unwrap();
            toolstack.request(&one, "poweroff").unwrap();
            let begun = time::now_ns();
            toolstack.set_fate(&one, |fate| fate.end = Some(End::ShutDown(SHUTDOWN_POWEROFF)));
            assert_eq!(toolstack.acknowledged(&one).await, Ok(()));
            assert!(time::now_ns() - begun < ACKNOWLEDGE_NS);
            assert_eq!(client.read_str(NODE).as_deref(), Ok("poweroff"));
        });
    }
}
