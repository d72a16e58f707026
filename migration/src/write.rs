//! Writing a stream.

use alloc::format;
use alloc::string::{String, ToString};
use core::hash::Hasher;

use ring_abi::guest_context::{XenCpuidLeaf, XenMsrEntry};
use ring_abi::types::PAGE_SIZE;
use twox_hash::XxHash64;
use zerocopy::IntoBytes;

use crate::error::{Place, StreamError};
use crate::format::*;
use crate::io::Sink;
use crate::part::VcpuPart;

/// Bytes of pages between two checksums.
const CHECK_EVERY: u64 = 1 << 20;
/// The version of Xen whose ABI microhv has, as domains' headers name the hypervisor from which they come.
const XEN_VERSION: (u32, u32) = (4, 17);

/// Writes a saved domain's bytes into a sink.
pub struct Writer<S> {
    sink: S,
    hash: XxHash64,
    offset: u64,
    record: u32,
    /// Bytes since the last checksum.
    unchecked: u64,
    /// Pages with contents that the record under way still gets.
    due: usize,
}

impl<S: Sink> Writer<S> {
    /// Begins a stream: headers, configuration (JSON as of `libxl_domain_config`), and the checksum that says that there are checksums.
    ///
    /// # Errors
    /// The sink's; the configuration is too long.
    pub async fn begin(sink: S, config: &str) -> Result<Self, StreamError> {
        let (hash, offset, record, unchecked, due) = (XxHash64::with_seed(0), 0, 0, 0, 0);
        let mut writer = Self { sink, hash, offset, record, unchecked, due };
        // xl counts the NUL of its string.
        let config_len = config.len() as u32 + 1;
        if config_len > MAX_CONFIG {
            return Err(
                writer.error(format!("the configuration has {config_len} bytes, more than {MAX_CONFIG}"))
            );
        }
        let header = XlHeader {
            magic: *XL_MAGIC,
            byteorder: BYTEORDER,
            mandatory_flags: MANDATORY_JSON | MANDATORY_STREAM_V2,
            optional_flags: 0,
            optional_data_len: config_len + 4,
        };
        for bytes in [header.as_bytes(), &config_len.to_le_bytes(), config.as_bytes(), &[0]] {
            writer.put(bytes).await?;
        }
        writer.put(&LIBXL_IDENT.to_be_bytes()).await?;
        writer.put(&LIBXL_VERSION.to_be_bytes()).await?;
        writer.put(&LIBXL_OPTIONS.to_be_bytes()).await?;
        writer.put(RecordHead { kind: LIBXL_LIBXC_CONTEXT, length: 0 }.as_bytes()).await?;
        writer.put(&IMAGE_MARKER.to_be_bytes()).await?;
        writer.put(&IMAGE_ID.to_be_bytes()).await?;
        writer.put(&IMAGE_VERSION.to_be_bytes()).await?;
        writer.put(&[0; 8]).await?; // options: little-endian; the rest is reserved
        let (xen_major, xen_minor) = XEN_VERSION;
        let domain = DomainHeader { kind: DOMAIN_X86_PV, page_shift: 12, reserved: 0, xen_major, xen_minor };
        writer.put(domain.as_bytes()).await?;
        writer.checksum().await?;
        Ok(writer)
    }

    fn error(&self, what: String) -> StreamError {
        StreamError { place: Place::Record { number: self.record, kind: None }, offset: self.offset, what }
    }

    async fn put(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.hash.write(bytes);
        if let Err(failure) = self.sink.write(bytes).await {
            return Err(self.error(failure.to_string()));
        }
        self.offset += bytes.len() as u64;
        self.unchecked += bytes.len() as u64;
        Ok(())
    }

    /// Bytes that were written so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    async fn head(&mut self, kind: u32, length: usize) -> Result<(), StreamError> {
        debug_assert_eq!(self.due, 0, "a record's pages come before the next record");
        self.put(RecordHead { kind, length: length as u32 }.as_bytes()).await
    }

    async fn record(&mut self, kind: u32, parts: &[&[u8]]) -> Result<(), StreamError> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        self.head(kind, length).await?;
        for part in parts {
            self.put(part).await?;
        }
        self.put(&[0; 8][..length.next_multiple_of(8) - length]).await?;
        self.record += 1;
        Ok(())
    }

    async fn checksum(&mut self) -> Result<(), StreamError> {
        let hash = self.hash.finish();
        self.record(CHECKSUM, &[&hash.to_le_bytes()]).await?;
        self.unchecked = 0;
        Ok(())
    }

    /// What does not change while a domain runs: widths, and what the domain sees of the CPU.
    ///
    /// # Errors
    /// The sink's.
    pub async fn static_data(
        &mut self,
        leaves: &[XenCpuidLeaf],
        msrs: &[XenMsrEntry],
    ) -> Result<(), StreamError> {
        self.record(X86_PV_INFO, &[PV_64.as_bytes()]).await?;
        if !leaves.is_empty() {
            self.record(X86_CPUID_POLICY, &[leaves.as_bytes()]).await?;
        }
        if !msrs.is_empty() {
            self.record(X86_MSR_POLICY, &[msrs.as_bytes()]).await?;
        }
        self.record(STATIC_DATA_END, &[]).await
    }

    /// The frames (as the guest numbers them) of the P2M list's pages, which has entries for frames 0 to `last_pfn`.
    ///
    /// # Errors
    /// The sink's.
    pub async fn p2m_frames(&mut self, last_pfn: u32, frames: &[u64]) -> Result<(), StreamError> {
        self.record(X86_PV_P2M_FRAMES, &[&0u32.to_le_bytes(), &last_pfn.to_le_bytes(), frames.as_bytes()])
            .await
    }

    /// Begins a record of pages. [`Writer::page`] follows for each that has contents, in order.
    ///
    /// # Errors
    /// The sink's.
    ///
    /// # Panics
    /// The list is longer than [`MAX_PAGES`].
    pub async fn pages(&mut self, list: &[PageEntry]) -> Result<(), StreamError> {
        assert!(list.len() <= MAX_PAGES, "more pages than a record may have");
        let due = list.iter().filter(|page| page.has_data()).count();
        self.head(PAGE_DATA, 8 + list.len() * 8 + due * PAGE_SIZE).await?;
        self.put(&(list.len() as u64).to_le_bytes()).await?;
        for page in list {
            self.put(&page.0.to_le_bytes()).await?;
        }
        self.due = due;
        self.pages_done().await
    }

    /// The contents of the next page.
    ///
    /// # Errors
    /// The sink's.
    ///
    /// # Panics
    /// The record under way has no further page.
    pub async fn page(&mut self, bytes: &[u8; PAGE_SIZE]) -> Result<(), StreamError> {
        assert!(self.due > 0, "a page without its entry in the record");
        self.put(bytes).await?;
        self.due -= 1;
        self.pages_done().await
    }

    async fn pages_done(&mut self) -> Result<(), StreamError> {
        if self.due > 0 {
            return Ok(());
        }
        self.record += 1;
        if self.unchecked >= CHECK_EVERY { self.checksum().await } else { Ok(()) }
    }

    /// How the domain sees the TSC.
    ///
    /// # Errors
    /// The sink's.
    pub async fn tsc(&mut self, tsc: &TscInfo) -> Result<(), StreamError> {
        self.record(X86_TSC_INFO, &[tsc.as_bytes()]).await
    }

    /// The page that the guest shares with the hypervisor.
    ///
    /// # Errors
    /// The sink's.
    pub async fn shared_info(&mut self, page: &[u8; PAGE_SIZE]) -> Result<(), StreamError> {
        self.record(SHARED_INFO, &[page]).await
    }

    /// A part of a vCPU's state.
    ///
    /// # Errors
    /// The sink's.
    pub async fn vcpu(&mut self, id: u32, part: VcpuPart, bytes: &[u8]) -> Result<(), StreamError> {
        self.record(part.kind(), &[&id.to_le_bytes(), &[0; 4], bytes]).await
    }

    /// Ends the stream, and gives the sink back.
    ///
    /// # Errors
    /// The sink's.
    pub async fn end(mut self) -> Result<S, StreamError> {
        self.checksum().await?;
        self.record(END, &[]).await?;
        self.put(RecordHead { kind: LIBXL_END, length: 0 }.as_bytes()).await?;
        Ok(self.sink)
    }

    /// Gives the sink of a stream that is not ended back.
    pub fn give_up(self) -> S {
        self.sink
    }
}
