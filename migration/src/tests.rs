//! Streams written and read again, cut, and damaged.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;
use ring_abi::guest_context::XenCpuidLeaf;

use crate::format::*;
use crate::{Place, Reader, Record, StreamError, VcpuPart, Writer};

/// Runs a future of which nothing waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("nothing waits in memory"),
    }
}

const CONFIG: &str = "{\"c_info\": {\"name\": \"web\"}}";

fn page(seed: u64) -> [u8; 4096] {
    core::array::from_fn(|at| (seed as usize * 31 + at * 7) as u8)
}

/// A stream of `count` pages, each second one without contents.
async fn write(count: u64) -> Result<Vec<u8>, StreamError> {
    let mut writer = Writer::begin(Vec::new(), CONFIG).await?;
    writer.static_data(&[XenCpuidLeaf { leaf: 1, ..Default::default() }], &[]).await?;
    writer.p2m_frames(count as u32 - 1, &std::vec![0; (count as usize).div_ceil(512)]).await?;
    let list: Vec<PageEntry> =
        (0..count).map(|pfn| PageEntry::new(pfn, if pfn % 2 == 0 { 9 } else { PageEntry::XTAB })).collect();
    for chunk in list.chunks(64) {
        writer.pages(chunk).await?;
        for entry in chunk.iter().filter(|entry| entry.has_data()) {
            writer.page(&page(entry.pfn())).await?;
        }
    }
    writer.tsc(&TscInfo { khz: 7, ..Default::default() }).await?;
    writer.shared_info(&page(99)).await?;
    writer.vcpu(0, VcpuPart::Basic, &[1, 2, 3]).await?;
    writer.vcpu(0, VcpuPart::Xsave, &[4; 24]).await?;
    writer.end().await
}

/// Reads a stream to its end, and gives a line for each record.
async fn read(mut bytes: &[u8]) -> Result<Vec<String>, StreamError> {
    let (config, mut reader) = Reader::open(&mut bytes).await?;
    let mut lines = std::vec![config];
    loop {
        let record = reader.next().await?;
        let mut line = std::format!("{record:?}");
        if let Record::Pages(list) = &record {
            for entry in list.iter().filter(|entry| entry.has_data()) {
                let mut contents = [0; 4096];
                reader.page(&mut contents).await?;
                line.push(if contents == page(entry.pfn()) { '+' } else { '?' });
            }
        }
        lines.push(line);
        if matches!(record, Record::End) {
            return Ok(lines);
        }
    }
}

impl crate::Source for &mut &[u8] {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), crate::IoFailure> {
        (**self).read(bytes).await
    }
}

#[test]
fn what_is_written_is_read() {
    let lines = now(read(&now(write(3)).unwrap())).unwrap();
    assert_eq!(lines[0], CONFIG);
    assert!(lines[1].contains("leaf: 1,"), "{lines:?}");
    assert_eq!(lines[2], "P2mFrames(2, [0])");
    assert!(lines[3].ends_with("++"), "two pages have contents: {lines:?}");
    assert!(lines[4].contains("khz: 7"), "{lines:?}");
    assert_eq!(lines[6], "Vcpu(0, Basic, [1, 2, 3])");
    assert_eq!(lines.last().unwrap(), "End");
}

#[test]
fn checksums_stand_after_each_mebibyte_of_pages() {
    let bytes = now(write(2048)).unwrap();
    let marks = bytes.windows(4).filter(|window| *window == CHECKSUM.to_le_bytes()).count();
    assert_eq!(marks, 2 + 4, "at the start, at the end, and one a mebibyte");
    now(read(&bytes)).unwrap();
}

#[test]
fn a_stream_cut_anywhere_is_refused_at_its_record() {
    let bytes = now(write(2)).unwrap();
    let mut places = Vec::new();
    for length in 0..bytes.len() {
        let error = now(read(&bytes[..length])).unwrap_err();
        assert_eq!(error.what, "the stream ends here");
        assert!(error.offset <= length as u64);
        places.push(error.place);
    }
    assert_eq!(places[0], Place::Header);
    places.dedup();
    assert!(places.contains(&Place::Record { number: 5, kind: Some(PAGE_DATA) }), "{places:?}");
    assert!(matches!(places.last(), Some(Place::Libxl { number: 1 })));
}

#[test]
fn a_stream_with_a_changed_bit_is_refused() {
    let bytes = now(write(1)).unwrap();
    for bit in 0..bytes.len() * 8 {
        // Of the one page, some bits.
        let in_page = (500 * 8..4000 * 8).contains(&bit);
        if in_page && bit % 97 != 0 {
            continue;
        }
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(now(read(&changed)).is_err(), "bit {bit} of {}", bytes.len() * 8);
    }
}

#[test]
fn a_stream_without_checksums_is_read_and_one_that_lost_one_is_not() {
    let bytes = now(write(1)).unwrap();
    let at: Vec<usize> =
        (0..bytes.len() - 4).filter(|at| bytes[*at..*at + 4] == CHECKSUM.to_le_bytes()).collect();
    assert_eq!(at.len(), 2);
    let without = |which: &[usize]| {
        let mut left = bytes.clone();
        which.iter().rev().for_each(|at| drop(left.drain(*at..*at + 16)));
        now(read(&left))
    };
    without(&at).unwrap();
    let error = without(&at[1..]).unwrap_err();
    assert!(error.what.contains("the last checksum is missing"), "{error}");
    let error = without(&at[..1]).unwrap_err();
    assert!(error.what.contains("the stream is damaged"), "{error}");
}

#[test]
fn records_out_of_order_are_refused() {
    use crate::order::Order;
    let told = |kinds: &[u32]| {
        let mut order = Order::default();
        kinds.iter().map(|kind| order.next(*kind)).collect::<Result<Vec<()>, _>>().err()
    };
    let start = [X86_PV_INFO, STATIC_DATA_END, X86_PV_P2M_FRAMES];
    assert_eq!(told(&start), None);
    assert_eq!(told(&[X86_PV_INFO, X86_PV_P2M_FRAMES, PAGE_DATA]), None, "version 2");
    let moved = [X86_PV_INFO, X86_PV_P2M_FRAMES, PAGE_DATA, X86_PV_P2M_FRAMES, PAGE_DATA];
    assert_eq!(told(&moved), None, "a guest that ran moved its list");
    assert!(told(&[&start[..], &[SHARED_INFO, X86_PV_P2M_FRAMES]].concat()).is_some());
    for (more, why) in [
        (X86_PV_INFO, "before"),
        (X86_CPUID_POLICY, "behind STATIC_DATA_END"),
        (VERIFY, "not read"),
        (END, "SHARED_INFO is missing"),
    ] {
        let mut kinds = start.to_vec();
        kinds.push(more);
        assert!(told(&kinds).is_some_and(|told| told.contains(why)), "{more}: {:?}", told(&kinds));
    }
    assert!(told(&[PAGE_DATA]).is_some() && told(&[X86_PV_INFO, PAGE_DATA]).is_some());
    let mut order = Order::default();
    assert!(order.vcpu(3, 2).is_err() && order.vcpu(3, 0).is_ok() && order.vcpu(3, 0).is_err());
    assert!(order.vcpu(3, 2).is_ok() && order.next(PAGE_DATA).is_err());
}

proptest! {
    /// Whatever bytes stand there: an error, and no panic.
    #[test]
    fn nonsense_is_refused(at in 0usize..400, bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
        let mut stream = now(write(1)).unwrap();
        let end = stream.len().min(at + bytes.len());
        let changed = stream[at..end] != bytes[..end - at];
        stream[at..end].copy_from_slice(&bytes[..end - at]);
        prop_assert!(now(read(&stream)).is_err() == changed);
    }
}
