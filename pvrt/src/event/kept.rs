//! What a kernel needs to try the FIFO layout without losing its own ports: a reset, which alone leads back to two levels,
//! closes them all.

use alloc::vec::Vec;

use ring_abi::evtchn::*;
use ring_abi::types::{DomId, Port};

use crate::hypercall::{Result, event as call};

/// The ports that the domain had open at a time with two levels.
#[derive(Debug)]
pub struct KeptPorts {
    own: DomId,
    /// From port 1 on.
    ports: Vec<EvtchnStatus>,
}

impl KeptPorts {
    /// Notes all ports that are open.
    ///
    /// # Errors
    /// `ENOSPC`: no port is free, which finding the domain's own number takes.
    pub fn note() -> Result<Self> {
        let own = call::own_domid()?;
        let mut ports = Vec::new();
        for number in 1..EVTCHN_2L_NR_CHANNELS as u32 {
            let Ok(status) = call::status(Port::new(number)) else { break };
            ports.push(status);
        }
        let last = ports.iter().rposition(|status| status.status != EVTCHNSTAT_CLOSED);
        ports.truncate(last.map_or(0, |last| last + 1));
        Ok(Self { own, ports })
    }

    /// The numbers of the ports.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        (1..).zip(&self.ports).filter(|(_, port)| port.status != EVTCHNSTAT_CLOSED).map(|(number, _)| number)
    }

    /// Resets all event channels and opens the noted ports again, under their numbers. Each has an event if it can have missed
    /// one.
    ///
    /// # Errors
    /// Of the call that failed: what the other end did meanwhile cannot be undone.
    pub fn bring_back(&self) -> Result<()> {
        call::reset()?;
        let mut fillers = Vec::new();
        for (number, port) in (1..).zip(&self.ports) {
            // The lowest free number is given, so that a port takes each number before it.
            let got = match port.status {
                EVTCHNSTAT_UNBOUND => call::alloc_unbound(DomId::SELF, DomId::new(port.u[0] as u16))?,
                EVTCHNSTAT_INTERDOMAIN => self.bind(number, port)?,
                EVTCHNSTAT_PIRQ => call::bind_pirq(port.u[0], false)?,
                EVTCHNSTAT_VIRQ => call::bind_virq(port.u[0], port.vcpu)?,
                EVTCHNSTAT_IPI => call::bind_ipi(port.vcpu)?,
                _ => {
                    let filler = call::alloc_unbound(DomId::SELF, DomId::SELF)?;
                    fillers.push(filler);
                    filler
                }
            };
            if got.raw() != number {
                log::error!("port {number} came back as {got}");
            }
        }
        fillers.into_iter().try_for_each(call::close)
    }

    /// Binds a port to its peer, which waits since the reset; of a pair within the domain the lower one waits.
    fn bind(&self, number: u32, port: &EvtchnStatus) -> Result<Port> {
        let (peer, peer_port) = (DomId::new(port.u[0] as u16), port.u[1]);
        if peer == self.own && peer_port > number {
            call::alloc_unbound(DomId::SELF, DomId::SELF)
        } else {
            call::bind_interdomain(peer, Port::new(peer_port))
        }
    }
}
