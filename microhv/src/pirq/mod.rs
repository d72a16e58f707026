//! Physical interrupts as domains see them: PIRQs, and the messages that raise them.
//!
//! Only the hardware domain has devices, so one table serves. A PIRQ below 16 is the legacy line of that number; a PIRQ
//! from 16 on is a message (MSI or MSI-X) that the domain asked for. The hypervisor alone writes messages.
//!
//! The life of a message: `map` picks a vector and a PIRQ and writes the message masked. Binding the PIRQ to an event
//! channel unmasks the message, closing the channel masks the message, and `unmap` gives everything back. Messages are
//! edges: the local APIC gets its end of interrupt at once. Delivery masks a line until the domain says
//! `PHYSDEVOP_eoi`.

mod message;
pub mod pci;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::AtomicU32;

use ring_abi::types::{DomId, Pirq, Port};

use crate::Hypervisor;
use crate::domain::Domain;
use crate::evtchn::state::PortState;
use crate::evtchn::{EvtchnError, Opened, Publish};
use crate::nospec::At;
use crate::platform::{Platform, Vector};
use crate::sync::{Mutex, rank};
use message::Source;
use pci::{Config, PciFunction};

/// PIRQs there can be.
pub const NR_PIRQS: u32 = 256;
/// Legacy interrupt lines, whose PIRQs are their numbers.
pub const NR_LINES: u32 = 16;
/// First interrupt vector that devices get.
pub const FIRST_VECTOR: u8 = 0x40;
/// Last interrupt vector that devices get.
pub const LAST_VECTOR: u8 = 0xdf;
/// Guests raise this vector by `int 0x80`: no device gets it.
const GUEST_VECTOR: u8 = 0x80;

/// Why a request about a PIRQ is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PirqError {
    /// The domain has no such PIRQ.
    NoSuchPirq,
    /// The PIRQ is another domain's, or the line is not the domain's to use.
    NotPermitted,
    /// The PIRQ is bound to an event channel already.
    Bound,
    /// The function cannot send such messages.
    NoCapability,
    /// The function's table of messages has no such entry.
    NoSuchEntry,
    /// The message has a PIRQ already.
    Mapped,
    /// No PIRQ or vector is left.
    NoneFree,
    /// The port for the PIRQ is refused.
    Port(EvtchnError),
}

impl From<EvtchnError> for PirqError {
    fn from(error: EvtchnError) -> Self {
        Self::Port(error)
    }
}

/// A PIRQ that is mapped.
#[derive(Debug)]
struct Mapping {
    source: Source,
    vector: Vector,
    owner: DomId,
    /// The event channel that the PIRQ raises.
    bound: Option<(Arc<Domain>, Port)>,
    /// A line that waits for the domain's end of interrupt.
    in_service: bool,
}

#[derive(Debug)]
struct State {
    /// By number.
    pirqs: Box<[Option<Mapping>]>,
    /// PIRQ of each vector of the machine.
    vectors: Box<[Option<Pirq>]>,
}

impl State {
    fn mapping(&mut self, pirq: Pirq) -> Result<&mut Mapping, PirqError> {
        self.pirqs.at_mut(pirq.raw() as usize).and_then(Option::as_mut).ok_or(PirqError::NoSuchPirq)
    }

    /// The mapping of `pirq`, if the PIRQ is `domain`'s.
    fn owned(&mut self, pirq: Pirq, domain: &Domain) -> Result<&mut Mapping, PirqError> {
        let mapping = self.mapping(pirq)?;
        if mapping.owner == domain.id { Ok(mapping) } else { Err(PirqError::NoSuchPirq) }
    }

    /// A free PIRQ for a message: the `wanted` PIRQ, or any.
    fn free_pirq(&self, wanted: Option<Pirq>) -> Result<Pirq, PirqError> {
        let mut all = (NR_LINES..NR_PIRQS).map(Pirq::new);
        all.find(|&pirq| {
            wanted.is_none_or(|wanted| wanted == pirq)
                && self.pirqs.at(pirq.raw() as usize).is_some_and(Option::is_none)
        })
        .ok_or(PirqError::NoneFree)
    }

    fn free_vector(&self) -> Result<Vector, PirqError> {
        let is_free = |&raw: &u8| raw != GUEST_VECTOR && self.vectors[usize::from(raw)].is_none();
        (FIRST_VECTOR..=LAST_VECTOR).find(is_free).map(Vector).ok_or(PirqError::NoneFree)
    }

    /// Gives `pirq`, which is free, and a vector to a domain.
    fn map(&mut self, pirq: Pirq, source: Source, owner: DomId) -> Result<Vector, PirqError> {
        let vector = self.free_vector()?;
        self.vectors[usize::from(vector.0)] = Some(pirq);
        *self.pirqs.at_mut(pirq.raw() as usize).ok_or(PirqError::NoneFree)? =
            Some(Mapping { source, vector, owner, bound: None, in_service: false });
        Ok(vector)
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.pirqs.iter().flatten().map(|mapping| &mapping.source)
    }
}

/// The interrupts of the machine and the domains that have them.
#[derive(Debug)]
pub struct Irqs {
    state: Mutex<rank::Irqs, State>,
    /// What the hardware domain last wrote to the PCI address port.
    address: AtomicU32,
    /// Serialises the PCI ports.
    config: Mutex<rank::PciConfig, ()>,
}

impl Default for Irqs {
    fn default() -> Self {
        let state = State {
            pirqs: (0..NR_PIRQS).map(|_| None).collect(),
            vectors: (0..=u8::MAX).map(|_| None).collect(),
        };
        Self { state: Mutex::new(state), address: AtomicU32::new(0), config: Mutex::new(()) }
    }
}

/// The number of the legacy line that `pirq` is.
const fn line(pirq: Pirq) -> u8 {
    pirq.raw() as u8
}

impl<P: Platform> Hypervisor<P> {
    /// Serves a device interrupt at `vector`. The caller has acknowledged the interrupt at the local APIC.
    pub fn device_interrupt(&self, vector: Vector) {
        let mut state = self.irqs.state.lock();
        let Some(pirq) = state.vectors[usize::from(vector.0)] else { return };
        let Ok(mapping) = state.mapping(pirq) else { return };
        if mapping.source == Source::Line {
            mapping.in_service = true;
            self.platform.mask_line(line(pirq), true);
        }
        let bound = mapping.bound.clone();
        drop(state);
        if let Some((domain, port)) = bound {
            self.send_pirq(&domain, port);
        }
    }

    /// `EVTCHNOP_bind_pirq`: opens a port of `domain` that `pirq` raises.
    ///
    /// # Errors
    /// `NoSuchPirq`: the domain has no such PIRQ. `NotPermitted`: the line is not the domain's. `Bound`: another port
    /// has the PIRQ. `NoneFree`: a line gets no vector. `Port`: the port cannot be opened.
    pub fn bind_pirq(&self, domain: &Arc<Domain>, pirq: Pirq, publish: impl Publish) -> Opened<PirqError> {
        self.open_port(domain, 0, |port| {
            publish(port).map_err(EvtchnError::from)?;
            self.pirq_bind(domain, pirq, port)?;
            Ok(PortState::Pirq { pirq })
        })
    }

    /// `EVTCHNOP_close`.
    ///
    /// # Errors
    /// `Invalid`: the port is not open.
    pub fn evtchn_close(&self, domain: &Arc<Domain>, port: Port) -> Result<(), EvtchnError> {
        self.close_port(domain, port, |pirq| self.pirq_unbind(domain, pirq))
    }

    /// `EVTCHNOP_reset`, and a domain's end: closes open ports and goes back to two levels, until nothing is left (`true`) or
    /// other work waits.
    #[must_use = "ports may be left"]
    pub fn evtchn_close_all(&self, domain: &Arc<Domain>) -> bool {
        self.close_ports(domain, |pirq| self.pirq_unbind(domain, pirq)) && self.release_fifo(domain)
    }

    /// Routes `pirq` of `domain` to its event channel `port`. No line is shared.
    fn pirq_bind(&self, domain: &Arc<Domain>, pirq: Pirq, port: Port) -> Result<(), PirqError> {
        if pirq.raw() < NR_LINES {
            self.map_line(domain, pirq)?;
        }
        let mut state = self.irqs.state.lock();
        let mapping = state.mapping(pirq)?;
        if mapping.owner != domain.id {
            return Err(PirqError::NotPermitted);
        }
        if mapping.bound.is_some() {
            return Err(PirqError::Bound);
        }
        mapping.bound = Some((domain.clone(), port));
        let (source, vector) = (mapping.source, mapping.vector);
        drop(state);
        self.set_masked(&source, pirq, false);
        if source == Source::Line {
            self.platform.route_line(line(pirq), Some(vector));
        }
        Ok(())
    }

    /// Ends what [`Hypervisor::pirq_bind`] did.
    fn pirq_unbind(&self, domain: &Arc<Domain>, pirq: Pirq) {
        let mut state = self.irqs.state.lock();
        let Ok(mapping) = state.owned(pirq, domain) else { return };
        mapping.in_service = false;
        let (source, bound) = (mapping.source, mapping.bound.take());
        drop(state);
        if bound.is_some() {
            self.set_masked(&source, pirq, true);
        }
    }

    fn set_masked(&self, source: &Source, pirq: Pirq, masked: bool) {
        if *source == Source::Line {
            return self.platform.mask_line(line(pirq), masked);
        }
        let _ports = self.irqs.config.lock();
        source.set_masked(&Config(&self.platform), masked);
    }

    /// Whether `pirq` is `domain`'s and needs an explicit end of interrupt.
    ///
    /// # Errors
    /// `NoSuchPirq`: no PIRQ can have this number.
    pub(crate) fn pirq_needs_eoi(&self, domain: &Domain, pirq: Pirq) -> Result<bool, PirqError> {
        let state = self.irqs.state.lock();
        let slot = state.pirqs.at(pirq.raw() as usize).ok_or(PirqError::NoSuchPirq)?;
        Ok(matches!(slot, Some(mapping) if mapping.owner == domain.id && mapping.source == Source::Line))
    }

    /// Notes that the domain has served a line.
    ///
    /// # Errors
    /// `NoSuchPirq`: the domain has no such PIRQ.
    pub(crate) fn pirq_eoi(&self, domain: &Domain, pirq: Pirq) -> Result<(), PirqError> {
        let mut state = self.irqs.state.lock();
        let mapping = state.owned(pirq, domain)?;
        if core::mem::take(&mut mapping.in_service) && mapping.bound.is_some() {
            drop(state);
            self.platform.mask_line(line(pirq), false);
        }
        Ok(())
    }

    /// Maps a legacy line, unless the line is mapped already.
    ///
    /// # Errors
    /// `NotPermitted`: the line is not the domain's. `NoneFree`: no vector is free.
    pub(crate) fn map_line(&self, domain: &Domain, pirq: Pirq) -> Result<(), PirqError> {
        if pirq.raw() >= NR_LINES || !domain.permissions.lock().irqs.contains(u64::from(pirq.raw())) {
            return Err(PirqError::NotPermitted);
        }
        let mut state = self.irqs.state.lock();
        if state.mapping(pirq).is_err() {
            state.map(pirq, Source::Line, domain.id)?;
        }
        Ok(())
    }

    /// Maps the MSI message of `function`, or entry `entry` of its MSI-X table, to a PIRQ of `domain`: the `wanted`
    /// PIRQ, or any.
    ///
    /// # Errors
    /// `NoCapability`: the function cannot send such messages. `NoSuchEntry`: the device's MSI-X table has no such
    /// entry. `Mapped`: the message has a PIRQ already. `NoneFree`: no vector or PIRQ is free.
    pub(crate) fn map_message(
        &self,
        domain: &Domain,
        function: PciFunction,
        entry: Option<u16>,
        wanted: Option<Pirq>,
    ) -> Result<Pirq, PirqError> {
        let _ports = self.irqs.config.lock();
        let config = Config(&self.platform);
        let source = Source::find(&config, function, entry)?;
        let mut state = self.irqs.state.lock();
        if state.sources().any(|other| other.message() == source.message()) {
            return Err(PirqError::Mapped);
        }
        let pirq = state.free_pirq(wanted)?;
        let vector = state.map(pirq, source, domain.id)?;
        source.for_table(|first, last| self.frames.protect_device_frames(first, last));
        drop(state);
        let (address, data) = self.platform.msi_message(vector);
        source.write(&config, address, data);
        Ok(pirq)
    }

    /// Ends the mapping of `pirq`. A bound event channel stays open and silent.
    ///
    /// # Errors
    /// `NoSuchPirq`: the domain has no such PIRQ.
    pub(crate) fn unmap_pirq(&self, domain: &Domain, pirq: Pirq) -> Result<(), PirqError> {
        let _ports = self.irqs.config.lock();
        let mut state = self.irqs.state.lock();
        let &mut Mapping { source, vector, .. } = state.owned(pirq, domain)?;
        let mapping = state.pirqs.at_mut(pirq.raw() as usize).and_then(Option::take);
        state.vectors[usize::from(vector.0)] = None;
        let is_last = !state.sources().any(|other| other.function() == source.function());
        if is_last {
            source.for_table(|first, last| self.frames.unprotect_device_frames(first, last));
            // Another function's table may share a frame.
            let protect = |first, last| self.frames.protect_device_frames(first, last);
            state.sources().for_each(|other| other.for_table(protect));
        }
        drop(state);
        drop(mapping);
        match source {
            Source::Line => self.platform.route_line(line(pirq), None),
            _ => source.silence(&Config(&self.platform), is_last),
        }
        Ok(())
    }

    /// A free PIRQ.
    ///
    /// # Errors
    /// `NoneFree`: every PIRQ is in use.
    pub(crate) fn free_pirq(&self) -> Result<Pirq, PirqError> {
        self.irqs.state.lock().free_pirq(None)
    }

    /// Ends all mappings of a domain that goes.
    pub fn release_pirqs(&self, domain: &Domain) {
        for pirq in (0..NR_PIRQS).map(Pirq::new) {
            // A PIRQ that is not the domain's is refused.
            let _ = self.unmap_pirq(domain, pirq);
        }
    }
}
