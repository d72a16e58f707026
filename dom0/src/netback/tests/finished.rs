//! Receivers that do not take what others leave undone.

use core::net::IpAddr;

use super::*;
use crate::net::Head;
use crate::net::headers::testing::{frame as ip_frame, tcp, v4, v6};
use crate::net::headers::{Transport, checksum};
use ring_abi::io::netif::{XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6};

/// A TCP frame, and the same with the pseudo header's sum alone in the checksum's field.
fn tcp_frames(from: &Frontend, to: &Frontend, ends: (IpAddr, IpAddr), len: usize) -> (Vec<u8>, Vec<u8>) {
    tcp_frames_to(from.mac(), to.mac(), ends, len)
}

/// The same between any stations.
pub(super) fn tcp_frames_to(
    from: MacAddr,
    to: MacAddr,
    ends: (IpAddr, IpAddr),
    len: usize,
) -> (Vec<u8>, Vec<u8>) {
    let data: Vec<u8> = (0..len).map(|at| (at * 3) as u8).collect();
    let whole = ip_frame(from, to, &tcp((ends.0, 1000), (ends.1, 80), 0x18, &data));
    let mut partial = whole.clone();
    let head = Head::parse(&mut partial, whole.len() as u32).unwrap();
    let (at, len) = (head.transport_at().unwrap(), head.transport_len());
    let sum = checksum::fold(checksum::pseudo(ends.0, ends.1, 6, len));
    partial[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
    (whole, partial)
}

/// The payload of a TCP frame whose lengths and checksum are right.
pub(super) fn payload(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let head = Head::parse(&mut bytes, frame.len() as u32).unwrap();
    assert_eq!(head.transport(), Transport::Tcp);
    let (at, len) = (head.transport_at().unwrap(), head.transport_len());
    let (source, destination) = head.addresses().unwrap();
    assert_eq!(at + len as usize, frame.len());
    let sum = checksum::sum(&frame[at..]) + checksum::pseudo(source, destination, 6, len);
    assert_eq!(checksum::fold(sum), 0xffff);
    frame[at + 20..].to_vec()
}

#[test]
fn tcp_is_cut_for_one_that_takes_no_long_packets() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        for (ends, gso_type) in
            [((v4(1), v4(2)), XEN_NETIF_GSO_TYPE_TCPV4), ((v6(1), v6(2)), XEN_NETIF_GSO_TYPE_TCPV6)]
        {
            two.queues[0].post(10);
            let (whole, partial) = tcp_frames(&one, &two, ends, 9001);
            one.queues[0].send_unfinished(&partial, 1000, gso_type);
            moment().await;
            let segments: Vec<_> = two.queues[0].received().into_iter().map(Result::unwrap).collect();
            let data: Vec<u8> = segments.iter().flat_map(|segment| payload(segment)).collect();
            assert_eq!((segments.len(), data), (10, payload(&whole)));
            assert_eq!(one.queues[0].answers().iter().filter(|(_, status)| *status == 0).count(), 3);
        }
        // More than the receiver has room for: what fits arrives, and the loss is counted.
        two.queues[0].post(4);
        let (_, partial) = tcp_frames(&one, &two, (v4(1), v4(2)), 9001);
        one.queues[0].send_unfinished(&partial, 1000, XEN_NETIF_GSO_TYPE_TCPV4);
        moment().await;
        assert_eq!((two.queues[0].received().len(), drops(&network, 2, Reason::NoRoom)), (4, 1));
        // Segments that nobody would send.
        two.queues[0].post(10);
        one.queues[0].send_unfinished(&partial, 1, XEN_NETIF_GSO_TYPE_TCPV4);
        moment().await;
        assert_eq!((two.queues[0].received().len(), drops(&network, 2, Reason::Malformed)), (0, 1));
    });
}

#[test]
fn a_checksum_is_completed_for_one_that_needs_it_alone() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        make_vif(&client, 2, &[]);
        let mut two = Frontend::connect(&client, 2, 1, &[("feature-no-csum-offload", "1")]).await;
        make_vif(&client, 3, &[]);
        let mut three = Frontend::connect(&client, 3, 1, &[("feature-gso-tcpv4", "1")]).await;
        [&mut two, &mut three].into_iter().for_each(|guest| guest.queues[0].post(8));
        let (whole, partial) = tcp_frames(&one, &two, (v4(1), v4(2)), 1400);
        one.queues[0].send_unfinished(&partial, 0, 0);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(whole)]);
        // Others get it as it is, cut or not.
        for (len, size) in [(1400, 0), (9001, 1000)] {
            let (_, partial) = tcp_frames(&one, &three, (v4(1), v4(3)), len);
            one.queues[0].send_unfinished(&partial, size, XEN_NETIF_GSO_TYPE_TCPV4);
            moment().await;
            let got: usize = three.queues[0].received().into_iter().map(|packet| packet.unwrap().len()).sum();
            assert_eq!(got, partial.len());
        }
    });
}

#[test]
fn one_that_takes_single_slots_gets_no_others() {
    let (client, network) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        make_vif(&client, 2, &[]);
        let nodes = [("feature-sg", "0"), ("feature-gso-tcpv4", "1")];
        let mut two = Frontend::connect(&client, 2, 1, &nodes).await;
        two.queues[0].post(10);
        let (whole, partial) = tcp_frames(&one, &two, (v4(1), v4(2)), 9001);
        one.queues[0].send_unfinished(&partial, 1000, XEN_NETIF_GSO_TYPE_TCPV4);
        moment().await;
        let segments: Vec<_> = two.queues[0].received().into_iter().map(Result::unwrap).collect();
        let data: Vec<u8> = segments.iter().flat_map(|segment| payload(segment)).collect();
        assert_eq!((segments.len(), data), (10, payload(&whole)));
        // Neither a long packet that nobody cuts, nor segments that are longer than a page.
        two.queues[0].post(10);
        for (drops_so_far, size) in [(1, 0), (2, 4500)] {
            one.queues[0].send_unfinished(&partial, size, XEN_NETIF_GSO_TYPE_TCPV4);
            moment().await;
            assert_eq!(two.queues[0].received(), []);
            assert_eq!(drops(&network, 2, Reason::TooBig), drops_so_far);
        }
    });
}

#[test]
fn each_of_several_receivers_gets_what_it_takes() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        let mut two = Frontend::start(&client, 2).await;
        make_vif(&client, 3, &[]);
        let mut three = Frontend::connect(&client, 3, 1, &[("feature-no-csum-offload", "1")]).await;
        [&mut two, &mut three].into_iter().for_each(|guest| guest.queues[0].post(4));
        let (mut whole, mut partial) = tcp_frames(&one, &two, (v4(1), v4(2)), 1400);
        [&mut whole, &mut partial].into_iter().for_each(|frame| frame[..6].fill(0xff));
        one.queues[0].send_unfinished(&partial, 0, 0);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(partial)]);
        assert_eq!(three.queues[0].received(), [Ok(whole)]);
    });
}

#[test]
fn one_that_waits_for_room_gets_what_is_finished_then() {
    let (client, _) = start();
    block_on_test(async {
        let mut one = Frontend::start(&client, 1).await;
        make_vif(&client, 2, &[]);
        let mut two = Frontend::connect(&client, 2, 1, &[("feature-no-csum-offload", "1")]).await;
        let (whole, partial) = tcp_frames(&one, &two, (v4(1), v4(2)), 1400);
        one.queues[0].send_unfinished(&partial, 0, 0);
        pvrt::executor::time::sleep(1_000_000).await;
        two.queues[0].post(1);
        moment().await;
        assert_eq!(two.queues[0].received(), [Ok(whole)]);
    });
}
