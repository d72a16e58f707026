//! A vif's control ring: the frontend sets how packets to it are hashed, and lends pages.

use alloc::sync::Arc;
use alloc::vec::Vec;

use backends::net::{Control, ControlGrants, CopyOp, Disconnect, Place};
use pvrt::event::Port;
use pvrt::grant::{CopyPages, GrantMap, GrantPage, map_pages, unmap_pages};
use ring_abi::types::{DomId, GrantRef};

use super::copier::Hypervisor;
use super::fabric::Fabric;
use crate::net::switch::PortId;
use crate::xenbus::Bell;
use backends::net::Copier;

/// Most pages that all frontends lend together: a quarter of the addresses that dom0 has for mappings, so that rings find
/// theirs whatever frontends lend. A frontend that gets no more sends and receives by grants alone.
pub(super) const MAX_LENT: usize = 32 << 10;

/// A connected frontend's control ring.
pub(super) struct ControlRing {
    ring: Control<GrantMap, Bell>,
    port: Arc<Port>,
    domain: DomId,
    /// Requests may wait.
    is_due: bool,
}

impl ControlRing {
    pub(super) fn new(ring: Control<GrantMap, Bell>, port: Arc<Port>, domain: DomId) -> Self {
        Self { ring, port, domain, is_due: true }
    }

    /// Waits for the ring's event.
    pub(super) async fn wait(&mut self) {
        if !self.is_due {
            self.port.wait().await;
            self.is_due = true;
        }
    }

    /// Whether requests may wait. A look costs no hypercall and does not touch the ring.
    pub(super) fn is_due(&mut self) -> bool {
        self.is_due |= self.port.take_event();
        self.is_due
    }
}

impl Fabric {
    /// Answers some of a frontend's control requests.
    ///
    /// # Errors
    /// The frontend ruined the ring.
    pub(super) fn control(&mut self, port: PortId, control: &mut ControlRing) -> Result<(), Disconnect> {
        let room = MAX_LENT.saturating_sub(self.way.lent());
        let Some(state) = self.way.controlled(port) else { return Ok(()) };
        let mut lender = Lender { domain: control.domain, pages: &self.control_page, room };
        control.is_due = control.ring.poll(state, &mut lender)?;
        self.way.note_hashing();
        Ok(())
    }
}

/// One frontend's pages, as the control ring names them.
struct Lender<'a> {
    domain: DomId,
    /// A page of dom0's, by which bytes come and go.
    pages: &'a CopyPages,
    /// Pages that may be lent beyond those that are.
    room: usize,
}

impl Lender<'_> {
    fn places(&self, gref: GrantRef) -> (Place, Place) {
        let granted = Place::Grant { domain: self.domain, gref, offset: 0 };
        (granted, Place::Own { frame: self.pages.frames()[0], offset: 0 })
    }

    fn copy(&self, from: Place, to: Place, len: usize) -> bool {
        let mut op = CopyOp::new(from, to, len as u16); // at most a page
        Hypervisor(self.pages).copy(core::slice::from_mut(&mut op));
        op.ok()
    }
}

impl ControlGrants for Lender<'_> {
    type Mapped = GrantPage;

    fn read(&mut self, gref: GrantRef, target: &mut [u8]) -> bool {
        let (granted, own) = self.places(gref);
        let is_copied = self.copy(granted, own, target.len());
        if is_copied {
            self.pages.pages().page(0).read(0, target);
        }
        is_copied
    }

    fn write(&mut self, gref: GrantRef, source: &[u8]) -> bool {
        let (granted, own) = self.places(gref);
        self.pages.pages().page(0).write(0, source);
        self.copy(own, granted, source.len())
    }

    fn map(&mut self, grefs: &[(GrantRef, bool)], out: &mut Vec<GrantPage>) -> bool {
        let Some(room) = self.room.checked_sub(grefs.len()) else { return false };
        let mapped = map_pages(self.domain, grefs, out);
        match &mapped {
            Ok(()) => self.room = room,
            // The frontend hears that it is none of it; which grant it is, the list has no place for (netif.h).
            Err(status) => log::debug!("{}: pages to be lent: {status}", self.domain),
        }
        mapped.is_ok()
    }

    fn unmap(&mut self, pages: Vec<GrantPage>) {
        unmap_pages(pages);
    }
}
