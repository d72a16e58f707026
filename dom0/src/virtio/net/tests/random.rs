//! Random traffic.

use alloc::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Queue a packet of so many spans, for a flow.
    Send {
        spans: usize,
        flow: u32,
    },
    Kick,
    /// The card takes what it was notified of.
    Fetch,
    /// The card finishes one of the packets that it has.
    Finish(usize),
    /// A packet of so many bytes comes in on a pair.
    Deliver {
        len: usize,
        pair: usize,
    },
    Receive,
    /// A packet that came in is dropped.
    Drop(usize),
    /// The task runs if it was woken.
    Task,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1usize..20, any::<u32>()).prop_map(|(spans, flow)| Step::Send { spans, flow }),
        2 => Just(Step::Kick),
        2 => Just(Step::Fetch),
        3 => any::<usize>().prop_map(Step::Finish),
        3 => (prop_oneof![14usize..200, 14usize..65_536], 0usize..2)
            .prop_map(|(len, pair)| Step::Deliver { len, pair }),
        2 => Just(Step::Receive),
        2 => any::<usize>().prop_map(Step::Drop),
        2 => Just(Step::Task),
    ]
}

/// The driver, its card, and what each must have.
struct World {
    arena: Arena,
    card: FakeCard,
    net: Card,
    pairs: usize,
    /// By token: the bytes of the packet.
    out: BTreeMap<u32, Vec<u8>>,
    held: Vec<Held>,
    /// For each pair: what came in and was not taken.
    coming: Vec<VecDeque<Vec<u8>>>,
    packets: Vec<(Received, Vec<u8>)>,
    finished: usize,
    next: u32,
}

impl World {
    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Send { spans, flow } => self.send(spans, flow)?,
            Step::Kick => self.net.kick(),
            Step::Fetch => {
                for held in self.card.fetch() {
                    let token = u32::from_le_bytes(held.bytes[..4].try_into().unwrap());
                    prop_assert_eq!(self.out.get(&token), Some(&held.bytes));
                    self.held.push(held);
                }
            }
            Step::Finish(which) if !self.held.is_empty() => {
                self.card.finish(self.held.swap_remove(which % self.held.len()));
                self.finished += 1;
            }
            Step::Deliver { len, pair } => {
                let bytes: Vec<u8> = (0..len).map(|at| (at as u32 ^ self.next) as u8).collect();
                let pair = pair % self.pairs;
                self.next += 1;
                if self.card.deliver(pair, SILENT, &bytes) {
                    self.coming[pair].push_back(bytes);
                }
            }
            Step::Receive => self.receive()?,
            Step::Drop(which) if !self.packets.is_empty() => {
                let (packet, bytes) = self.packets.swap_remove(which % self.packets.len());
                prop_assert_eq!(whole(&packet), bytes, "nobody else wrote to the packet");
            }
            Step::Task => self.task()?,
            _ => {}
        }
        Ok(())
    }

    fn send(&mut self, spans: usize, flow: u32) -> Result<(), TestCaseError> {
        let token = self.next;
        self.next += 1;
        let spans: Vec<Span> = (0..spans).map(|at| span(&self.arena, 8 * at, 20 + at, token as u8)).collect();
        self.arena.write(spans[0].maddr.raw(), &token.to_le_bytes());
        let packet = Outgoing { flow, ..plain(&spans) };
        match self.net.transmit(token, packet) {
            Ok(()) => {
                let bytes =
                    spans.iter().flat_map(|span| self.arena.bytes(span.maddr.raw(), span.len as usize));
                prop_assert!(self.out.insert(token, bytes.collect()).is_none());
            }
            Err(error) => prop_assert_eq!(error, TransmitError::Full),
        }
        Ok(())
    }

    fn transmitted(&mut self) -> Result<(), TestCaseError> {
        for (token, sent) in transmitted(&self.net) {
            prop_assert!(sent && self.out.remove(&token).is_some(), "{} comes back twice", token);
            prop_assert!(!self.held.iter().any(|held| held.bytes[..4] == token.to_le_bytes()));
            self.finished -= 1;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), TestCaseError> {
        let waiting = self.coming.iter().any(|coming| !coming.is_empty());
        let Some(packet) = self.net.receive() else {
            prop_assert!(!waiting, "a packet is lost");
            return Ok(());
        };
        let bytes = whole(&packet);
        let from = self.coming.iter_mut().find(|coming| coming.front() == Some(&bytes));
        prop_assert!(from.is_some(), "no pair has this packet next");
        from.unwrap().pop_front();
        self.packets.push((packet, bytes));
        Ok(())
    }

    /// The task runs when an interrupt came, and then until nothing is left.
    fn task(&mut self) -> Result<(), TestCaseError> {
        while ready(&self.net) {
            self.transmitted()?;
            while self.coming.iter().any(|coming| !coming.is_empty()) {
                self.receive()?;
            }
            self.packets.clear();
        }
        // From here on an interrupt comes with the next packet.
        if self.card.deliver(0, SILENT, &[1; 14]) {
            prop_assert!(self.card.interrupts(), "nobody wakes the task");
            self.coming[0].push_back(alloc::vec![1; 14]);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every packet goes out with its bytes and comes back once; every packet that comes in is seen once, with its bytes.
    #[test]
    fn random_traffic(
        steps in proptest::collection::vec(step(), 1..300),
        indirect in any::<bool>(),
        event_idx in any::<bool>(),
        queue in prop_oneof![Just(32u16), Just(128), Just(256)],
        pairs in 1u16..3,
    ) {
        let missing = u64::from(!indirect) << 28 | u64::from(!event_idx) << 29;
        let (arena, card, net) = card(CardLimits { offered: !missing, queue, pairs, vectors: 9, ..CardLimits::default() });
        if pairs > 1 {
            card.answer(0);
            let _ = ready(&net);
        }
        let coming = (0..pairs).map(|_| VecDeque::new()).collect();
        let mut world = World {
            arena, card, net, pairs: pairs.into(), out: BTreeMap::new(), held: Vec::new(), coming,
            packets: Vec::new(), finished: 0, next: 0,
        };
        for step in steps {
            world.step(step)?;
        }
        world.net.kick();
        world.step(Step::Fetch)?;
        while !world.held.is_empty() {
            world.step(Step::Finish(0))?;
        }
        world.transmitted()?;
        prop_assert!(world.out.is_empty() && world.finished == 0);
        world.packets.clear();
        while world.coming.iter().any(|coming| !coming.is_empty()) {
            world.receive()?;
        }
        prop_assert_eq!(world.net.malformed(), 0);
        prop_assert!(world.net.link_up());
    }
}
