//! Turning to the FIFO layout and back, and the priorities of its ports.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::evtchn::{EVTCHN_FIFO_PRIORITY_MIN, EvtchnFifoControlBlock};
use ring_abi::types::{Mfn, PAGE_SIZE, Port};

use super::EvtchnError;
use super::state::{Fifo, Part, PortState};
use crate::Hypervisor;
use crate::domain::Domain;
use crate::platform::Platform;

const CONTROL_BYTES: usize = size_of::<EvtchnFifoControlBlock>();

impl<P: Platform> Hypervisor<P> {
    /// `EVTCHNOP_init_control`: gives `vcpu` its control block, at `offset` of the frame `mfn`. The first of a domain turns
    /// the domain to the FIFO.
    ///
    /// # Errors
    /// `NoEntry`: no such vCPU; `Invalid`: the vCPU has one, or no frame to write, or no such offset; `NoMemory`.
    pub fn init_control(&self, domain: &Domain, vcpu: u32, mfn: Mfn, offset: u32) -> Result<(), EvtchnError> {
        domain.vcpu(vcpu).ok_or(EvtchnError::NoEntry)?;
        if offset as usize > PAGE_SIZE - CONTROL_BYTES || !offset.is_multiple_of(8) {
            return Err(EvtchnError::Invalid);
        }
        let page = self.get_page_writable(mfn, domain).map_err(|_| EvtchnError::Invalid)?;
        let bytes = self.platform.shared(mfn).slice(offset as usize, CONTROL_BYTES);
        let bytes = bytes.ok_or(EvtchnError::Invalid)?;
        let mut binding = domain.events.binding.lock();
        if domain.is_dying() {
            return Err(EvtchnError::Invalid);
        }
        if !domain.events.is_fifo() {
            let vcpus = domain.vcpus.len();
            let fifo = Some(vcpus).filter(|_| self.may_spend(Fifo::bytes(vcpus))).and_then(Fifo::new);
            domain.events.set_fifo(&mut binding, Some(fifo.ok_or(EvtchnError::NoMemory)?));
        }
        let mut fifo = domain.events.fifo.lock();
        let place = fifo.as_mut().and_then(|fifo| fifo.free_control(vcpu)).ok_or(EvtchnError::Invalid)?;
        *place = Some(Part::new(page.into_raw(), bytes));
        Ok(())
    }

    /// `EVTCHNOP_expand_array` by `vcpu`: adds a page of words, for 1,024 more ports (`true`). `false`: other work waits; the
    /// same call goes on with the events that the page brings.
    ///
    /// # Errors
    /// `NotSupported`: the domain has two levels; `Invalid`: no frame to write; `NoSpace`: all ports have a word.
    pub fn expand_array(&self, domain: &Arc<Domain>, vcpu: u32, mfn: Mfn) -> Result<bool, EvtchnError> {
        if !domain.events.is_fifo() {
            return Err(EvtchnError::NotSupported);
        }
        let mut page = Some(self.get_page_writable(mfn, domain).map_err(|_| EvtchnError::Invalid)?);
        let mut is_added = false;
        loop {
            let _binding = domain.events.binding.lock();
            if domain.is_dying() {
                return Err(EvtchnError::Invalid);
            }
            let mut slot = domain.events.fifo.lock();
            let fifo = slot.as_mut().ok_or(EvtchnError::NotSupported)?;
            is_added |= fifo.take_added(vcpu, mfn);
            if let Some(first) = fifo.next_piece() {
                self.adopt_ports(domain, fifo, first);
            } else if !is_added && fifo.add_page(Part::new(mfn, self.platform.shared(mfn))) {
                if let Some(page) = page.take() {
                    page.into_raw(); // the array's from here on
                }
                is_added = true;
            } else {
                return if is_added { Ok(true) } else { Err(EvtchnError::NoSpace) };
            }
            if is_added && !fifo.has_piece() {
                return Ok(true);
            }
            if self.platform.work_pending() {
                if is_added {
                    fifo.keep_added(vcpu, mfn);
                }
                return Ok(false);
            }
        }
    }

    /// Goes back to two levels once no port is open (`true`), page by page. `false`: a port is open, or other work waits.
    #[must_use = "pages may be left"]
    pub(crate) fn release_fifo(&self, domain: &Domain) -> bool {
        while domain.events.is_fifo() {
            let mut binding = domain.events.binding.lock();
            if binding.open != 0 {
                return false;
            }
            let page = domain.events.fifo.lock().as_mut().and_then(|fifo| fifo.take_page());
            let Some(mfn) = page else {
                domain.events.set_fifo(&mut binding, None);
                return true;
            };
            drop(binding);
            self.put_page_and_type(mfn);
            if self.platform.work_pending() {
                return false;
            }
        }
        true
    }
}

/// `EVTCHNOP_set_priority`: later events of `port` go to the queue of that priority.
///
/// # Errors
/// `NoSys`: the domain has two levels; `Invalid`: no such priority, or the port was never open; `Access`: the port is
/// closed.
pub fn set_priority(domain: &Domain, port: Port, priority: u32) -> Result<(), EvtchnError> {
    let cell = domain.events.cell(port).ok_or(EvtchnError::Invalid)?;
    let state = cell.state.lock();
    let fifo = domain.events.fifo.lock();
    if fifo.is_none() {
        return Err(EvtchnError::NoSys);
    }
    if matches!(*state, PortState::Free) {
        return Err(EvtchnError::Access);
    }
    if priority > EVTCHN_FIFO_PRIORITY_MIN {
        return Err(EvtchnError::Invalid);
    }
    cell.priority.store(priority as u8, Ordering::Relaxed);
    Ok(())
}
