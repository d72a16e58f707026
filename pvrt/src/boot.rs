//! From the first Rust function to the kernel's main.
#![cfg_attr(freestanding, allow(unsafe_code))] // start_info and the ramdisk become references

use ring_abi::shared::SharedBytes;
use ring_abi::types::{Mfn, Port};

/// The xenstore ring that the builder set up for this domain.
#[derive(Clone, Copy)]
pub struct StoreInfo {
    /// The ring page.
    pub page: SharedBytes<'static>,
    /// The ring page's machine frame.
    pub mfn: Mfn,
    /// The event channel to the xenstore daemon.
    pub port: Port,
}

/// What the builder told this kernel.
#[derive(Clone, Copy)]
pub struct BootInfo {
    /// Pages of memory at start.
    pub nr_pages: usize,
    /// This is the control domain.
    pub initial_domain: bool,
    /// The command line.
    pub command_line: &'static str,
    /// The ramdisk (in dom0 the boot bundle).
    pub ramdisk: Option<&'static [u8]>,
    /// The xenstore ring; none in dom0.
    pub store: Option<StoreInfo>,
}

impl BootInfo {
    /// The value of the first `key=value` word of the command line, or `""` for a bare `key`.
    pub fn option(&self, key: &str) -> Option<&'static str> {
        option(self.command_line, key)
    }
}

/// The value of the first `key=value` word of `line`, or `""` for a bare `key`.
fn option<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| match word.split_once('=') {
        Some((name, value)) if name == key => Some(value),
        None if word == key => Some(""),
        _ => None,
    })
}

/// An I/O port number as the command line gives it: `0xf4` or `244`.
#[cfg_attr(not(any(freestanding, test)), allow(dead_code))]
fn parse_port(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(freestanding)]
pub use image::{debug_exit_port, install_handlers, run};
#[cfg(freestanding)]
pub(crate) use image::{shared_page, start};

#[cfg(freestanding)]
mod image {
    use super::*;
    use crate::arch::{entry, traps};
    use crate::hypercall::{physdev, sched, vcpu};
    use crate::{clock, console, event, executor, mem, shared};
    use core::future::Future;
    use ring_abi::sched::SHUTDOWN_POWEROFF;
    use ring_abi::start_info::{SIF_INITDOMAIN, SIF_MOD_START_PFN, StartInfo};
    use ring_abi::types::PAGE_SIZE;

    unsafe extern "Rust" {
        /// The kernel's main, by [`crate::kernel!`].
        fn pvrt_main(boot: BootInfo) -> !;
    }

    /// start_info; valid from the first instruction on.
    fn start_info() -> &'static StartInfo {
        // SAFETY: the entry code recorded the address that the builder passed in rsi. The page is this kernel's own,
        // and nobody writes to it.
        unsafe { &*(entry::start_info_va() as *const StartInfo) }
    }

    fn command_line() -> &'static str {
        let bytes = start_info().command_line();
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            // The text before the first bad byte still counts.
            Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
        }
    }

    /// The port of isa-debug-exit, where the command line has `debug-exit=PORT`.
    pub fn debug_exit_port() -> Option<u16> {
        if entry::start_info_va() == 0 {
            return None;
        }
        parse_port(option(command_line(), "debug-exit")?)
    }

    /// Brings the machine up and calls the kernel's main.
    pub(crate) fn start(start_info_va: u64, builder_stack: u64) -> ! {
        let info = start_info();
        let initial_domain = info.flags & SIF_INITDOMAIN != 0;
        console::init_early(initial_domain);
        shared::map(info.shared_info);
        let (ramdisk_pages, ramdisk) = ramdisk(info);
        mem::tables::init(
            info,
            &mem::tables::Occupied {
                first_free: first_free(info, start_info_va, builder_stack),
                ramdisk: ramdisk_pages,
            },
        );
        install_handlers();
        mem::tables::unmap_guard(entry::stack_range().0);
        if initial_domain && let Err(errno) = physdev::set_iopl(1) {
            log::warn!("no I/O ports: {errno}");
        }
        console::init(info, initial_domain);
        clock::init();
        event::poll();
        let boot = BootInfo {
            nr_pages: info.nr_pages as usize,
            initial_domain,
            command_line: command_line(),
            ramdisk,
            store: store(info, initial_domain),
        };
        // SAFETY: defined by `kernel!` with this very signature.
        unsafe { pvrt_main(boot) }
    }

    /// Sets the runtime's callbacks and trap table: at start, and again after a kernel had others in place.
    pub fn install_handlers() {
        let (event_entry, failsafe_entry) = entry::callbacks();
        // SAFETY: the entry code keeps to the frames that the hypervisor makes.
        unsafe { vcpu::set_callbacks(event_entry, failsafe_entry, 0) }.expect("set_callbacks");
        // SAFETY: the stubs keep to the exception frame.
        unsafe { vcpu::set_trap_table(&traps::table()) }.expect("set_trap_table");
    }

    /// Runs `main` as the first task; the domain powers off when `main` returns.
    pub fn run(main: impl Future<Output = ()> + Send + 'static) -> ! {
        executor::spawn(async move {
            main.await;
            console::flush().await;
            sched::shutdown(SHUTDOWN_POWEROFF);
        });
        executor::run()
    }

    /// The linear address of a page of this domain.
    fn page_va(mfn: u64) -> usize {
        mem::tables::LINEAR_VA + mem::tables::pfn_of(mfn as usize) * PAGE_SIZE
    }

    /// A page that the builder shares with a daemon.
    pub(crate) fn shared_page(mfn: u64) -> SharedBytes<'static> {
        // SAFETY: a page of this domain, mapped for ever in the linear map and never given to the allocator.
        unsafe { SharedBytes::new(page_va(mfn) as *mut u8, PAGE_SIZE) }
    }

    fn store(info: &StartInfo, initial_domain: bool) -> Option<StoreInfo> {
        if initial_domain || info.store_evtchn == 0 {
            return None;
        }
        let port = Port::new(info.store_evtchn);
        Some(StoreInfo { page: shared_page(info.store_mfn), mfn: Mfn::new(info.store_mfn), port })
    }

    /// The ramdisk's pages and bytes.
    fn ramdisk(info: &StartInfo) -> ((usize, usize), Option<&'static [u8]>) {
        let len = info.mod_len as usize;
        if len == 0 {
            return ((0, 0), None);
        }
        let va = if info.flags & SIF_MOD_START_PFN != 0 {
            mem::tables::LINEAR_VA + info.mod_start as usize * PAGE_SIZE
        } else {
            info.mod_start as usize
        };
        let first = (va - mem::tables::LINEAR_VA) / PAGE_SIZE;
        let end = (va + len - mem::tables::LINEAR_VA).div_ceil(PAGE_SIZE);
        if end > mem::tables::LINEAR_PAGES {
            return ((first, end), None);
        }
        // SAFETY: the builder put the ramdisk there, and the linear map covers the ramdisk before anybody reads it. The
        // allocator never gets the ramdisk's pages, and nobody writes to them.
        ((first, end), Some(unsafe { core::slice::from_raw_parts(va as *const u8, len) }))
    }

    /// The number of the first page behind everything that the builder mapped for start.
    fn first_free(info: &StartInfo, start_info_va: u64, builder_stack: u64) -> usize {
        let base = mem::tables::LINEAR_VA as u64;
        let limit = base + (mem::tables::LINEAR_PAGES * PAGE_SIZE) as u64;
        let page = PAGE_SIZE as u64;
        let mut ends = [
            entry::image_end(),
            start_info_va + page,
            builder_stack,
            info.pt_base + info.nr_pt_frames * page,
            info.mfn_list + info.nr_pages * 8,
            base,
            base,
        ];
        if info.flags & SIF_INITDOMAIN == 0 {
            for (end, mfn) in ends[5..].iter_mut().zip([info.store_mfn, info.console_mfn]) {
                if mfn != 0 {
                    *end = page_va(mfn) as u64 + page;
                }
            }
        }
        ends.into_iter()
            .filter(|end| (base..limit).contains(end))
            .map(|end| ((end - base) as usize).div_ceil(PAGE_SIZE))
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_whole_words() {
        let line = "quiet debug-exit=0xf4 a= xdebug-exit=1";
        assert_eq!(option(line, "debug-exit"), Some("0xf4"));
        assert_eq!(option(line, "quiet"), Some(""));
        assert_eq!(option(line, "a"), Some(""));
        assert_eq!(option(line, "debug"), None);
        assert_eq!(option("", "a"), None);
    }

    #[test]
    fn ports_in_both_notations() {
        assert_eq!(parse_port("0xf4"), Some(0xf4));
        assert_eq!(parse_port("65535"), Some(65535));
        assert_eq!(parse_port("65536"), None);
        assert_eq!(parse_port("0x"), None);
        assert_eq!(parse_port(""), None);
    }
}
