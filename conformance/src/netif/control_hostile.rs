//! A control ring used at its corners, and against its rules.

use alloc::collections::BTreeMap;

use ring_abi::io::netif::*;
use ring_abi::io::xenbus::XenbusState::Connected;
use ring_abi::ring::RSP_EVENT;

use super::control::{SUCCESS, status, with_control};
use super::front::{Net, Options, Which};
use crate::{Env, Verdict};

cases! {
    needs [Store, Vifs];

    "netif.control.indices-near-wrap" = near_wrap {
        title: "a control ring whose indices start at 2^32-40",
        rule: "The control ring's indices are taken as they are found, and wrap at 2^32.",
        source: "io/netif.h, 'Control ring'; io/ring.h, BACK_RING_ATTACH",
    }
    "netif.control.events-for-nothing" = for_nothing {
        title: "two hundred events without a request",
        rule: "An event says that there may be something: a backend that finds nothing does nothing.",
        source: "io/netif.h, 'Control ring'; io/ring.h, RING_FINAL_CHECK_FOR_REQUESTS",
    }
    "netif.control.no-event-unasked" = unasked {
        title: "five requests with rsp_event at the fifth response",
        rule: "A backend notifies when rsp_prod passes rsp_event, and not before.",
        source: "io/ring.h, RING_PUSH_RESPONSES_AND_CHECK_NOTIFY",
    }
    "netif.control.random-requests" = random {
        title: "five hundred requests of types 0 to 15 with data that mean nothing",
        rule: "Each request has one response with its id and type, and a status that exists.",
        source: "io/netif.h, struct xen_netif_ctrl_response",
    }
    "netif.control.both-ends" = both_ends {
        title: "two interfaces with control rings, of which one hashes",
        rule: "What a frontend sets is its own interface's.",
        source: "io/netif.h, 'Control ring'",
    }
    "netif.control.other-end-goes" = other_end_goes {
        title: "hashing at one end while the other closes and comes again",
        rule: "What a frontend sets lasts as long as its connection, whatever others do.",
        source: "io/netif.h, 'Control ring'",
    }
}

/// What ruins a control ring is for backends that serve the interface again.
pub mod ruined {
    use super::*;

    cases! {
        needs [Store, MendingVifs];

        "netif.control.req-prod-too-far" = too_far {
            title: "a req_prod 33, 65536 and 2^31 beyond the requests that fit",
            rule: "A ring holds as many requests as it has slots: a req_prod beyond ends this connection alone.",
            source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW; io/netif.h, 'Control ring'",
        }
        "netif.control.req-prod-backwards" = backwards {
            title: "a req_prod one before what was consumed",
            rule: "A producer index does not go back: a backend that sees that serves the ring no more.",
            source: "io/ring.h, RING_REQUEST_PROD_OVERFLOW; io/netif.h, 'Control ring'",
        }
    }

    /// Claims a req_prod; the sender's connection ends, the receiver's goes on, and the sender may come again.
    async fn claims(env: &mut Env, from_produced: impl Fn(u32) -> u32 + Copy, times: u32) -> Verdict {
        use ring_abi::io::xenbus::XenbusState::{Closed, Closing};
        let mut net = with_control(env, 1).await?;
        for _ in 0..times {
            net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
        }
        if let Some(ring) = &net.sender.control {
            ring.claim(from_produced(ring.produced));
        }
        net.device(Which::Sender).wait_state(&[Closing, Closed]).await?;
        let waiting = net.sender.control.as_ref().map_or(0, |ring| ring.waiting());
        ensure_eq!(waiting, 0, "responses of a ruined ring");
        ensure_eq!(
            net.device(Which::Receiver).state().await?,
            Connected,
            "the state of the receiver's backend"
        );
        net.again(&Options { control: true, ..Options::default() }).await?;
        net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
        net.close().await
    }

    async fn too_far(env: &mut Env) -> Verdict {
        for ahead in [1, 65_536, 1 << 31] {
            claims(env, |produced| produced.wrapping_add(ring::CTRL_SLOTS + ahead), 2).await?;
        }
        Ok(())
    }

    async fn backwards(env: &mut Env) -> Verdict {
        claims(env, |produced| produced.wrapping_sub(1), 3).await
    }
}

async fn near_wrap(env: &mut Env) -> Verdict {
    let mut net = Net::prepare(env).await?;
    net.needs("feature-ctrl-ring").await?;
    net.join(Which::Receiver, &Options::default()).await?;
    let options = Options { control: true, index: 40u32.wrapping_neg(), ..Options::default() };
    net.join(Which::Sender, &options).await?;
    for _ in 0..100 {
        net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
    }
    net.goes_on().await?;
    net.close().await
}

async fn for_nothing(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    for round in 0..200 {
        if let Some(ring) = &net.sender.control {
            ring.notify();
        }
        if round % 50 == 0 {
            net.goes_on().await?;
        }
    }
    if let Some(ring) = &net.sender.control {
        ring.silent(20).await?;
    }
    net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
    net.close().await
}

async fn unasked(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE, [0; 3]).await?;
    let Some(ring) = &mut net.sender.control else { return Ok(()) };
    ring.drain_events();
    ring.bytes().store_u32(RSP_EVENT, ring.consumed.wrapping_add(5));
    for id in 0..5 {
        let r#type = XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE;
        ring.push(&XenNetifCtrlRequest { id, r#type, data: [0; 3] });
        ring.publish();
        let last = id == 4;
        let came = ring.event(if last { 5_000 } else { 50 }).await;
        ensure_eq!(came, last, "an event with response {} of 5", id + 1);
        ensure_eq!(ring.waiting(), u32::from(id) + 1, "responses that wait");
    }
    for _ in 0..5 {
        ring.response::<XenNetifCtrlResponse>().await?;
    }
    net.close().await
}

/// Numbers without an order (xorshift).
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

async fn random(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    let Some(ring) = &mut net.sender.control else { return Ok(()) };
    let (mut numbers, mut open) = (Numbers(0x2545_f491), BTreeMap::new());
    for id in 0..500u16 {
        let r#type = (numbers.next() % 16) as u16;
        // Small numbers are more often near something that exists.
        let data = [(); 3].map(|()| numbers.next() >> (numbers.next() % 32));
        ring.push(&XenNetifCtrlRequest { id, r#type, data });
        open.insert(id, r#type);
        ring.publish();
        while open.len() == 16 || (id == 499 && !open.is_empty()) {
            let (_, response) = ring.response::<XenNetifCtrlResponse>().await?;
            let asked = open.remove(&response.id);
            ensure_eq!(asked, Some(response.r#type), "the type of response {}", response.id);
            ensure!(response.status <= XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, "status {}", response.status);
        }
    }
    net.goes_on().await?;
    net.close().await
}

async fn both_ends(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    net.reset(Which::Receiver).await?;
    net.join(Which::Receiver, &Options { control: true, ..Options::default() }).await?;
    super::control::toeplitz(&mut net).await?;
    net.swap();
    // This end has chosen nothing.
    let (got, _) = net.sender.control(XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3]).await?;
    ensure!(got != SUCCESS, "an algorithm that the other end has chosen");
    net.swap();
    status(&mut net, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3], SUCCESS).await?;
    net.goes_on().await?;
    net.close().await
}

async fn other_end_goes(env: &mut Env) -> Verdict {
    let mut net = with_control(env, 1).await?;
    super::control::toeplitz(&mut net).await?;
    net.reset(Which::Receiver).await?;
    net.join(Which::Receiver, &Options::default()).await?;
    status(&mut net, XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS, [0; 3], SUCCESS).await?;
    net.goes_on().await?;
    net.close().await
}
