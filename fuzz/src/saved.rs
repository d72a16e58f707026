//! A saved domain, which may be anybody's, as `xl restore` reads it.

use core::pin::pin;
use core::task::{Context, Poll, Waker};

use migration::format::MAX_PAGES;
use migration::tables::{self, ENTRIES};
use migration::{Reader, Record, StreamError};

/// What a stream may make its reader keep: the lists of one record.
const MOST: usize = 1 << 20;

/// Reads a stream to its end, or to its first fault.
pub(crate) fn run(data: &[u8]) {
    let mut reading = pin!(read(data));
    match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => {}
        Poll::Ready(Err(error)) => {
            assert!(error.offset <= data.len() as u64, "{error}: beyond the stream");
            assert!(!error.to_string().is_empty());
        }
        Poll::Pending => panic!("nothing waits in memory"),
    }
}

async fn read(data: &[u8]) -> Result<(), StreamError> {
    let (config, mut reader) = Reader::open(data).await?;
    assert!(config.len() <= data.len());
    let mut last = None;
    loop {
        match reader.next().await? {
            Record::Pages(list) => {
                assert!(list.len() <= MAX_PAGES);
                for page in &list {
                    assert!(last.is_some_and(|last| page.pfn() <= last), "a page beyond the list");
                    if page.has_data() {
                        let mut words = Box::new([0; ENTRIES]);
                        reader.page(zerocopy::transmute_mut!(&mut *words)).await?;
                        let known = |pfn: u64| last.filter(|last| pfn <= *last);
                        if page.level() > 0 && tables::localise(page.level(), &mut words, known).is_ok() {
                            let frames = words.iter().filter(|entry| **entry & 1 != 0);
                            let beyond = |entry: &u64| (entry >> 12 & 0xff_ffff_ffff) > last.unwrap_or(0);
                            assert!(frames.into_iter().all(|entry| !beyond(entry)));
                        }
                    }
                }
            }
            Record::P2mFrames(end, list) => {
                last = Some(u64::from(end));
                assert!(list.len() * 8 <= MOST);
            }
            Record::Cpuid(leaves) => assert!(leaves.len() * 24 <= MOST),
            Record::Msrs(msrs) => assert!(msrs.len() * 16 <= MOST),
            Record::Vcpu(id, _, bytes) => assert!(id < 128 && bytes.len() <= MOST),
            Record::Tsc(_) | Record::SharedInfo(_) => {}
            Record::End => return Ok(()),
        }
    }
}
