//! A card that writes anything: the driver ends the card, or goes on, and never loses count of packets and buffers.

use alloc::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Send(u32),
    /// The card claims on a queue to have used chains, each with a number of bytes.
    Claim(usize, Vec<(u32, u32)>),
    /// The card fills buffers: what the header says of their number, and the bytes claimed for each.
    Fill(u16, [u8; 10], Vec<usize>),
    Receive,
    Drop(usize),
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    let chain = prop_oneof![0u32..40, any::<u32>()];
    let written = prop_oneof![Just(0u32), 1u32..200, Just(4096u32), any::<u32>()];
    let claimed = prop_oneof![4 => Just(4096usize), 2 => 0usize..4096, 1 => Just(4097usize)];
    let header = prop_oneof![Just(SILENT), any::<[u8; 10]>()];
    prop_oneof![
        3 => any::<u32>().prop_map(Step::Send),
        1 => (0usize..2, proptest::collection::vec((chain, written), 1..4))
            .prop_map(|(queue, chains)| Step::Claim(queue, chains)),
        4 => (prop_oneof![0u16..20, any::<u16>()], header, proptest::collection::vec(claimed, 1..20))
            .prop_map(|(count, header, claimed)| Step::Fill(count, header, claimed)),
        4 => Just(Step::Receive),
        2 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Poll),
    ]
}

/// What the header says of the number of buffers is often true.
fn count(said: u16, there: usize) -> u16 {
    if said.is_multiple_of(2) { there as u16 } else { said }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_wild_card_hurts_itself_alone(steps in proptest::collection::vec(step(), 1..100)) {
        let (arena, card, net) = card(CardLimits { queue: 64, ..CardLimits::default() });
        let spans = [span(&arena, 0, 60, 0)];
        let (mut out, mut back, mut packets) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Send(flow) => {
                    let token = out.len() as u32;
                    if net.transmit(token, Outgoing { flow, ..plain(&spans) }).is_ok() {
                        out.push(token);
                    }
                    net.kick();
                }
                // A card that was reset does nothing any more.
                Step::Claim(..) | Step::Fill(..) if card.resets() > 1 => {}
                Step::Claim(queue, chains) => card.claim(queue, &chains),
                Step::Fill(said, header, claimed) => {
                    let first = [&header[..], &count(said, claimed.len()).to_le_bytes(), &[7; 4084]].concat();
                    let fill = claimed.iter().enumerate().map(|(index, &claimed)| {
                        (if index == 0 { &first[..] } else { &[7; 4096][..] }, claimed)
                    });
                    card.fill(0, &fill.collect::<Vec<_>>());
                }
                Step::Receive => packets.extend(net.receive()),
                Step::Drop(which) if !packets.is_empty() => drop(packets.swap_remove(which % packets.len())),
                Step::Poll => while ready(&net) {
                    packets.extend(net.receive());
                    back.extend(transmitted(&net).into_iter().map(|(token, _)| token));
                },
                Step::Drop(_) => {}
            }
            let mut buffers = BTreeSet::new();
            for packet in &packets {
                let parts = packet.parts();
                prop_assert_eq!(parts.iter().map(|part| u32::from(part.len)).sum::<u32>(), packet.len);
                prop_assert!(parts.iter().all(|part| buffers.insert(part.buffer)), "two packets have one buffer");
                prop_assert!(parts.iter().all(|part| part.len > 0 && part.offset + part.len <= 4096));
                let end = packet.checksum_at.map_or(0, |at| u32::from(at.start) + u32::from(at.offset) + 2);
                prop_assert!(end <= packet.len && (14..=65_535).contains(&packet.len));
            }
        }
        // At the end the card breaks, and what is left comes back.
        card.need_reset();
        let _ = ready(&net);
        back.extend(transmitted(&net).into_iter().map(|(token, _)| token));
        back.sort_unstable();
        prop_assert_eq!(back, out);
    }
}
