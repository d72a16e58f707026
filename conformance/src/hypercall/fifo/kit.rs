//! What the cases for the FIFO layout share.

use alloc::format;

use pvrt::event::KeptPorts;
use ring_abi::evtchn::fifo::*;
use ring_abi::evtchn::*;
use ring_abi::shared::SharedBytes;

use super::super::kit::*;

/// Offset of vCPU 1's control block in page 0, where vCPU 0's begins.
pub(super) const SECOND_BLOCK: usize = 128;

/// The FIFO layout of this domain. Drop goes back to two levels and opens the runtime's ports again, so a case need
/// not close the ports that it opens.
pub(super) struct Fifo {
    /// Page 0 is for control blocks, the others for words.
    pub(super) scratch: Scratch,
    grown: usize,
    kept: KeptPorts,
}

impl Fifo {
    /// Reserves page 0 and `pages` pages for words; the domain still has two levels.
    pub(super) fn off(pages: usize) -> Verdict<Self> {
        let kept =
            KeptPorts::note().map_err(|errno| Problem::Error(format!("own ports: {}", errno.name())))?;
        Ok(Self { scratch: Scratch::new(1 + pages), grown: 0, kept })
    }

    /// Switches to the FIFO: vCPU 0 has its control block, and there is no page of words.
    pub(super) fn new(pages: usize) -> Verdict<Self> {
        let this = Self::off(pages)?;
        let got = init(this.scratch.mfn(0), 0, 0).0;
        require!(got != ENOSYS.negated(), "no FIFO ABI");
        given("init_control", got)?;
        Ok(this)
    }

    /// Switches to the FIFO, with one page of words.
    pub(super) fn ready() -> Verdict<Self> {
        let mut this = Self::new(1)?;
        this.grow()?;
        Ok(this)
    }

    /// Gives vCPU 1 its control block.
    pub(super) fn second(&self) -> Verdict {
        require!(has_vcpu(1), "one vCPU alone");
        given("init_control of vCPU 1", init(self.scratch.mfn(0), SECOND_BLOCK as u32, 1).0)?;
        Ok(())
    }

    /// Adds the next page of words, with the runtime's ports masked, since events of those may come at any time.
    pub(super) fn grow(&mut self) -> Verdict {
        {
            let array = self.array();
            self.kept.numbers().for_each(|port| array.mask(port));
        }
        given("expand_array", expand(self.scratch.mfn(1 + self.grown)))?;
        self.grown += 1;
        self.forget_closed()
    }

    /// Forgets events of closed ports in the last page of words. Xen keeps an event that came before its port had a word for ever, and raises it
    /// with each later page of words, whether the port is open or not.
    pub(super) fn forget_closed(&self) -> Verdict {
        let page = (self.grown - 1) as u32 * PAGE_PORTS as u32..self.grown as u32 * PAGE_PORTS as u32;
        let stale: Vec<u32> =
            page.filter(|port| self.word(*port) & PENDING != 0 && !is_open(*port)).collect();
        if stale.is_empty() {
            return Ok(());
        }
        let events = self.events();
        if let Some(other) = events.iter().find(|port| is_open(**port)) {
            return Err(Problem::Error(format!("an event of port {other} among those of closed ports")));
        }
        stale.iter().for_each(|port| self.array().set_word(*port, 0));
        self.block().fill(0, SECOND_BLOCK, 0);
        clear_upcall();
        Ok(())
    }

    /// The control block of vCPU 0.
    pub(super) fn block(&self) -> SharedBytes<'_> {
        self.scratch.pages.page(0)
    }

    /// The control block of vCPU 1.
    pub(super) fn second_block(&self) -> SharedBytes<'_> {
        self.scratch.pages.page(0).slice(SECOND_BLOCK, 72).expect("inside a page")
    }

    /// The words.
    pub(super) fn array(&self) -> EventArray<'_> {
        let mut array = EventArray::default();
        (1..self.scratch.pages.count()).for_each(|page| array.add(self.scratch.pages.page(page)));
        array
    }

    /// The word of a port.
    pub(super) fn word(&self, port: u32) -> u32 {
        self.array().word(port)
    }

    /// The ready bits of vCPU 0.
    pub(super) fn ready_bits(&self) -> u32 {
        self.block().load_u32(READY_OFFSET)
    }

    /// The head of a queue of vCPU 0.
    pub(super) fn head(&self, queue: u32) -> u32 {
        self.block().load_u32(HEAD_OFFSET + queue as usize * 4)
    }

    /// Takes all events of vCPU 0 off its queues, and returns them in order.
    pub(super) fn events(&self) -> Vec<u32> {
        let (array, mut queues) = (self.array(), EventQueues::new(self.block()));
        core::iter::from_fn(|| queues.next(&array)).collect()
    }

    /// Opens a port by which this vCPU can send itself events.
    pub(super) fn ipi(&self) -> Verdict<u32> {
        self.ipi_to(0)
    }

    /// Opens a port by which `vcpu` can be sent events.
    pub(super) fn ipi_to(&self, vcpu: u32) -> Verdict<u32> {
        let mut arg = EvtchnBindIpi { vcpu, port: 0 };
        given("bind_ipi", channel(EVTCHNOP_BIND_IPI, &mut arg))?;
        Ok(arg.port)
    }

    /// Opens two ports of this domain that are bound to each other, and takes the event that the second port
    /// gets at the bind.
    pub(super) fn pair(&self) -> Verdict<(u32, u32)> {
        let mut first = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, port: 0 };
        given("alloc_unbound", channel(EVTCHNOP_ALLOC_UNBOUND, &mut first))?;
        let second = bind(first.port)?;
        self.events();
        clear_upcall();
        Ok((first.port, second))
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        if let Err(errno) = self.kept.bring_back() {
            pvrt::println!("the way back to two levels: {}", errno.name());
        }
    }
}

/// Is the port open?
fn is_open(port: u32) -> bool {
    let mut arg = EvtchnStatus { dom: DOMID_SELF, port, ..Default::default() };
    channel(EVTCHNOP_STATUS, &mut arg) == 0 && arg.status != EVTCHNSTAT_CLOSED
}

/// Opens a port and binds it to the unbound `port` of this domain.
pub(super) fn bind(port: u32) -> Verdict<u32> {
    let mut arg = EvtchnBindInterdomain { remote_dom: DOMID_SELF, remote_port: port, ..Default::default() };
    given("bind_interdomain", channel(EVTCHNOP_BIND_INTERDOMAIN, &mut arg))?;
    Ok(arg.local_port)
}

/// `EVTCHNOP_init_control`, and the link bits that it gives.
pub(super) fn init(control_gfn: u64, offset: u32, vcpu: u32) -> (i64, u8) {
    let mut arg = EvtchnInitControl { control_gfn, offset, vcpu, ..Default::default() };
    (channel(EVTCHNOP_INIT_CONTROL, &mut arg), arg.link_bits)
}

/// `EVTCHNOP_expand_array`.
pub(super) fn expand(array_gfn: u64) -> i64 {
    channel(EVTCHNOP_EXPAND_ARRAY, &mut EvtchnExpandArray { array_gfn })
}

/// `EVTCHNOP_send`.
pub(super) fn send(port: u32) -> Verdict {
    done("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port }))
}

/// `EVTCHNOP_unmask`.
pub(super) fn unmask(port: u32) -> Verdict {
    done("unmask", channel(EVTCHNOP_UNMASK, &mut EvtchnUnmask { port }))
}

/// `EVTCHNOP_close`.
pub(super) fn close(port: u32) -> Verdict {
    done("close", channel(EVTCHNOP_CLOSE, &mut EvtchnClose { port }))
}

/// `EVTCHNOP_set_priority`.
pub(super) fn priority(port: u32, priority: u32) -> i64 {
    channel(EVTCHNOP_SET_PRIORITY, &mut EvtchnSetPriority { port, priority })
}

/// `EVTCHNOP_bind_vcpu`.
pub(super) fn to_vcpu(port: u32, vcpu: u32) -> Verdict {
    done("bind_vcpu", channel(EVTCHNOP_BIND_VCPU, &mut EvtchnBindVcpu { port, vcpu }))
}

/// Clears the upcall flag, and returns whether it was set.
pub(super) fn take_upcall() -> bool {
    let was = upcall_pending();
    clear_upcall();
    was
}

/// The pending bit that a port has with two levels.
pub(super) fn is_two_level_pending(port: u32) -> bool {
    core::mem::ManuallyDrop::new(Opened(port)).is_pending()
}
