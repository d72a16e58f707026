//! What is wrong after a step, and at the end of a scenario.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use ring_abi::types::{DomId, Port};

use super::*;
use crate::evtchn::state::{PortCell, PortState};
use crate::testing::Remembered;

/// Steps between two looks at all page tables.
const CHECK_EVERY: u32 = 16;
/// Ports of a domain that are looked at.
const MOST_PORTS: u32 = 64;
/// The most calls that it takes to destroy a domain.
const MOST_CALLS: u32 = 100_000;

impl Wild {
    /// What the CPUs remember.
    #[must_use]
    pub fn remembered(&self) -> Vec<Remembered> {
        self.hv.platform.remembered()
    }

    /// What is wrong after a step. With `all`, the page tables are walked in any case.
    pub fn wrong(&self, all: bool) -> Vec<String> {
        let mut wrong = core::mem::take(&mut self.state().wrong);
        let remembered = self.hv.platform.violations();
        let ended = self.unload_ended();
        wrong.extend(remembered.into_iter().filter(|said| !ended.iter().any(|cpu| said.starts_with(cpu))));
        self.forget_dead();
        let (is_ending, steps) = {
            let state = self.state();
            (state.doms.iter().flatten().any(|domain| domain.is_dying()), state.steps)
        };
        if all || is_ending || steps.is_multiple_of(CHECK_EVERY) {
            wrong.extend(self.hv.check_frames());
            self.check_grants(&mut wrong);
            self.check_ports(&mut wrong);
        }
        wrong
    }

    /// The control domain's CPU may read a stale request through a page that it still remembers, and so destroy a
    /// domain whose vCPUs are loaded. A real toolstack's domain would have left its CPUs, so what these remember does
    /// not count. Returns how messages about these CPUs begin.
    pub(super) fn unload_ended(&self) -> Vec<String> {
        let is_ended = |cpu: &usize| {
            let loaded = self.state().loaded[*cpu];
            loaded.and_then(|(dom, _)| self.domain(dom)).is_some_and(|domain| domain.is_dying())
        };
        let ended: Vec<usize> = (0..self.cpus).filter(is_ended).collect();
        ended.iter().for_each(|cpu| self.unload(*cpu));
        ended.iter().map(|cpu| format!("CPU {cpu}: ")).collect()
    }

    /// Drops the references to domains that are dead.
    pub(super) fn forget_dead(&self) {
        for dom in 1..DOMAINS {
            if self.domain(dom).is_some_and(|domain| domain.dying() == crate::domain::DyingState::Dead) {
                let mut state = self.state();
                state.mappings.retain(|mapping| mapping.dom != dom);
                let domain = state.doms[dom].take();
                drop((state, domain));
                self.hv.reap_dead();
            }
        }
    }

    /// A CPU remembers another domain's frame only while its tables map the frame, or the owner still sees the grant in use.
    /// The control domain is left out: it maps what it likes, and lets others map its own pages.
    pub(super) fn check_grants(&self, wrong: &mut Vec<String>) {
        for leaf in self.hv.platform.remembered() {
            if leaf.by == leaf.owner || [leaf.by, leaf.owner].contains(&DomId::new(0)) {
                continue;
            }
            let Some(domain) = self.domain(leaf.by.raw().into()) else { continue };
            if !domain.grants.may_remember(leaf.frame, leaf.writable)
                && self.hv.platform.stale(leaf.cpu, Some(leaf.va)).is_some()
            {
                wrong.push(format!("{leaf:x?} is a page of another's that is no longer granted"));
            }
        }
    }

    /// Each port that is bound to another domain's has a peer that points back. (I16)
    fn check_ports(&self, wrong: &mut Vec<String>) {
        let of = |domain: &Arc<Domain>, port: Port| {
            let cell = domain.events.cell(port)?;
            match &*cell.state.lock() {
                PortState::Interdomain { remote, port } => Some((remote.clone(), *port)),
                _ => None,
            }
        };
        for dom in 0..DOMAINS {
            let Some(domain) = self.domain(dom).filter(|domain| !domain.is_dying()) else { continue };
            let (open, counted) = {
                let binding = domain.events.binding.lock();
                let cells = (0..binding.known()).filter_map(|port| domain.events.cell(Port::new(port)));
                let is_open = |cell: &&PortCell| !matches!(*cell.state.lock(), PortState::Free);
                (cells.filter(is_open).count(), binding.open as usize)
            };
            if open != counted {
                wrong.push(format!("{open} ports of {domain:?} are open, {counted} count as open"));
            }
            for port in (0..domain.events.end().min(MOST_PORTS)).map(Port::new) {
                let Some((remote, there)) = of(&domain, port) else { continue };
                let back = of(&remote, there);
                if !back.is_some_and(|(peer, here)| Arc::ptr_eq(&peer, &domain) && here == port) {
                    wrong.push(format!(
                        "{port:?} of {domain:?} is bound to {there:?}, which does not point back"
                    ));
                }
            }
        }
    }

    /// Destroys all domains. Returns what is wrong then.
    pub fn end(&self) -> Vec<String> {
        let mut wrong = self.wrong(true);
        if !wrong.is_empty() {
            return wrong;
        }
        let platform = &self.hv.platform;
        platform.return_to_guest();
        platform.set_adversary(0);
        for cpu in 0..self.cpus {
            self.unload(cpu);
        }
        for dom in (0..DOMAINS).rev() {
            let Some(domain) = self.state().doms[dom].take() else { continue };
            // Each call is soon interrupted, and stays so until it has returned.
            let mut calls = 0;
            self.hv.platform.interrupt_after(0);
            while self.hv.kill_domain(&domain).is_err() {
                calls += 1;
                self.hv.platform.interrupt_after(u64::from(calls % 4));
                if calls == MOST_CALLS {
                    return vec![format!("the end of {domain:?} makes no progress")];
                }
            }
            self.hv.platform.return_to_guest();
            drop(domain);
            self.hv.reap_dead();
            wrong.extend(self.hv.check_frames());
            wrong.extend(self.hv.platform.violations());
            if !wrong.is_empty() {
                return wrong;
            }
        }
        self.hv.reap_dead();
        let left = self.hv.frames.free_pages();
        if left != self.free {
            wrong.push(format!("{left} pages came back of {}", self.free));
        }
        wrong
    }
}
