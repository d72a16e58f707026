//! One of the two frontends: its rings, its buffers for reception, its nodes.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::time;
use ring_abi::io::netif::*;
use ring_abi::types::{DomId, PAGE_SIZE};

use super::frames::Mac;
use super::{Options, PATIENCE_MS, Ring, mac_of};
use crate::device::Device;
use crate::shared::Granted;
use crate::{Env, Problem, Verdict};

/// What fills a buffer before the backend does.
const EMPTY: u8 = 0xee;

/// The features that a frontend of today has.
const FEATURES: [&str; 6] = [
    "request-rx-copy",
    "feature-rx-notify",
    "feature-sg",
    "feature-gso-tcpv4",
    "feature-gso-tcpv6",
    "feature-ipv6-csum-offload",
];

/// All nodes that a case may leave behind.
pub(super) const NODES: [&str; 24] = [
    FEATURES[0],
    FEATURES[1],
    FEATURES[2],
    FEATURES[3],
    FEATURES[4],
    FEATURES[5],
    "multi-queue-num-queues",
    "feature-no-csum-offload",
    "request-multicast-control",
    "protocol",
    "trusted",
    "conformance",
    "tx-ring-ref",
    "rx-ring-ref",
    "event-channel",
    "event-channel-tx",
    "event-channel-rx",
    "ctrl-ring-ref",
    "event-channel-ctrl",
    "queue-0",
    "queue-1",
    "queue-2",
    "queue-3",
    "queue-4",
];

/// A buffer that the backend may fill.
struct Posted {
    id: u16,
    page: Granted,
}

/// One pair of rings.
pub struct Queue {
    /// Transmission.
    pub tx: Ring<NetifTxRing>,
    /// Reception.
    pub rx: Ring<NetifRxRing>,
    /// In the order of the ring.
    posted: VecDeque<Posted>,
    next_id: u16,
}

/// What came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Got {
    /// The frame.
    pub bytes: Vec<u8>,
    /// `NETRXF_*` of the first slot.
    pub flags: u16,
    /// Slots with data.
    pub slots: usize,
    /// The extra information, in order.
    pub extras: Vec<NetifExtraInfo>,
    /// A slot's status was an error.
    pub failed: bool,
    /// The ids of the slots with data.
    pub ids: Vec<u16>,
}

impl Got {
    /// The segmentation that the extra information asks for: protocol and bytes of a segment.
    pub fn gso(&self) -> Option<(u8, u16)> {
        let extra = self.extras.iter().find(|extra| extra.r#type == XEN_NETIF_EXTRA_TYPE_GSO)?;
        Some((extra.as_gso().gso_type, extra.as_gso().size))
    }

    /// The flow's hash that the extra information has: kind, algorithm and value.
    pub fn hash(&self) -> Option<(u8, u8, u32)> {
        let extra = self.extras.iter().find(|extra| extra.r#type == XEN_NETIF_EXTRA_TYPE_HASH)?;
        let hash = extra.as_hash();
        Some((hash.hash_type, hash.algorithm, u32::from_le_bytes(hash.value)))
    }
}

/// One frontend.
pub struct End {
    /// The frontend's directory.
    pub front: String,
    /// The backend's directory.
    pub back: String,
    /// The backend's domain.
    pub dom: DomId,
    /// The interface's address.
    pub mac: Mac,
    /// The rings.
    pub queues: Vec<Queue>,
    /// The control ring.
    pub control: Option<Ring<NetifCtrlRing>>,
    /// Buffers are posted again as they are used.
    pub(super) restock: bool,
}

impl End {
    pub(super) async fn open(env: &mut Env, path: &str) -> Verdict<Self> {
        let mut device = Device::open(env, path).await?;
        let mac = mac_of(&mut device).await?;
        let Device { front, back, dom, .. } = device;
        Ok(Self { front, back, dom, mac, queues: Vec::new(), control: None, restock: true })
    }

    /// Makes rings as `options` say, and gives the nodes that name them and the frontend's features.
    pub(super) fn make(&mut self, options: &Options) -> Verdict<Vec<(String, String)>> {
        let mut nodes: Vec<_> = FEATURES.map(|key| (key.to_string(), "1".to_string())).into();
        let open = || {
            let port = Port::alloc_unbound(self.dom);
            port.map(Arc::new).map_err(|errno| Problem::Error(format!("alloc_unbound: {errno}")))
        };
        self.queues.clear();
        for number in 0..options.queues {
            let place = if options.queues == 1 { String::new() } else { format!("queue-{number}/") };
            let tx_port = open()?;
            let rx_port = if options.split { open()? } else { tx_port.clone() };
            let tx = Ring::new(self.dom, &tx_port, options.index)?;
            let rx = Ring::new(self.dom, &rx_port, options.index)?;
            let mut node = |key: &str, value: u32| nodes.push((format!("{place}{key}"), value.to_string()));
            node("tx-ring-ref", tx.gref());
            node("rx-ring-ref", rx.gref());
            if options.split {
                node("event-channel-tx", tx.port_number());
                node("event-channel-rx", rx.port_number());
            } else {
                node("event-channel", tx.port_number());
            }
            self.queues.push(Queue { tx, rx, posted: VecDeque::new(), next_id: 0 });
        }
        if options.queues > 1 {
            nodes.push(("multi-queue-num-queues".to_string(), options.queues.to_string()));
        }
        if options.control {
            let ring = Ring::<NetifCtrlRing>::new(self.dom, &open()?, options.index)?;
            nodes.push(("ctrl-ring-ref".to_string(), ring.gref().to_string()));
            nodes.push(("event-channel-ctrl".to_string(), ring.port_number().to_string()));
            self.control = Some(ring);
        }
        self.restock = options.post > 0;
        Ok(nodes)
    }

    /// The first transmit ring.
    pub fn tx(&mut self) -> &mut Ring<NetifTxRing> {
        &mut self.queues[0].tx
    }

    /// The first receive ring.
    pub fn rx(&mut self) -> &mut Ring<NetifRxRing> {
        &mut self.queues[0].rx
    }

    /// Posts `count` buffers on each queue, and shows the backend.
    ///
    /// # Errors
    /// [`Problem::Error`]: no memory or grant is left.
    pub fn post(&mut self, count: u32) -> Verdict {
        for queue in &mut self.queues {
            for _ in 0..count {
                let page = Granted::new(self.dom, 1, false)?;
                queue.put(page, queue.next_id);
            }
            queue.rx.publish();
        }
        Ok(())
    }

    /// Posts one buffer with an id of the case's.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn post_as(&mut self, id: u16, readonly: bool) -> Verdict {
        let page = Granted::new(self.dom, 1, readonly)?;
        self.queues[0].put(page, id);
        self.queues[0].rx.publish();
        Ok(())
    }

    /// Posts one buffer by a request that `change` makes another.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn post_with(&mut self, change: impl FnOnce(&mut NetifRxRequest)) -> Verdict {
        let page = Granted::new(self.dom, 1, false)?;
        self.queues[0].put_with(page, 0, change);
        self.queues[0].rx.publish();
        Ok(())
    }

    /// The grants of the buffers that wait on the first queue.
    pub fn posted(&self) -> Vec<u32> {
        self.queues[0].posted.iter().map(|posted| posted.page.gref(0)).collect()
    }

    /// Looks that the buffers that wait are as they were posted.
    ///
    /// # Errors
    /// [`Problem::Fail`]: one is not.
    pub fn posted_untouched(&self) -> Verdict {
        for posted in self.queues.iter().flat_map(|queue| &queue.posted) {
            let mut bytes = [0; PAGE_SIZE];
            posted.page.bytes().read(0, &mut bytes);
            ensure!(bytes.iter().all(|byte| *byte == EMPTY), "a buffer that was not answered was written");
        }
        Ok(())
    }

    /// Waits until no ring is mapped any more.
    ///
    /// # Errors
    /// [`Problem::Fail`]: one stays so.
    pub async fn given_back(&self) -> Verdict {
        let end = time::now_ns() + PATIENCE_MS * 1_000_000;
        let in_use = || {
            self.queues.iter().any(|queue| queue.tx.in_use() || queue.rx.in_use() || queue.buffers_in_use())
                || self.control.as_ref().is_some_and(|ring| ring.in_use())
        };
        while in_use() {
            ensure!(time::now_ns() < end, "the backend is closed, but keeps a page mapped");
            time::sleep(1_000_000).await;
        }
        Ok(())
    }
}

impl Queue {
    fn put(&mut self, page: Granted, id: u16) {
        self.put_with(page, id, |_| {});
    }

    fn put_with(&mut self, page: Granted, id: u16, change: impl FnOnce(&mut NetifRxRequest)) {
        page.bytes().fill(0, PAGE_SIZE, EMPTY);
        let mut request = NetifRxRequest { id, pad: 0, gref: page.gref(0) };
        change(&mut request);
        self.rx.push(&request);
        self.next_id = id.wrapping_add(1);
        self.posted.push_back(Posted { id, page });
    }

    fn buffers_in_use(&self) -> bool {
        self.posted.iter().any(|posted| posted.page.in_use())
    }

    /// Takes one slot: the buffer that stands in it, and the response.
    async fn slot(&mut self, restock: bool) -> Verdict<(Posted, NetifRxResponse)> {
        let (_, response) = self.rx.response::<NetifRxResponse>().await?;
        let Some(posted) = self.posted.pop_front() else {
            return Err(Problem::Fail("a response to no request".into()));
        };
        if restock {
            let page = Granted::new(self.rx.dom, 1, false)?;
            self.put(page, self.next_id);
            self.rx.publish();
        }
        Ok((posted, response))
    }

    /// The next frame, looked at closely.
    ///
    /// # Errors
    /// [`Problem::Fail`]: none comes, or it is not as the protocol says.
    pub(super) async fn receive(&mut self, restock: bool) -> Verdict<Got> {
        let mut got = Got::default();
        loop {
            let (posted, response) = self.slot(restock).await?;
            ensure_eq!(response.id, posted.id, "the id of a response, in the slot of its request");
            let known = NETRXF_DATA_VALIDATED | NETRXF_CSUM_BLANK | NETRXF_MORE_DATA | NETRXF_EXTRA_INFO;
            ensure!(response.flags & !known == 0, "flags {:#x} of a response", response.flags);
            if got.slots == 0 {
                got.flags = response.flags & !NETRXF_MORE_DATA;
            } else {
                let behind = response.flags & !NETRXF_MORE_DATA;
                ensure_eq!(behind, 0, "flags of a slot behind a frame's first");
            }
            got.ids.push(response.id);
            got.slots += 1;
            got.failed |= response.status < 0;
            got.append(&posted, &response)?;
            let mut extra = got.slots == 1 && response.flags & NETRXF_EXTRA_INFO != 0;
            while extra {
                let (_, slot) = self.slot(restock).await?;
                let info = slot.as_extra();
                let kind = info.r#type;
                ensure!(
                    kind == XEN_NETIF_EXTRA_TYPE_GSO || kind == XEN_NETIF_EXTRA_TYPE_HASH,
                    "extra information of type {kind} to a frontend"
                );
                ensure!(
                    info.flags <= XEN_NETIF_EXTRA_FLAG_MORE,
                    "flags {:#x} of extra information",
                    info.flags
                );
                got.extras.push(info);
                extra = info.flags & XEN_NETIF_EXTRA_FLAG_MORE != 0;
            }
            if response.flags & NETRXF_MORE_DATA == 0 {
                return Ok(got);
            }
        }
    }
}

impl Got {
    /// Adds a slot's bytes.
    fn append(&mut self, posted: &Posted, response: &NetifRxResponse) -> Verdict {
        let (offset, len) = (usize::from(response.offset), response.status.max(0) as usize);
        ensure!(offset + len <= PAGE_SIZE, "{len} bytes at offset {offset} of a page");
        let mut page = [0; PAGE_SIZE];
        posted.page.bytes().read(0, &mut page);
        self.bytes.extend_from_slice(&page[offset..offset + len]);
        if response.status >= 0 {
            let other = page[..offset].iter().chain(&page[offset + len..]);
            ensure!(
                other.copied().all(|byte| byte == EMPTY),
                "bytes are written outside of what the response says"
            );
        }
        Ok(())
    }
}
