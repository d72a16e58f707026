//! Reading a stream, which may be anybody's.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Display;
use core::hash::Hasher;

use ring_abi::guest_context::{XenCpuidLeaf, XenMsrEntry};
use ring_abi::types::PAGE_SIZE;
use twox_hash::XxHash64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::error::{Place, StreamError};
use crate::format::*;
use crate::io::{IoFailure, Source};
use crate::order::Order;
use crate::part::VcpuPart;

/// One record.
#[derive(Debug)]
pub enum Record {
    /// What the domain sees of the CPU.
    Cpuid(Vec<XenCpuidLeaf>),
    /// The same, of MSRs.
    Msrs(Vec<XenMsrEntry>),
    /// The P2M list: the highest frame number, and the frames of the list's pages.
    P2mFrames(u32, Vec<u64>),
    /// Pages: the contents of those that have some follow by [`Reader::page`].
    Pages(Vec<PageEntry>),
    /// How the domain sees the TSC.
    Tsc(TscInfo),
    /// The page that the guest shares with the hypervisor.
    SharedInfo(Box<[u8; PAGE_SIZE]>),
    /// A vCPU's state.
    Vcpu(u32, VcpuPart, Vec<u8>),
    /// The stream is whole.
    End,
}

/// Reads a saved domain's bytes from a source. Every length is checked before memory is taken for it.
pub struct Reader<S> {
    source: S,
    hash: XxHash64,
    offset: u64,
    place: Place,
    /// Where the record at `place` begins.
    begun: u64,
    next_record: u32,
    order: Order,
    last_pfn: u64,
    /// Pages that the last record still has.
    due: usize,
    /// The stream has checksums.
    has_checks: bool,
    /// Nothing stands behind the last checksum.
    is_checked: bool,
}

impl<S: Source> Reader<S> {
    /// Reads what comes before the first record; gives the domain's configuration, JSON as of `libxl_domain_config`.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub async fn open(source: S) -> Result<(String, Self), StreamError> {
        let mut reader = Self {
            source,
            hash: XxHash64::with_seed(0),
            offset: 0,
            place: Place::Header,
            begun: 0,
            next_record: 0,
            order: Order::default(),
            last_pfn: 0,
            due: 0,
            has_checks: false,
            is_checked: false,
        };
        let config = reader.xl_header().await?;
        reader.libxl_header().await?;
        reader.image_headers().await?;
        Ok((config, reader))
    }

    /// Whether the stream has checksums.
    pub fn has_checks(&self) -> bool {
        self.has_checks
    }

    /// An error at the record that was read last, for who finds wrong what a record says.
    pub fn wrong(&self, what: impl Display) -> StreamError {
        StreamError { place: self.place, offset: self.begun, what: what.to_string() }
    }

    fn at(&mut self, place: Place) {
        (self.place, self.begun) = (place, self.offset);
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StreamError> {
        if let Err(failure) = self.source.read(bytes).await {
            return Err(match failure {
                IoFailure::End => self.wrong("the stream ends here"),
                IoFailure::Failed(why) => self.wrong(why),
            });
        }
        self.hash.write(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    async fn get<T: FromZeros + FromBytes + IntoBytes>(&mut self) -> Result<T, StreamError> {
        let mut value = T::new_zeroed();
        self.fill(value.as_mut_bytes()).await?;
        Ok(value)
    }

    async fn bytes(&mut self, length: u32) -> Result<Vec<u8>, StreamError> {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(length as usize)
            .map_err(|_| self.wrong(format!("no memory for {length} bytes")))?;
        bytes.resize(length as usize, 0);
        self.fill(&mut bytes).await?;
        Ok(bytes)
    }

    async fn skip(&mut self, mut length: u32) -> Result<(), StreamError> {
        let mut piece = [0; 64];
        while length > 0 {
            let now = length.min(64);
            self.fill(&mut piece[..now as usize]).await?;
            length -= now;
        }
        Ok(())
    }

    async fn xl_header(&mut self) -> Result<String, StreamError> {
        let header: XlHeader = self.get().await?;
        if header.magic != *XL_MAGIC {
            return Err(self.wrong("this is no saved domain of xl's"));
        }
        if header.byteorder != BYTEORDER {
            return Err(self.wrong(format!("the byte order is {:#x}, not {BYTEORDER:#x}", header.byteorder)));
        }
        let known = MANDATORY_JSON | MANDATORY_STREAM_V2;
        if header.mandatory_flags != known {
            let flags = header.mandatory_flags;
            return Err(
                self.wrong(format!("the flags are {flags:#x}; only {known:#x} (JSON, version 2) is read"))
            );
        }
        if header.optional_data_len < 4 || header.optional_data_len > MAX_CONFIG + 4 {
            let length = header.optional_data_len;
            return Err(
                self.wrong(format!("the configuration has {length} bytes, not 4 to {}", MAX_CONFIG + 4))
            );
        }
        let length: u32 = self.get().await?;
        let rest = (header.optional_data_len - 4).checked_sub(length);
        let rest = rest
            .ok_or_else(|| self.wrong(format!("the configuration's length is {length}, beyond its place")))?;
        let mut config = self.bytes(length).await?;
        self.skip(rest).await?;
        while config.last() == Some(&0) {
            config.pop();
        }
        String::from_utf8(config).map_err(|_| self.wrong("the configuration is not UTF-8"))
    }

    async fn libxl_header(&mut self) -> Result<(), StreamError> {
        self.at(Place::Libxl { number: 0 });
        let header: [u8; LIBXL_HEADER_BYTES] = self.get().await?;
        let [ident, rest] = [&header[..8], &header[8..]].map(|bytes| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            u64::from_be_bytes(word)
        });
        let wanted = u64::from(LIBXL_VERSION) << 32 | u64::from(LIBXL_OPTIONS);
        if (ident, rest) != (LIBXL_IDENT, wanted) {
            return Err(self
                .wrong(format!("libxl's header is {ident:#x} {rest:#x}, not {LIBXL_IDENT:#x} {wanted:#x}")));
        }
        let head: RecordHead = self.get().await?;
        if (head.kind, head.length) != (LIBXL_LIBXC_CONTEXT, 0) {
            return Err(self.wrong(format!("the record has type {}, not that of libxc's stream", head.kind)));
        }
        Ok(())
    }

    async fn image_headers(&mut self) -> Result<(), StreamError> {
        self.at(Place::ImageHeader);
        let header: [u8; IMAGE_HEADER_BYTES] = self.get().await?;
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let marker = u64::from(word(0)) << 32 | u64::from(word(4));
        if (marker, word(8)) != (IMAGE_MARKER, IMAGE_ID) {
            return Err(self.wrong(format!("the marker is {marker:#x} {:#x}", word(8))));
        }
        if !(IMAGE_VERSION_OLDEST..=IMAGE_VERSION).contains(&word(12)) {
            let (wanted, got) = (IMAGE_VERSION_OLDEST..=IMAGE_VERSION, word(12));
            return Err(self.wrong(format!("the version is {got}; those that are read are {wanted:?}")));
        }
        if header[16..].iter().any(|byte| *byte != 0) {
            return Err(self.wrong("the options name another byte order, or something unknown"));
        }
        let domain: DomainHeader = self.get().await?;
        if domain.kind != DOMAIN_X86_PV {
            return Err(
                self.wrong(format!("the domain has type {}; only PV domains (1) are read", domain.kind))
            );
        }
        if (domain.page_shift, domain.reserved) != (12, 0) {
            return Err(self.wrong(format!("the page shift is {}, not 12", domain.page_shift)));
        }
        Ok(())
    }

    /// The next record.
    ///
    /// # Errors
    /// See [`StreamError`].
    ///
    /// # Panics
    /// Pages of the last record were not read.
    pub async fn next(&mut self) -> Result<Record, StreamError> {
        assert_eq!(self.due, 0, "a record's pages are read before the next record");
        loop {
            self.at(Place::Record { number: self.next_record, kind: None });
            let hash = self.hash.finish();
            let head: RecordHead = self.get().await?;
            self.place = Place::Record { number: self.next_record, kind: Some(head.kind) };
            self.next_record = self.next_record.saturating_add(1);
            if head.kind != CHECKSUM && head.kind != END {
                self.is_checked = false;
            }
            let limit = match head.kind {
                PAGE_DATA => 8 + MAX_PAGES as u32 * (8 + PAGE_SIZE as u32),
                _ => MAX_BODY,
            };
            if head.length > limit {
                return Err(self.wrong(format!("the body has {} bytes, more than {limit}", head.length)));
            }
            match head.kind {
                CHECKSUM => self.checksum(head.length, hash).await?,
                kind if kind & OPTIONAL != 0 => self.skip(head.length.next_multiple_of(8)).await?,
                kind => {
                    self.order.next(kind).map_err(|why| self.wrong(why))?;
                    if let Some(record) = self.record(kind, head.length).await? {
                        return Ok(record);
                    }
                }
            }
        }
    }

    async fn checksum(&mut self, length: u32, hash: u64) -> Result<(), StreamError> {
        self.expect(length, 8)?;
        let told = u64::from_le_bytes(self.get().await?);
        if told != hash {
            return Err(self.wrong(format!(
                "the checksum is {told:#x}, and of the bytes {hash:#x}: the stream is damaged"
            )));
        }
        (self.has_checks, self.is_checked) = (true, true);
        Ok(())
    }

    fn expect(&self, length: u32, wanted: usize) -> Result<(), StreamError> {
        if length as usize == wanted {
            return Ok(());
        }
        Err(self.wrong(format!("the body has {length} bytes, not {wanted}")))
    }

    /// Elements of `T`, and at least `least`.
    async fn list<T>(&mut self, length: u32, least: usize) -> Result<Vec<T>, StreamError>
    where
        T: FromBytes + Clone + zerocopy::Immutable,
    {
        let size = size_of::<T>() as u32;
        if !length.is_multiple_of(size) || length / size < least as u32 {
            return Err(
                self.wrong(format!("the body has {length} bytes, no list of at least {least} of {size}"))
            );
        }
        let bytes = self.bytes(length.next_multiple_of(8)).await?;
        let elements = bytes[..length as usize].chunks_exact(size as usize);
        Ok(elements.filter_map(|element| T::read_from_bytes(element).ok()).collect())
    }

    async fn record(&mut self, kind: u32, length: u32) -> Result<Option<Record>, StreamError> {
        Ok(Some(match kind {
            X86_PV_INFO => {
                self.expect(length, size_of::<PvInfo>())?;
                let info: PvInfo = self.get().await?;
                if (info.guest_width, info.pt_levels) != (PV_64.guest_width, PV_64.pt_levels) {
                    let (width, levels) = (info.guest_width, info.pt_levels);
                    return Err(self
                        .wrong(format!("a guest of {width} bytes a word and {levels} levels: not 8 and 4")));
                }
                return Ok(None);
            }
            STATIC_DATA_END => {
                self.expect(length, 0)?;
                return Ok(None);
            }
            X86_CPUID_POLICY => Record::Cpuid(self.list(length, 1).await?),
            X86_MSR_POLICY => Record::Msrs(self.list(length, 1).await?),
            X86_PV_P2M_FRAMES => self.p2m_frames(length).await?,
            PAGE_DATA => self.pages(length).await?,
            X86_TSC_INFO => {
                self.expect(length, size_of::<TscInfo>())?;
                Record::Tsc(self.get().await?)
            }
            SHARED_INFO => {
                self.expect(length, PAGE_SIZE)?;
                let page = self.bytes(length).await?.into_boxed_slice().try_into();
                Record::SharedInfo(page.map_err(|_| self.wrong("no page"))?)
            }
            END => {
                self.expect(length, 0)?;
                if self.has_checks && !self.is_checked {
                    return Err(self.wrong("the last checksum is missing before it: the stream is damaged"));
                }
                self.libxl_end().await?;
                Record::End
            }
            kind => match VcpuPart::ALL.iter().position(|(_, part)| *part == kind) {
                Some(index) => self.vcpu(length, index).await?,
                None => return Err(self.wrong("this type is none of a PV domain's")),
            },
        }))
    }

    async fn p2m_frames(&mut self, length: u32) -> Result<Record, StreamError> {
        if length < 16 || !length.is_multiple_of(8) {
            return Err(self.wrong(format!("the body has {length} bytes, no list of frames")));
        }
        let [first, last]: [u32; 2] = self.get().await?;
        if first != 0 || u64::from(last) > MAX_PFN {
            return Err(self.wrong(format!("frames {first:#x} to {last:#x}: not 0 to at most {MAX_PFN:#x}")));
        }
        let frames: Vec<u64> = self.list(length - 8, 1).await?;
        let wanted = last as usize / (PAGE_SIZE / 8) + 1;
        if frames.len() != wanted {
            return Err(self.wrong(format!("{} frames of a list that has {wanted}", frames.len())));
        }
        if let Some(frame) = frames.iter().find(|frame| **frame > u64::from(last)) {
            return Err(self.wrong(format!("the list's frame {frame:#x} is beyond the last, {last:#x}")));
        }
        self.last_pfn = last.into();
        Ok(Record::P2mFrames(last, frames))
    }

    async fn pages(&mut self, length: u32) -> Result<Record, StreamError> {
        if length < 8 {
            return Err(self.wrong(format!("the body has {length} bytes, no list of pages")));
        }
        let [count, reserved]: [u32; 2] = self.get().await?;
        if count == 0 || count as usize > MAX_PAGES || reserved != 0 {
            return Err(self.wrong(format!("{count} pages (reserved: {reserved:#x}), not 1 to {MAX_PAGES}")));
        }
        // The list lies within the body, or else the lengths differ below.
        let words: Vec<u64> = self.list(count * 8, 1).await?;
        let list: Vec<PageEntry> = words.into_iter().map(PageEntry).collect();
        for page in &list {
            if !page.is_valid() {
                return Err(self.wrong(format!("the page {:#x} is of no known kind", page.0)));
            }
            if page.pfn() > self.last_pfn {
                return Err(self.wrong(format!(
                    "page {:#x} is beyond the last, {:#x}",
                    page.pfn(),
                    self.last_pfn
                )));
            }
        }
        self.due = list.iter().filter(|page| page.has_data()).count();
        self.expect(length, 8 + list.len() * 8 + self.due * PAGE_SIZE)?;
        Ok(Record::Pages(list))
    }

    /// The contents of the next page of a record of pages.
    ///
    /// # Errors
    /// See [`StreamError`].
    ///
    /// # Panics
    /// The record has no further page.
    pub async fn page(&mut self, bytes: &mut [u8; PAGE_SIZE]) -> Result<(), StreamError> {
        assert!(self.due > 0, "the record has no further page");
        self.due -= 1;
        self.fill(bytes).await
    }

    async fn vcpu(&mut self, length: u32, index: usize) -> Result<Record, StreamError> {
        if length < 8 {
            return Err(self.wrong(format!("the body has {length} bytes, no vCPU's number")));
        }
        let [id, reserved]: [u32; 2] = self.get().await?;
        if id > MAX_VCPU || reserved != 0 {
            return Err(self.wrong(format!("vCPU {id} (reserved: {reserved:#x}), not 0 to {MAX_VCPU}")));
        }
        self.order.vcpu(id, index).map_err(|why| self.wrong(why))?;
        let mut bytes = self.bytes((length - 8).next_multiple_of(8)).await?;
        bytes.truncate(length as usize - 8);
        Ok(Record::Vcpu(id, VcpuPart::ALL[index].0, bytes))
    }

    /// Reads libxl's records behind libxc's stream to the last.
    async fn libxl_end(&mut self) -> Result<(), StreamError> {
        for number in 1.. {
            self.at(Place::Libxl { number });
            let head: RecordHead = self.get().await?;
            match head.kind {
                LIBXL_END if head.length == 0 => break,
                LIBXL_EMULATOR_XENSTORE_DATA | LIBXL_EMULATOR_CONTEXT if head.length <= MAX_LIBXL_BODY => {
                    self.skip(head.length.next_multiple_of(8)).await?;
                }
                kind => return Err(self.wrong(format!("a record of type {kind} and {} bytes", head.length))),
            }
        }
        Ok(())
    }
}
