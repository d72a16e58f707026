//! The block ring from the frontend's side: invalid requests, grants that do not exist, requests that change after
//! they were published, and an overrun.

use alloc::string::ToString;

use frontends::xenbus::{Device, Nodes, StoreError, Xenstore};
use pvrt::event::Port;
use pvrt::executor::time;
use pvrt::grant::Granted;
use pvrt::mem::Pages;
use ring_abi::io::blkif::*;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::shared::SharedMemory;
use ring_abi::types::DomId;
use zerocopy::{FromZeros, IntoBytes};

use crate::report::Report;

/// Offsets in the ring page.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 4;
const RSP_PROD: usize = 8;
const RSP_EVENT: usize = 12;
pub(crate) const SLOTS: u32 = 32;
/// How long an answer may take.
const PATIENCE: u64 = 10_000_000_000;

/// A ring whose every word the cases write themselves.
pub(crate) struct Ring {
    page: Granted,
    port: Port,
    produced: u32,
    consumed: u32,
}

impl Ring {
    /// Connects to the backend; `None` if the backend does not connect.
    pub(crate) async fn connect(device: &Device) -> Result<Option<Self>, StoreError> {
        let store = device.store();
        device.wait_backend(|state| state == XenbusState::InitWait).await?;
        let page = Pages::zeroed(1).map_err(|_| StoreError::Broken)?;
        let dom = device.backend_dom();
        let page = Granted::whole(page, dom, false).map_err(StoreError::Refused)?;
        let port = Port::alloc_unbound(dom).map_err(StoreError::Refused)?;
        let bytes = page.shared();
        bytes.store_u32(REQ_EVENT, 1);
        bytes.store_u32(RSP_EVENT, 1);
        store.write(&device.front("ring-ref"), page.gref(0).to_string()).await?;
        store.write(&device.front("event-channel"), port.number().to_string()).await?;
        store.write(&device.front("protocol"), "x86_64-abi").await?;
        store.write(&device.front("state"), "3").await?;
        let state = device.wait_backend(|state| state >= XenbusState::Connected).await?;
        if state != XenbusState::Connected {
            return Ok(None);
        }
        store.write(&device.front("state"), "4").await?;
        Ok(Some(Self { page, port, produced: 0, consumed: 0 }))
    }

    /// Whether as many requests are unanswered as the ring has slots.
    pub(crate) fn is_full(&self) -> bool {
        self.produced.wrapping_sub(self.page.shared().load_u32(RSP_PROD)) >= SLOTS
    }

    /// Claims more requests than there are slots.
    pub(crate) fn overrun(&self) {
        self.page.shared().store_u32(REQ_PROD, self.produced.wrapping_add(SLOTS + 1));
        self.port.notify();
    }

    fn slot(index: u32) -> usize {
        64 + (index % SLOTS) as usize * 112
    }

    /// Writes a request and shows it.
    pub(crate) fn publish(&mut self, request: &BlkifRequest) {
        self.page.shared().write(Self::slot(self.produced), request.as_bytes());
        self.produced = self.produced.wrapping_add(1);
        self.page.shared().store_u32(REQ_PROD, self.produced);
        self.port.notify();
    }

    /// The next response; `None` if none comes.
    async fn answer(&mut self) -> Option<(u64, i16)> {
        let bytes = self.page.shared();
        let end = time::now_ns() + PATIENCE;
        while bytes.load_u32(RSP_PROD) == self.consumed {
            bytes.store_u32(RSP_EVENT, self.consumed.wrapping_add(1));
            if bytes.load_u32(RSP_PROD) != self.consumed {
                break;
            }
            if time::now_ns() > end {
                return None;
            }
            time::sleep(1_000_000).await;
        }
        let at = Self::slot(self.consumed);
        self.consumed = self.consumed.wrapping_add(1);
        Some((bytes.load_u64(at), bytes.load_u16(at + 10) as i16))
    }

    /// Sends a request, and returns the status in the response to that request.
    async fn ask(&mut self, request: &BlkifRequest) -> Option<i16> {
        self.publish(request);
        loop {
            let (id, status) = self.answer().await?;
            if id == request.id {
                return Some(status);
            }
        }
    }
}

/// Runs all cases on the first disk, if there is one.
pub(crate) async fn run(report: &mut Report, store: &Xenstore) {
    match on_first_disk(report, store).await {
        Ok(()) => {}
        Err(error) => report.case("the way to the disk", false, error),
    }
}

async fn on_first_disk(report: &mut Report, store: &Xenstore) -> Result<(), StoreError> {
    let disks = Device::list(store, "vbd").await?;
    let Some(path) = disks.first() else {
        pvrt::println!("hostile: no disk, so no block cases");
        return Ok(());
    };
    // The first connection must fail: its ring was never granted, and its port does not exist.
    let device = Device::open(store, path).await?;
    let ring = Ring::connect(&device).await?;
    report.case("connected", ring.is_some(), path);
    let Some(mut ring) = ring else { return Ok(()) };
    let sectors: u64 = store.read_as(&device.back("sectors")).await?;
    let dom = device.backend_dom();
    requests(report, &mut ring, dom, sectors).await;
    races(report, &mut ring, dom).await;
    overrun(report, &mut ring, &device).await;
    store.write(&device.front("state"), "6").await?;
    Ok(())
}

/// A request for one page.
fn request(id: u64, operation: u8, gref: u32) -> BlkifRequest {
    let mut request = BlkifRequest::new_zeroed();
    request.operation = operation;
    request.nr_segments = 1;
    request.id = id;
    request.seg[0].gref = gref;
    request.seg[0].last_sect = 7;
    request
}

async fn requests(report: &mut Report, ring: &mut Ring, dom: DomId, sectors: u64) {
    let Ok(buffer) = Pages::zeroed(1) else { return };
    let Ok(buffer) = Granted::whole(buffer, dom, false) else { return };
    let gref = buffer.gref(0).raw();
    let read = request(1, BLKIF_OP_READ, gref);
    let good = ring.ask(&read).await;
    report.case("a read", good == Some(0), good);
    let with = |change: fn(&mut BlkifRequest)| {
        let mut request = read;
        change(&mut request);
        request
    };
    let mut cases = alloc::vec![
        ("12 segments", with(|r| r.nr_segments = 12)),
        ("255 segments", with(|r| r.nr_segments = 255)),
        ("first after last", with(|r| r.seg[0].first_sect = 8)),
        ("sector 8 of a page", with(|r| r.seg[0].last_sect = 8)),
        ("sector 255 of a page", with(|r| r.seg[0].last_sect = 255)),
        ("sector -1", with(|r| r.sector_number = u64::MAX)),
        ("a sector that wraps", with(|r| r.sector_number = u64::MAX - 3)),
        ("a sector whose byte wraps", with(|r| r.sector_number = 1 << 55)),
        ("gref -1", with(|r| r.seg[0].gref = u32::MAX)),
        ("gref 9999", with(|r| r.seg[0].gref = 9999)),
        // References 0 and 1 are left out: the console's and xenstore's pages are granted, and a read into
        // them harms only this domain.
        ("a reserved gref", with(|r| r.seg[0].gref = 7)),
        ("operation 4", with(|r| r.operation = 4)),
        ("operation 7", with(|r| r.operation = 7)),
        ("operation 255", with(|r| r.operation = 255)),
    ];
    let mut end = read;
    end.sector_number = sectors;
    cases.push(("behind the last sector", end));
    end.sector_number = sectors.saturating_sub(7);
    cases.push(("over the last sector", end));
    for (name, request) in cases {
        let got = ring.ask(&request).await;
        report.case(name, got.is_some_and(|status| status < 0), got);
    }
    // Some of the request's grants are good. The backend must give all of them back, since one is bad.
    let mut mixed = read;
    mixed.nr_segments = 11;
    for segment in &mut mixed.seg {
        *segment = read.seg[0];
    }
    mixed.seg[10].gref = 5000;
    let got = ring.ask(&mixed).await;
    report.case("ten good grants and one bad", got == Some(-1), got);
    let mut none = read;
    none.nr_segments = 0;
    let got = ring.ask(&none).await;
    report.case("no segment", got.is_some(), got);
    for word in 0..512 {
        buffer.shared().store_u64(word * 8, 9998);
    }
    indirect(report, ring, gref).await;
    let discard = BlkifRequestDiscard {
        operation: BLKIF_OP_DISCARD,
        id: 1,
        sector_number: sectors - 1,
        nr_sectors: u64::MAX,
        ..FromZeros::new_zeroed()
    };
    let got = ring.ask(&BlkifRequest::from_discard(&discard)).await;
    report.case("a discard of everything", got.is_some_and(|status| status < 0), got);
    let good = ring.ask(&read).await;
    report.case("a read after all that", good == Some(0), good);
    let end = time::now_ns() + PATIENCE;
    while buffer.in_use() && time::now_ns() < end {
        time::sleep(1_000_000).await;
    }
    report.case("all grants were given back", !buffer.in_use(), gref);
}

async fn indirect(report: &mut Report, ring: &mut Ring, gref: u32) {
    let base = BlkifRequestIndirect {
        operation: BLKIF_OP_INDIRECT,
        indirect_op: BLKIF_OP_READ,
        nr_segments: 12,
        id: 1,
        indirect_grefs: [gref; 8],
        ..FromZeros::new_zeroed()
    };
    for (name, request) in [
        ("segments with bad grefs", base),
        ("65535 indirect segments", BlkifRequestIndirect { nr_segments: u16::MAX, ..base }),
        ("no indirect segment", BlkifRequestIndirect { nr_segments: 0, ..base }),
        ("an indirect indirect", BlkifRequestIndirect { indirect_op: BLKIF_OP_INDIRECT, ..base }),
        ("an indirect discard", BlkifRequestIndirect { indirect_op: BLKIF_OP_DISCARD, ..base }),
        ("indirect operation 200", BlkifRequestIndirect { indirect_op: 200, ..base }),
        (
            "an indirect page that is not there",
            BlkifRequestIndirect { indirect_grefs: [u32::MAX; 8], ..base },
        ),
        ("indirect at sector -1", BlkifRequestIndirect { sector_number: u64::MAX, ..base }),
    ] {
        let got = ring.ask(&BlkifRequest::from_indirect(&request)).await;
        let holds = got.is_some_and(|status| status < 0 || request.nr_segments == 0);
        report.case(name, holds, got);
    }
}

/// Changes requests after they were published.
async fn races(report: &mut Report, ring: &mut Ring, dom: DomId) {
    let Ok(buffer) = Pages::zeroed(1) else { return };
    let Ok(buffer) = Granted::whole(buffer, dom, false) else { return };
    let gref = buffer.gref(0).raw();
    let mut unanswered = 0;
    for round in 0..400u64 {
        let request = request(1000 + round, BLKIF_OP_READ, gref);
        let at = Ring::slot(ring.produced);
        ring.publish(&request);
        let bytes = ring.page.shared();
        for turn in 0..40u64 {
            bytes.store_u8(at + 1, if turn % 2 == 0 { 255 } else { 1 });
            bytes.store_u8(at, if turn % 3 == 0 { 6 } else { 0 });
            bytes.store_u64(at + 16, turn.wrapping_mul(0x1000_0000_0000_0001));
            bytes.store_u32(at + 24, if turn % 2 == 0 { u32::MAX } else { gref });
            if turn % 8 == 0 {
                pvrt::hypercall::sched::yield_cpu();
            }
        }
        bytes.write(at, request.as_bytes());
        unanswered += u32::from(ring.answer().await.is_none());
        if unanswered > 0 {
            break;
        }
    }
    report.case("requests that change", unanswered == 0, unanswered);
    let good = ring.ask(&request(1, BLKIF_OP_READ, gref)).await;
    report.case("a read after them", good == Some(0), good);
}

/// Claims more requests than there are slots: the backend ends the connection.
async fn overrun(report: &mut Report, ring: &mut Ring, device: &Device) {
    ring.overrun();
    let state = time::timeout(PATIENCE, device.wait_backend(|state| state >= XenbusState::Closing)).await;
    report.case("an overrun", matches!(state, Ok(Ok(_))), ());
    ring.page.shared().store_u32(REQ_PROD, ring.produced.wrapping_add(1 << 31));
    for _ in 0..1000 {
        ring.port.notify();
    }
}
