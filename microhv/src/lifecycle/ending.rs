//! What is left of domains that nobody refers to any more, freed in pieces.
//!
//! A dead domain whose pages others still map stays in the list as a husk, since no other domain may have its number.
//! The domain's vCPUs, grant records and ports are freed as soon as nobody refers to the domain. What stays is the
//! `Domain` itself, at most [`HUSK_BYTES`] of the heap, and the frame of its `shared_info`, whatever the domain had.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::Mfn;

use crate::Hypervisor;
use crate::domain::{Domain, Vcpu};
use crate::evtchn::state::PortRecords;
use crate::gnttab::state::GrantRecords;
use crate::platform::Platform;

/// Most bytes of the heap that a dead domain takes while others map its pages. On top come the counts of the mapped
/// pages: 512 bytes for each 512 MiB of the machine's memory.
pub(crate) const HUSK_BYTES: usize = 4096;
const _: () = assert!(size_of::<Domain>() + 256 <= HUSK_BYTES);

/// The part of a domain that goes after all other parts.
#[derive(Debug)]
enum Last {
    /// A domain that is in no list any more, whose `shared_info` nobody owns.
    Domain(Arc<Domain>),
    /// The frame of a `shared_info` that was never lent: the domain was not made to the end.
    Frame(Mfn),
    /// Nothing yet: the domain stays as a husk.
    Husk,
}

/// The parts of a domain that are to be freed.
#[derive(Debug)]
pub(super) struct Ending {
    vcpus: Vec<Vcpu>,
    ports: Option<PortRecords>,
    grants: Option<GrantRecords>,
    last: Last,
}

impl Ending {
    /// A domain to which nobody else refers.
    pub(super) fn of_domain(mut domain: Arc<Domain>) -> Self {
        let mut ending = match Arc::get_mut(&mut domain) {
            Some(domain) => Self::of_husk(domain),
            None => Self { vcpus: Vec::new(), ports: None, grants: None, last: Last::Husk },
        };
        ending.last = Last::Domain(domain);
        ending
    }

    /// The parts that are freed of a domain that is dead and must stay in the list.
    pub(super) fn of_husk(domain: &mut Domain) -> Self {
        let vcpus = core::mem::take(&mut domain.vcpus);
        let (ports, grants) = (domain.events.take_records(), domain.grants.take_records());
        Self { vcpus, ports: Some(ports), grants: Some(grants), last: Last::Husk }
    }

    /// The vCPUs of a domain whose making was given up.
    pub(super) fn of_vcpus(vcpus: Vec<Vcpu>, shared_mfn: Mfn) -> Self {
        Self { vcpus, ports: None, grants: None, last: Last::Frame(shared_mfn) }
    }

    /// Frees a piece of the records that the domain itself has. `false`: the rest is freed at once.
    fn shrink(&mut self) -> bool {
        self.ports.as_mut().is_some_and(PortRecords::shrink)
            || self.grants.as_mut().is_some_and(GrantRecords::shrink)
    }
}

impl<P: Platform> Hypervisor<P> {
    /// Lets [`Hypervisor::reap_dead`] free what is left of a domain.
    pub(super) fn end_later(&self, ending: Ending) {
        self.unfinished.keep_ending(ending);
        self.reap_dead();
    }

    /// Frees domains that are dead and of which nobody has a page or a reference any more, until other work waits.
    pub fn reap_dead(&self) {
        if self.unfinished.has_dead() {
            self.reap();
        }
    }

    #[cold]
    #[inline(never)]
    fn reap(&self) {
        // A domain's number may be another's as soon as the domain leaves the list. (I10)
        let leaves = |domain: &Domain| domain.mm.tot_pages() == 0 && self.disown(domain.shared_info_mfn);
        while let Some(mut ending) = self.unfinished.take_ending(&self.domains, leaves) {
            if !self.end_some(&mut ending) {
                self.unfinished.keep_ending(ending);
                return;
            }
            // `end_some` does not check for pending work if little is left.
            if self.platform.work_pending() {
                return;
            }
        }
    }

    /// Frees what is left of a domain. `false`: something else waits, and some is left.
    #[inline(never)]
    fn end_some(&self, ending: &mut Ending) -> bool {
        while let Some(vcpu) = ending.vcpus.last() {
            self.time.remove_timers(vcpu);
            self.platform.destroy_window(&vcpu.window);
            ending.vcpus.truncate(ending.vcpus.len() - 1); // freed where it is: taking it out would copy it
            if self.platform.work_pending() {
                return false;
            }
        }
        while ending.shrink() {
            if self.platform.work_pending() {
                return false;
            }
        }
        match &ending.last {
            Last::Domain(domain) => self.put_page(domain.shared_info_mfn), // freed now, or when the last mapping of it goes
            Last::Frame(mfn) => self.frames.release(*mfn, 0),
            Last::Husk => {}
        }
        true
    }
}
