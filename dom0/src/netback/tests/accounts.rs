//! What a guest's packets make dom0 keep is charged to nobody whose domain would end for it.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};

use pvrt::Account;
use pvrt::executor::block_on_test;
use ring_abi::io::netif::NETTXF_MORE_DATA;
use ring_abi::types::DomId;

use super::front::*;
use super::moment;
use crate::net::MacAddr;
use crate::net::headers::ethertype;
use crate::net::headers::testing::{arp, ethernet, frame, icmp};

/// The gateway's station and address.
const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x16, 0x3e, 0, 0, 1]);
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 1));

#[test]
fn a_packet_to_all_is_on_its_way_to_some_at_a_time() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut others = receivers(&client, 20).await;
        let before = network.0.lock().way.most();
        let to_all = ethernet(one.mac(), MacAddr::BROADCAST, 0x88b5, &[7; 1600]);
        // Each part is a copy for each receiver.
        for packet in 0..4u16 {
            for (part, bytes) in to_all.chunks(101).enumerate() {
                let is_last = (part + 1) * 101 >= to_all.len();
                let size = if part == 0 { to_all.len() } else { bytes.len() };
                let flags = if is_last { 0 } else { NETTXF_MORE_DATA };
                one.queues[0].write_slot(bytes, packet * 16 + part as u16, flags, size as u16);
            }
            one.queues[0].ring();
            moment().await;
            one.queues[0].answers();
        }
        for other in &mut others {
            assert_eq!(other.queues[0].received(), [(); 4].map(|()| Ok(to_all.clone())));
        }
        assert_eq!(network.0.lock().way.most(), before, "the lists did not grow");
    });
}

#[test]
fn what_the_gateway_keeps_of_a_flood_is_not_the_senders() {
    let (client, network) = start();
    network.set_up(Vec::new());
    block_on_test(async {
        let account = Account::claim(1 << 20).unwrap();
        account.assign(DomId::new(1));
        let mut one = Frontend::start(&client, 1).await;
        moment().await;
        let before = account.figures().unwrap();
        assert!(before.used > 0, "the vif is the account's");
        account.lower_budget((1 << 20) - before.used - 4096);
        let address = IpAddr::V4(Ipv4Addr::new(10, 88, 0, 9));
        let question = arp(1, (one.mac(), address), (MacAddr([0; 6]), GATEWAY));
        let question = ethernet(one.mac(), MacAddr::BROADCAST, ethertype::ARP, &question);
        let ping = icmp(address, GATEWAY, [8, 0], 1, &[7; 1400]);
        let ping = frame(one.mac(), GATEWAY_MAC, &ping);
        one.queues[0].post(31);
        one.queues[0].send(&question, 0);
        (1..31).for_each(|id| one.queues[0].send(&ping, id));
        moment().await;
        assert_eq!(one.queues[0].received().len(), 31, "an answer to each");
        assert!(!account.is_overdrawn());
        let after = account.figures().unwrap();
        assert!(after.used <= before.used, "{} bytes, before {}", after.used, before.used);
    });
}
