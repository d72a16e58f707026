//! Steps of the FIFO layout of event channels, with a guest that writes what it likes into words and control blocks.

use alloc::format;
use alloc::vec::Vec;

use ring_abi::evtchn::*;
use ring_abi::hypercall::*;
use ring_abi::types::{DOMID_SELF, Maddr, Port};

use super::*;
use crate::evtchn::state::PortState;
use crate::testing::wild::step::Pick;

const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const MASKED: u32 = 1 << EVTCHN_FIFO_MASKED;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;

/// Ports among which those that are open are sought.
const MOST_PORTS: u32 = 32;

/// What a guest writes into words: the links are filled in.
const WORDS: [u32; 8] = [
    0,
    MASKED,
    LINKED,
    PENDING,
    PENDING | LINKED,
    PENDING | LINKED | 1 << EVTCHN_FIFO_BUSY,
    PENDING | MASKED | LINKED,
    u32::MAX,
];

/// Ports that the domain may send itself events by.
fn ipis(domain: &Domain) -> impl Iterator<Item = u32> {
    let is_ipi = |port: &u32| {
        let cell = domain.events.cell(Port::new(*port));
        cell.is_some_and(|cell| matches!(*cell.state.lock(), PortState::Ipi))
    };
    (0..MOST_PORTS).filter(is_ipi)
}

impl Wild {
    pub(super) fn fifo(&self, what: u8, frame: Pick, port: u8, value: u8) -> Option<()> {
        let (_, domain) = self.me()?;
        let (is_blind, what) = (value & 0xc0 == 0xc0, what & 15);
        if !is_blind && what > 2 {
            self.turn(&domain, frame, value);
        }
        // Mostly one of the ports to which the caller may send, and a page of the caller's.
        let open: Vec<u32> = ipis(&domain).collect();
        let port = match open.get(usize::from(port) % open.len().max(1)) {
            Some(open) if what > 6 && !is_blind => *open,
            _ => u32::from(port),
        };
        let frame = if frame & 0xc0 == 0 { frame } else { 0x40 | frame & 63 };
        match what {
            0 => {
                let (vcpu, offset) = (port % (VCPUS + u32::from(is_blind)), u32::from(value & 63) * 64);
                let control_gfn = self.pick(frame);
                self.note(control_gfn);
                let op = EvtchnInitControl { control_gfn, offset, vcpu, ..EvtchnInitControl::default() };
                self.channel(EVTCHNOP_INIT_CONTROL, &op)
            }
            1 | 2 => {
                let array_gfn = self.pick(frame);
                self.note(array_gfn);
                self.channel(EVTCHNOP_EXPAND_ARRAY, &EvtchnExpandArray { array_gfn })
            }
            3 => {
                let priority = u32::from(value) % (EVTCHN_FIFO_MAX_QUEUES as u32 + 1);
                self.channel(EVTCHNOP_SET_PRIORITY, &EvtchnSetPriority { port, priority })
            }
            4 => self.channel(EVTCHNOP_RESET, &EvtchnReset { dom: DOMID_SELF }),
            5 | 6 => {
                let vcpu = u32::from(value) % VCPUS;
                self.channel(EVTCHNOP_BIND_IPI, &EvtchnBindIpi { vcpu, port: 0 })
            }
            7 => self.scribble(&domain, value, port, frame),
            8 => self.channel(EVTCHNOP_UNMASK, &EvtchnUnmask { port }),
            9 => self.channel(EVTCHNOP_CLOSE, &EvtchnClose { port }),
            10 => {
                let vcpu = u32::from(value) % (VCPUS + 1);
                self.channel(EVTCHNOP_BIND_VCPU, &EvtchnBindVcpu { port, vcpu })
            }
            _ => self.send_looking(&domain, port),
        }
    }

    /// Does what is missing for events: a control block, words, ports to send by.
    fn turn(&self, domain: &Domain, frame: Pick, value: u8) {
        for n in 0..6u8 {
            let own = 0x40 | frame.wrapping_add(n) & 63;
            if u32::from(n) < VCPUS {
                // Refused for a vCPU that has a block.
                let (control_gfn, offset) = (self.pick(own), u32::from(value & 31) * 128);
                let vcpu = u32::from(n);
                let op = EvtchnInitControl { control_gfn, offset, vcpu, ..EvtchnInitControl::default() };
                self.channel(EVTCHNOP_INIT_CONTROL, &op);
            } else if domain.events.fifo_array().is_empty() {
                let array_gfn = self.pick(own);
                self.channel(EVTCHNOP_EXPAND_ARRAY, &EvtchnExpandArray { array_gfn });
            } else if ipis(domain).count() < 3 {
                let vcpu = u32::from(value) % VCPUS;
                self.channel(EVTCHNOP_BIND_IPI, &EvtchnBindIpi { vcpu, port: 0 });
            }
        }
    }

    fn channel<T: IntoBytes + Immutable>(&self, command: u32, op: &T) -> Option<()> {
        self.put(ARGS, op)?;
        self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[command.into(), ARGS]).map(|_| ())
    }

    /// The guest writes a word of the FIFO's: a port's, or any of the control blocks' page.
    fn scribble(&self, domain: &Domain, frame: Pick, port: u32, value: u8) -> Option<()> {
        let mut frames = Vec::new();
        domain.events.visit_fifo_frames(|mfn| frames.push(mfn));
        let mfn = frames[usize::from(frame).checked_rem(frames.len())?];
        let word = WORDS[usize::from(value & 7)] | u32::from(value >> 3 & 15);
        let offset = if frame & 0x80 == 0 { port as usize * 4 } else { usize::from(value) * 16 };
        // Unlike `shared`, this asks for no reference.
        self.hv.platform.write_bytes(Maddr::new(mfn.maddr().raw() + offset as u64), &word.to_le_bytes());
        Some(())
    }

    /// Sends, and looks what became of the words of the ports.
    fn send_looking(&self, domain: &Domain, port: u32) -> Option<()> {
        let words = |wild: &Self, array: &[Mfn]| -> Vec<u32> {
            let mut bytes = alloc::vec![0; array.len() * 4096];
            for (mfn, to) in array.iter().zip(bytes.chunks_mut(4096)) {
                wild.hv.platform.read_bytes(mfn.maddr(), to);
            }
            bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        self.hv.platform.set_adversary(0);
        self.put(ARGS, &EvtchnSend { port })?;
        let array = domain.events.fifo_array();
        let before = words(self, &array);
        let sent = self.call(__HYPERVISOR_EVENT_CHANNEL_OP, &[EVTCHNOP_SEND.into(), ARGS])?;
        let after = words(self, &array);
        let is_ipi = ipis(domain).any(|open| open == port);
        // A page that serves twice shows a control block's words, or each word twice.
        let mut frames = Vec::new();
        domain.events.visit_fifo_frames(|mfn| frames.push(mfn));
        let is_once = |mfn: &Mfn| frames.iter().filter(|other| *other == mfn).count() == 1;
        let holds_info = |mfn: &Mfn| {
            let page = self.hv.platform.shared(*mfn).as_ptr() as usize >> 12;
            let places = domain.vcpus.iter().filter_map(|vcpu| vcpu.info.get());
            places.map(|info| info.as_ptr() as usize >> 12).any(|info| info == page)
        };
        let have_blocks = frames.len() - array.len() == VCPUS as usize; // a vCPU without one loses events
        if !self.is_alone
            || sent.is_err()
            || !have_blocks
            || !is_ipi
            || !array.iter().all(|mfn| is_once(mfn) && !holds_info(mfn))
        {
            return Some(());
        }
        self.check_words(port, &before, &after);
        Some(())
    }

    /// A send sets its port's bits, and makes that port the link of one other at most.
    fn check_words(&self, port: u32, before: &[u32], after: &[u32]) {
        let (Some(was), Some(is)) = (before.get(port as usize), after.get(port as usize)) else { return };
        if is & PENDING == 0 {
            self.tell(format!("port {port} was sent to and is not pending: {was:#x}, then {is:#x}"));
        }
        if is & MASKED != was & MASKED || was & (MASKED | LINKED) == MASKED && is & LINKED != 0 {
            self.tell(format!("port {port}: {was:#x} became {is:#x}"));
        }
        let others = (0..).zip(before.iter().zip(after)).filter(|(at, (was, is))| *at != port && was != is);
        for (n, (at, (was, is))) in others.enumerate() {
            if n > 0 || is & EVTCHN_FIFO_LINK_MASK != port {
                self.tell(format!("a send of port {port} made word {at} {is:#x} of {was:#x}"));
            }
        }
    }
}
