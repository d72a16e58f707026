//! Physical interrupts as domains see them: PIRQs, and the messages that raise them.
//!
//! Only the hardware domain has devices, so one table serves: a PIRQ below 16 is the legacy line of that number, one from
//! 16 on a message (MSI or MSI-X) that the domain asked for. The hypervisor alone writes messages.
//!
//! Life of a message: `map` picks a vector and a PIRQ and writes the message masked; binding the PIRQ to an event channel
//! unmasks it, closing the channel masks it, `unmap` gives all back. Messages are edges: the local APIC gets its end of
//! interrupt at once. A line is masked when it is delivered, until the domain says `PHYSDEVOP_eoi`.

pub mod pci;
#[cfg(test)]
mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use ring_abi::types::{DomId, Maddr, Mfn};

use crate::Hypervisor;
use crate::domain::Domain;
use crate::error::HypercallError;
use crate::mem::FrameTable;
use crate::platform::Platform;
use crate::sync::{Mutex, rank};
use pci::{Config, MsiCapability, MsixCapability, PciFunction};

/// PIRQs there can be.
pub const NR_PIRQS: u32 = 256;
/// Legacy interrupt lines, whose PIRQs are their numbers.
pub const NR_LINES: u32 = 16;
/// First interrupt vector that devices get.
pub const FIRST_VECTOR: u8 = 0x40;
/// Last interrupt vector that devices get.
pub const LAST_VECTOR: u8 = 0xdf;
const VECTORS: usize = (LAST_VECTOR - FIRST_VECTOR) as usize + 1;
/// The slot of vector 0x80, which guests raise by `int 0x80`: no device gets it.
const GUEST_SLOT: usize = 0x80 - FIRST_VECTOR as usize;

/// Bytes of an MSI-X table entry: address, address high, data, control.
const MSIX_ENTRY_BYTES: u64 = 16;
const MSIX_CONTROL_ENABLE: u32 = 1 << 15;
const MSIX_CONTROL_MASK_ALL: u32 = 1 << 14;
const MSI_CONTROL_ENABLE: u32 = 1;
const MSI_CONTROL_COUNT: u32 = 7 << 4;

/// Where a PIRQ comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A legacy line.
    Line,
    /// The MSI message of a function.
    Msi { function: PciFunction, capability: MsiCapability },
    /// An entry of a function's MSI-X table.
    Msix { function: PciFunction, capability: MsixCapability, entry: u16 },
}

impl Source {
    fn function(&self) -> Option<PciFunction> {
        match *self {
            Self::Line => None,
            Self::Msi { function, .. } | Self::Msix { function, .. } => Some(function),
        }
    }
}

/// A PIRQ that is mapped.
#[derive(Debug)]
struct Pirq {
    source: Source,
    vector: u8,
    owner: DomId,
    /// The event channel it raises.
    bound: Option<(Arc<Domain>, u32)>,
    /// A line that waits for the domain's end of interrupt.
    in_service: bool,
}

#[derive(Debug)]
struct State {
    pirqs: Box<[Option<Pirq>]>,
    /// PIRQ of each vector.
    vectors: Box<[Option<u16>]>,
}

/// The interrupts of the machine and who has them.
#[derive(Debug)]
pub struct Irqs {
    state: Mutex<rank::Irqs, State>,
    /// What the hardware domain last wrote to the PCI address port.
    address: AtomicU32,
    /// Serialises the PCI ports.
    config: Mutex<rank::PciConfig, ()>,
}

impl Irqs {
    /// None is in use.
    pub fn new() -> Self {
        Self {
            state: Mutex::new(State {
                pirqs: (0..NR_PIRQS).map(|_| None).collect(),
                vectors: (0..VECTORS).map(|_| None).collect(),
            }),
            address: AtomicU32::new(0),
            config: Mutex::new(()),
        }
    }
}

impl Default for Irqs {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> Hypervisor<P> {
    /// A device interrupt came at `vector`. The caller has acknowledged it at the local APIC.
    pub fn device_interrupt(&self, vector: u8) {
        let Some(slot) = vector.checked_sub(FIRST_VECTOR).map(usize::from).filter(|&slot| slot < VECTORS)
        else {
            return;
        };
        let target = {
            let mut state = self.irqs.state.lock();
            let Some(index) = state.vectors[slot] else { return };
            let Some(pirq) = &mut state.pirqs[usize::from(index)] else { return };
            if pirq.source == Source::Line {
                pirq.in_service = true;
                self.platform.mask_line(index as u8, true);
            }
            pirq.bound.clone()
        };
        if let Some((domain, port)) = target {
            self.send_pirq(&domain, port);
        }
    }

    /// Routes `pirq` of `domain` to its event channel `port`; a shared line is not offered.
    ///
    /// # Errors
    /// `Invalid`: no such PIRQ; `Exists`: bound already; `NotPermitted`: not the domain's.
    pub fn pirq_bind(
        &self,
        domain: &Arc<Domain>,
        pirq: u32,
        port: u32,
        _will_share: bool,
    ) -> Result<(), HypercallError> {
        if pirq < NR_LINES {
            self.map_line(domain, pirq)?;
        }
        let mut state = self.irqs.state.lock();
        let entry =
            state.pirqs.get_mut(pirq as usize).and_then(Option::as_mut).ok_or(HypercallError::Invalid)?;
        if entry.owner != domain.id {
            return Err(HypercallError::NotPermitted);
        }
        if entry.bound.is_some() {
            return Err(HypercallError::Exists);
        }
        entry.bound = Some((domain.clone(), port));
        let (source, vector) = (entry.source, entry.vector);
        drop(state);
        self.mask_source(&source, pirq, false);
        if source == Source::Line {
            self.platform.route_line(pirq as u8, Some(vector));
        }
        Ok(())
    }

    /// Ends what [`Hypervisor::pirq_bind`] did.
    pub fn pirq_unbind(&self, domain: &Arc<Domain>, pirq: u32) {
        let freed = {
            let mut state = self.irqs.state.lock();
            let Some(entry) = state.pirqs.get_mut(pirq as usize).and_then(Option::as_mut) else { return };
            if entry.owner != domain.id {
                return;
            }
            let source = entry.source;
            entry.in_service = false;
            entry.bound.take().map(|bound| (source, bound))
        };
        if let Some((source, _domain)) = freed {
            self.mask_source(&source, pirq, true);
        }
    }

    /// Whether `domain` may use `pirq`, and it needs an explicit end of interrupt.
    pub(crate) fn pirq_needs_eoi(&self, domain: &Domain, pirq: u32) -> Result<bool, HypercallError> {
        if pirq >= NR_PIRQS {
            return Err(HypercallError::Invalid);
        }
        let state = self.irqs.state.lock();
        Ok(matches!(&state.pirqs[pirq as usize], Some(p) if p.owner == domain.id && p.source == Source::Line))
    }

    /// The domain has served a line.
    pub(crate) fn pirq_eoi(&self, domain: &Domain, pirq: u32) -> Result<(), HypercallError> {
        let mut state = self.irqs.state.lock();
        let entry = state.pirqs.get_mut(pirq as usize).ok_or(HypercallError::Invalid)?;
        let Some(entry) = entry.as_mut().filter(|entry| entry.owner == domain.id) else {
            return Err(HypercallError::Invalid);
        };
        if core::mem::take(&mut entry.in_service) && entry.bound.is_some() {
            drop(state);
            self.platform.mask_line(pirq as u8, false);
        }
        Ok(())
    }

    pub(crate) fn map_line(&self, domain: &Arc<Domain>, line: u32) -> Result<(), HypercallError> {
        if line >= NR_LINES || !domain.permissions.lock().irqs.contains(u64::from(line)) {
            return Err(HypercallError::NotPermitted);
        }
        let mut state = self.irqs.state.lock();
        if state.pirqs[line as usize].is_none() {
            let vector = state.take_vector(line as u16)?;
            state.pirqs[line as usize] =
                Some(Pirq { source: Source::Line, vector, owner: domain.id, bound: None, in_service: false });
        }
        Ok(())
    }

    /// Maps the MSI message of `function`, or entry `entry` of its MSI-X table, to a PIRQ of `domain`: the `wanted` one or
    /// any.
    ///
    /// # Errors
    /// `NoDevice`: the function has no such capability; `Invalid`: no such entry; `Busy`: mapped already; `NoSpace`: no
    /// PIRQ or vector is left.
    pub(crate) fn map_message(
        &self,
        domain: &Arc<Domain>,
        function: PciFunction,
        entry: Option<u16>,
        wanted: Option<u32>,
    ) -> Result<u32, HypercallError> {
        let _ports = self.irqs.config.lock();
        let config = Config(&self.platform);
        let source = match entry {
            None => {
                let capability = config.msi(function).ok_or(HypercallError::NoDevice)?;
                Source::Msi { function, capability }
            }
            Some(entry) => {
                let capability = config.msix(function).ok_or(HypercallError::NoDevice)?;
                if entry >= capability.entries {
                    return Err(HypercallError::Invalid);
                }
                Source::Msix { function, capability, entry }
            }
        };
        let mut state = self.irqs.state.lock();
        let same = |pirq: &Pirq| match (&pirq.source, &source) {
            (Source::Msi { function: a, .. }, Source::Msi { function: b, .. }) => a == b,
            (Source::Msix { function: a, entry: x, .. }, Source::Msix { function: b, entry: y, .. }) => {
                a == b && x == y
            }
            _ => false,
        };
        if state.pirqs.iter().flatten().any(same) {
            return Err(HypercallError::Busy);
        }
        let free = |pirq: &u32| state.pirqs[*pirq as usize].is_none();
        let pirq = match wanted {
            Some(wanted) => Some(wanted).filter(|p| (NR_LINES..NR_PIRQS).contains(p)).filter(free),
            None => (NR_LINES..NR_PIRQS).find(free),
        }
        .ok_or(HypercallError::NoSpace)?;
        let vector = state.take_vector(pirq as u16)?;
        if let Source::Msix { capability, .. } = &source {
            State::protect(&self.frames, capability);
        }
        state.pirqs[pirq as usize] =
            Some(Pirq { source, vector, owner: domain.id, bound: None, in_service: false });
        drop(state);
        let (address, data) = self.platform.msi_message(vector);
        write_message(&config, &source, address, data);
        Ok(pirq)
    }

    /// Ends the mapping of `pirq`. A bound event channel stays open and silent.
    ///
    /// # Errors
    /// `Invalid`: not mapped, or not the domain's.
    pub(crate) fn unmap_pirq(&self, domain: &Domain, pirq: u32) -> Result<(), HypercallError> {
        let _ports = self.irqs.config.lock();
        let mut state = self.irqs.state.lock();
        let slot = state.pirqs.get_mut(pirq as usize).ok_or(HypercallError::Invalid)?;
        let entry = slot.take_if(|entry| entry.owner == domain.id).ok_or(HypercallError::Invalid)?;
        state.vectors[usize::from(entry.vector - FIRST_VECTOR)] = None;
        let last_of_function = entry
            .source
            .function()
            .is_some_and(|f| !state.pirqs.iter().flatten().any(|other| other.source.function() == Some(f)));
        if let (true, Source::Msix { capability, .. }) = (last_of_function, &entry.source) {
            state.unprotect(&self.frames, capability);
        }
        drop(state);
        match entry.source {
            Source::Line => self.platform.route_line(pirq as u8, None),
            source => silence(&Config(&self.platform), &source, last_of_function),
        }
        Ok(())
    }

    /// A PIRQ that nobody has.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(crate) fn free_pirq(&self) -> Result<u32, HypercallError> {
        let state = self.irqs.state.lock();
        (NR_LINES..NR_PIRQS).find(|&pirq| state.pirqs[pirq as usize].is_none()).ok_or(HypercallError::NoSpace)
    }

    /// Ends all mappings of a domain that goes.
    pub fn release_pirqs(&self, domain: &Domain) {
        for pirq in 0..NR_PIRQS {
            let owned =
                matches!(&self.irqs.state.lock().pirqs[pirq as usize], Some(p) if p.owner == domain.id);
            if owned {
                // It was the domain's a moment ago, and only the domain, which is stopped, could change that.
                let _ = self.unmap_pirq(domain, pirq);
            }
        }
    }

    fn mask_source(&self, source: &Source, pirq: u32, masked: bool) {
        match source {
            Source::Line => self.platform.mask_line(pirq as u8, masked),
            Source::Msix { capability, entry, .. } => {
                let at = capability.table + u64::from(*entry) * MSIX_ENTRY_BYTES + 12;
                self.platform.mmio_write(Maddr::new(at), u32::from(masked));
            }
            // Without mask bits the enable bit serves: a message while it is off is lost, as a masked edge would be.
            Source::Msi { function, capability } => {
                let _ports = self.irqs.config.lock();
                let config = Config(&self.platform);
                let control =
                    config.read(*function, capability.at + 2, 2) & !(MSI_CONTROL_COUNT | MSI_CONTROL_ENABLE);
                config.write(*function, capability.at + 2, 2, control | u32::from(!masked));
            }
        }
    }

    /// The hardware domain reads a PCI configuration port (0xcf8-0xcff).
    pub fn pci_port_in(&self, port: u16, size: u8) -> u32 {
        let address = self.irqs.address.load(Ordering::Relaxed);
        if port < pci::DATA_PORT {
            return if port == pci::ADDRESS_PORT && size == 4 { address } else { u32::MAX };
        }
        let offset = (port - pci::DATA_PORT) as u8;
        match pci::decode_address(address) {
            Some((function, at)) if offset + size <= 4 => {
                let _ports = self.irqs.config.lock();
                Config(&self.platform).read(function, at + offset, size)
            }
            _ => u32::MAX,
        }
    }

    /// The hardware domain writes a PCI configuration port (0xcf8-0xcff).
    pub fn pci_port_out(&self, port: u16, size: u8, value: u32) {
        if port < pci::DATA_PORT {
            if port == pci::ADDRESS_PORT && size == 4 {
                self.irqs.address.store(value, Ordering::Relaxed);
            }
            return;
        }
        let offset = (port - pci::DATA_PORT) as u8;
        let Some((function, at)) = pci::decode_address(self.irqs.address.load(Ordering::Relaxed)) else {
            return;
        };
        if offset + size > 4 {
            return;
        }
        let _ports = self.irqs.config.lock();
        let config = Config(&self.platform);
        if !config.write_is_ours(function, at + offset, size) {
            config.write(function, at + offset, size, value);
        }
    }
}

impl State {
    fn take_vector(&mut self, pirq: u16) -> Result<u8, HypercallError> {
        let is_free = |slot: &usize| self.vectors[*slot].is_none() && *slot != GUEST_SLOT;
        let slot = (0..VECTORS).find(is_free).ok_or(HypercallError::NoSpace)?;
        self.vectors[slot] = Some(pirq);
        Ok(FIRST_VECTOR + slot as u8)
    }

    fn protect(frames: &FrameTable, msix: &MsixCapability) {
        for (first, last) in message_frames(msix) {
            frames.protect_device_frames(Mfn::new(first), Mfn::new(last));
        }
    }

    fn unprotect(&self, frames: &FrameTable, msix: &MsixCapability) {
        for (first, last) in message_frames(msix) {
            frames.unprotect_device_frames(Mfn::new(first), Mfn::new(last));
        }
        // Another function's table may share a frame.
        let others: alloc::vec::Vec<_> = self
            .pirqs
            .iter()
            .flatten()
            .filter_map(|pirq| match pirq.source {
                Source::Msix { capability, .. } => Some(capability),
                _ => None,
            })
            .collect();
        for other in &others {
            Self::protect(frames, other);
        }
    }
}

/// First and last frame of the table and of the pending bits.
fn message_frames(msix: &MsixCapability) -> [(u64, u64); 2] {
    let frames = |at: u64, len: u64| (at >> 12, (at + len - 1) >> 12);
    [
        frames(msix.table, u64::from(msix.entries) * MSIX_ENTRY_BYTES),
        frames(msix.pending, u64::from(msix.entries).div_ceil(64) * 8),
    ]
}

/// Writes a message, masked, and enables the capability.
fn write_message<P: Platform>(config: &Config<'_, P>, source: &Source, address: u64, data: u32) {
    match source {
        Source::Line => {}
        Source::Msi { function, capability: msi } => {
            let (function, at) = (*function, msi.at);
            config.write(function, at + 4, 4, address as u32);
            if msi.wide {
                config.write(function, at + 8, 4, (address >> 32) as u32);
            }
            config.write(function, at + if msi.wide { 12 } else { 8 }, 2, data);
        }
        Source::Msix { function, capability: msix, entry } => {
            let at = msix.table + u64::from(*entry) * MSIX_ENTRY_BYTES;
            let platform = config.0;
            platform.mmio_write(Maddr::new(at + 12), 1);
            platform.mmio_write(Maddr::new(at), address as u32);
            platform.mmio_write(Maddr::new(at + 4), (address >> 32) as u32);
            platform.mmio_write(Maddr::new(at + 8), data);
            let control = config.read(*function, msix.at + 2, 2);
            if control & (MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASK_ALL) != MSIX_CONTROL_ENABLE {
                // Entries that nobody mapped must not fire once the function may send messages.
                for other in (0..u64::from(msix.entries)).filter(|&other| other != u64::from(*entry)) {
                    platform.mmio_write(Maddr::new(msix.table + other * MSIX_ENTRY_BYTES + 12), 1);
                }
                let control = control & !MSIX_CONTROL_MASK_ALL | MSIX_CONTROL_ENABLE;
                config.write(*function, msix.at + 2, 2, control);
            }
        }
    }
}

/// Masks a message that is no longer mapped; the last one of its function also disables the capability.
fn silence<P: Platform>(config: &Config<'_, P>, source: &Source, last_of_function: bool) {
    match source {
        Source::Line => {}
        Source::Msi { function, capability } => {
            let control = config.read(*function, capability.at + 2, 2) & !MSI_CONTROL_ENABLE;
            config.write(*function, capability.at + 2, 2, control);
        }
        Source::Msix { function, capability, entry } => {
            let at = capability.table + u64::from(*entry) * MSIX_ENTRY_BYTES + 12;
            config.0.mmio_write(Maddr::new(at), 1);
            if last_of_function {
                let control = config.read(*function, capability.at + 2, 2) & !MSIX_CONTROL_ENABLE;
                config.write(*function, capability.at + 2, 2, control);
            }
        }
    }
}
