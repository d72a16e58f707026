//! `grant_table_op`: what is granted, mapped, copied; all with this domain at both ends.

hypercall_cases! {
    "grant.setup" = setup {
        title: "the table's frames",
        rule: "GNTTABOP_setup_table writes the frames of the caller's table, which it may map.",
        source: "grant_table.h, GNTTABOP_setup_table",
    }
    "grant.setup-too-many" = setup_too_many {
        title: "more frames than the table may have",
        rule: "GNTTABOP_setup_table beyond the limit fails and leaves the table as it is.",
        source: "grant_table.h, GNTTABOP_setup_table, GNTTABOP_query_size",
    }
    "grant.setup-other" = setup_other {
        title: "the table of a domain that there is not",
        rule: "GNTTABOP_setup_table gives GNTST_bad_domain for a domain that does not exist.",
        source: "grant_table.h, GNTTABOP_setup_table",
    }
    "grant.query-size" = query_size {
        title: "the table's size and its limit",
        rule: "GNTTABOP_query_size gives the frames in use and the frames allowed.",
        source: "grant_table.h, GNTTABOP_query_size",
    }
    "grant.version" = version {
        title: "the version in force",
        rule: "GNTTABOP_get_version gives the version, and GNTTABOP_set_version to that one gives 0.",
        source: "grant_table.h, GNTTABOP_get_version, GNTTABOP_set_version",
    }
    "grant.version-unknown" = version_unknown {
        title: "versions that there are not",
        rule: "GNTTABOP_set_version refuses versions other than 1 and 2 with EINVAL.",
        source: "grant_table.h, GNTTABOP_set_version",
    }
    "grant.version-other" = version_other {
        title: "the version of a domain that there is not",
        rule: "GNTTABOP_get_version gives ESRCH for a domain that does not exist.",
        source: "grant_table.h, GNTTABOP_get_version",
    }
    "grant.map" = map_host {
        title: "a page mapped by its reference",
        rule: "GNTMAP_host_map maps the granted frame at host_addr, and GNTTABOP_unmap_grant_ref ends that.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, GNTMAP_host_map",
    }
    "grant.map-bus-address" = map_bus_address {
        title: "the frame's machine address",
        rule: "dev_bus_addr of a mapping for a device is the machine address of the frame.",
        source: "grant_table.h, struct gnttab_map_grant_ref, dev_bus_addr",
    }
    "grant.map-readonly" = map_readonly {
        title: "a mapping for reading",
        rule: "With GNTMAP_readonly the mapping can be read and not written.",
        source: "grant_table.h, GNTMAP_readonly",
    }
    "grant.map-device" = map_device {
        title: "a mapping for a device alone",
        rule: "GNTMAP_device_map without GNTMAP_host_map maps nothing at an address; the unmap names dev_bus_addr.",
        source: "grant_table.h, GNTMAP_device_map",
    }
    "grant.map-entry" = map_entry {
        title: "a mapping by the entry's machine address",
        rule: "With GNTMAP_contains_pte host_addr is the machine address of the page-table entry.",
        source: "grant_table.h, GNTMAP_contains_pte",
    }
    "grant.map-both" = map_both {
        title: "one reference, two mappings",
        rule: "A reference can be mapped several times; each mapping has a handle of its own and ends by itself.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, 'NOTES'",
    }
    "grant.flags-writing" = flags_writing {
        title: "what the entry says while it is mapped",
        rule: "While a reference is mapped for writing its entry has GTF_reading and GTF_writing, and neither afterwards.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.flags-reading" = flags_reading {
        title: "what the entry says while it is mapped for reading",
        rule: "While a reference is mapped for reading its entry has GTF_reading and not GTF_writing.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.flags-last" = flags_last {
        title: "the flags stay until the last mapping ends",
        rule: "GTF_reading and GTF_writing are cleared with the last mapping of their kind.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.map-readonly-as-writable" = map_readonly_as_writable {
        title: "writing what was granted for reading",
        rule: "A reference with GTF_readonly is mapped with GNTMAP_readonly or not at all.",
        source: "grant_table.h, GTF_readonly",
    }
    "grant.map-not-granted" = map_not_granted {
        title: "an entry that grants nothing",
        rule: "A reference whose entry is not GTF_permit_access is not mapped.",
        source: "grant_table.h, GTF_permit_access",
    }
    "grant.map-others" = map_others {
        title: "a grant for another domain",
        rule: "A reference granted to another domain is not mapped.",
        source: "grant_table.h, struct grant_entry_v1, domid",
    }
    "grant.map-bad-reference" = map_bad_reference {
        title: "a reference beyond the table",
        rule: "A reference beyond the table gives GNTST_bad_gntref.",
        source: "grant_table.h, GNTST_bad_gntref",
    }
    "grant.map-bad-domain" = map_bad_domain {
        title: "a grant of a domain that there is not",
        rule: "A domain that does not exist gives GNTST_bad_domain.",
        source: "grant_table.h, GNTST_bad_domain",
    }
    "grant.map-no-kind" = map_no_kind {
        title: "neither for the host nor for a device",
        rule: "A mapping that is neither GNTMAP_host_map nor GNTMAP_device_map is refused.",
        source: "grant_table.h, GNTMAP_device_map, GNTMAP_host_map",
    }
    "grant.map-bad-address" = map_bad_address {
        title: "an address that cannot be mapped",
        rule: "A host_addr without a page table, or of the hypervisor's, is refused, and the entry is not in use.",
        source: "grant_table.h, GNTTABOP_map_grant_ref",
    }
    "grant.map-table" = map_table {
        title: "a page table by its reference",
        rule: "A frame that is a page table is not mapped for writing by a reference.",
        source: "grant_table.h, GNTTABOP_map_grant_ref",
    }
    "grant.map-pins-type" = map_pins_type {
        title: "a page that a mapping can write is no table",
        rule: "A frame with a writable grant mapping does not become a page table.",
        source: "grant_table.h, GNTTABOP_map_grant_ref; xen.h, MMUEXT_PIN_L1_TABLE",
    }
    "grant.unmap-twice" = unmap_twice {
        title: "a handle that was given back",
        rule: "GNTTABOP_unmap_grant_ref of a handle without a mapping gives GNTST_bad_handle.",
        source: "grant_table.h, GNTST_bad_handle",
    }
    "grant.unmap-elsewhere" = unmap_elsewhere {
        title: "an unmap at another address",
        rule: "GNTTABOP_unmap_grant_ref with another host_addr than the mapping's fails, and the mapping stands.",
        source: "grant_table.h, GNTTABOP_unmap_grant_ref, 'NOTES'",
    }
    "grant.unmap-and-replace" = unmap_and_replace {
        title: "a mapping that gives way to another",
        rule: "GNTTABOP_unmap_and_replace puts the mapping of new_addr in place of the grant's, and clears it at new_addr.",
        source: "grant_table.h, GNTTABOP_unmap_and_replace",
    }
    "grant.revoked" = revoked {
        title: "a grant withdrawn after its mapping ended",
        rule: "After its entry is invalid a reference cannot be mapped.",
        source: "grant_table.h, 'Use of grant tables'",
    }
    "grant.map-batch" = map_batch {
        title: "a good, a bad and a good mapping",
        rule: "Each entry of a list has its own status, and a failed one does not keep the others from being done.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, 'NOTES'",
    }
    "grant.map-empty" = map_empty {
        title: "a list without entries",
        rule: "A list of no entries gives 0.",
        source: "grant_table.h, HYPERVISOR_grant_table_op",
    }
    "grant.copy-from" = copy_from {
        title: "a copy from a reference",
        rule: "GNTTABOP_copy moves len bytes from the source's offset to the target's, and nothing beside them.",
        source: "grant_table.h, GNTTABOP_copy, GNTCOPY_source_gref",
    }
    "grant.copy-to" = copy_to {
        title: "a copy to a reference",
        rule: "With GNTCOPY_dest_gref the target is a reference.",
        source: "grant_table.h, GNTTABOP_copy, GNTCOPY_dest_gref",
    }
    "grant.copy-between" = copy_between {
        title: "a copy between references, and between frames",
        rule: "Source and target are each a reference or a frame of the domain itself.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-page" = copy_page {
        title: "a whole page",
        rule: "A copy of 4096 bytes at offset 0 moves the page.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-bounds" = copy_bounds {
        title: "a copy over the end of a page",
        rule: "A copy that would leave the page on either side gives GNTST_bad_copy_arg and moves nothing.",
        source: "grant_table.h, GNTTABOP_copy; GNTST_bad_copy_arg",
    }
    "grant.copy-readonly" = copy_readonly {
        title: "a copy to what was granted for reading",
        rule: "A reference with GTF_readonly is no target of a copy.",
        source: "grant_table.h, GTF_readonly",
    }
    "grant.copy-flags" = copy_flags {
        title: "a copy leaves no trace in the entry",
        rule: "After GNTTABOP_copy the entry has neither GTF_reading nor GTF_writing.",
        source: "grant_table.h, GTF_reading, GTF_writing",
    }
    "grant.copy-batch" = copy_batch {
        title: "a good, a bad and a good copy",
        rule: "Each entry of a list of copies has its own status, and all are done.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.copy-bad-reference" = copy_bad_reference {
        title: "copies from references and domains that there are not",
        rule: "A reference beyond the table gives GNTST_bad_gntref, a domain that does not exist GNTST_bad_domain.",
        source: "grant_table.h, GNTTABOP_copy",
    }
    "grant.swap" = swap {
        title: "two entries change places",
        rule: "GNTTABOP_swap_grant_ref exchanges the contents of two entries.",
        source: "grant_table.h, GNTTABOP_swap_grant_ref",
    }
    "grant.swap-busy" = swap_busy {
        title: "an entry that is in use stays where it is",
        rule: "GNTTABOP_swap_grant_ref gives GNTST_eagain for an entry that is mapped.",
        source: "grant_table.h, GNTTABOP_swap_grant_ref",
    }
    "grant.unknown" = unknown {
        title: "an operation that there is not",
        rule: "An operation without a meaning gives ENOSYS.",
        source: "grant_table.h, HYPERVISOR_grant_table_op",
    }
    "grant.fault" = fault {
        title: "a list that cannot be read",
        rule: "A list that is not mapped gives EFAULT.",
        source: "grant_table.h, HYPERVISOR_grant_table_op",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use alloc::format;
    use pvrt::grant::{GrantRefOwned, grant_access};
    use ring_abi::grant::*;
    use ring_abi::mmu::MMUEXT_PIN_L1_TABLE;
    use ring_abi::types::{DomId, Mfn};

    fn ask<T>(command: u32, list: &mut [T]) -> i64 {
        let args = [command.into(), list.as_mut_ptr() as u64, list.len() as u64, 0, 0];
        call(__HYPERVISOR_GRANT_TABLE_OP, args)
    }

    fn ask_one<T>(command: u32, arg: &mut T) -> i64 {
        ask(command, core::slice::from_mut(arg))
    }

    /// Pages, the first of them granted to this domain itself.
    struct Granted {
        scratch: Scratch,
        grant: GrantRefOwned,
        me: u16,
    }

    impl Granted {
        fn new(pages: usize, readonly: bool) -> Verdict<Self> {
            let me = own_domid()?;
            let scratch = Scratch::new(pages);
            Ok(Self { grant: grant(me, scratch.mfn(0), readonly)?, scratch, me })
        }

        fn number(&self) -> u32 {
            self.grant.number().raw()
        }

        fn map(&self, flags: u32, host_addr: u64) -> (i16, GnttabMapGrantRef) {
            map_ref(self.me, self.number(), flags, host_addr)
        }

        /// The entry's flags.
        fn flags(&self) -> Verdict<u16> {
            entry_flags(self.number())
        }
    }

    fn grant(dom: u16, mfn: u64, readonly: bool) -> Verdict<GrantRefOwned> {
        grant_access(DomId::new(dom), Mfn::new(mfn), readonly)
            .map_err(|errno| Problem::Error(format!("no grant: {}", errno.name())))
    }

    /// The frames of the table.
    fn frames() -> Verdict<Vec<u64>> {
        let mut size = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
        done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
        ensure_eq!(size.status, GNTST_OKAY, "the status of query_size");
        let mut list = alloc::vec![u64::MAX; size.nr_frames as usize];
        let mut arg = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames: size.nr_frames,
            frame_list: list.as_mut_ptr() as u64,
            ..Default::default()
        };
        done("setup_table", ask_one(GNTTABOP_SETUP_TABLE, &mut arg))?;
        ensure_eq!(arg.status, GNTST_OKAY, "the status of setup_table");
        Ok(list)
    }

    /// An entry of version 1, read through a mapping of its own.
    fn entry_word(gref: u32) -> Verdict<u64> {
        let frames = frames()?;
        let scratch = Scratch::new(1);
        let frame = frames[gref as usize / 512];
        done("mapping the table", map(scratch.at(0), frame << 12 | RO))?;
        load("the entry", scratch.at(0) + u64::from(gref % 512) * 8)
    }

    fn entry_flags(gref: u32) -> Verdict<u16> {
        entry_word(gref).map(|word| word as u16)
    }

    fn map_ref(dom: u16, gref: u32, flags: u32, host_addr: u64) -> (i16, GnttabMapGrantRef) {
        let mut arg = GnttabMapGrantRef { host_addr, flags, r#ref: gref, dom, ..Default::default() };
        let got = ask_one(GNTTABOP_MAP_GRANT_REF, &mut arg);
        (if got == 0 { arg.status } else { i16::MIN }, arg)
    }

    fn unmap_ref(handle: u32, host_addr: u64, dev_bus_addr: u64) -> i16 {
        let mut arg = GnttabUnmapGrantRef { host_addr, dev_bus_addr, handle, ..Default::default() };
        let got = ask_one(GNTTABOP_UNMAP_GRANT_REF, &mut arg);
        if got == 0 { arg.status } else { i16::MIN }
    }

    fn okay(what: &str, status: i16) -> Verdict {
        ensure_eq!(status, GNTST_OKAY, "{what}");
        Ok(())
    }

    pub(super) fn setup(_: &Env) -> Verdict {
        let _held = Granted::new(1, false)?;
        let frames = frames()?;
        ensure!(!frames.is_empty(), "a table without frames");
        let scratch = Scratch::new(1);
        for mfn in frames {
            done("mapping it", map(scratch.at(0), mfn << 12 | RW))?;
        }
        Ok(())
    }

    pub(super) fn setup_too_many(_: &Env) -> Verdict {
        let before = frames()?;
        let mut list = alloc::vec![0u64; 4096];
        let mut arg = GnttabSetupTable {
            dom: DOMID_SELF,
            nr_frames: 4096,
            frame_list: list.as_mut_ptr() as u64,
            ..Default::default()
        };
        let got = ask_one(GNTTABOP_SETUP_TABLE, &mut arg);
        ensure!(got < 0 || arg.status < 0, "4096 frames: {}, status {}", Got(got), arg.status);
        ensure_eq!(frames()?, before, "the frames");
        Ok(())
    }

    pub(super) fn setup_other(_: &Env) -> Verdict {
        let mut frame = 0u64;
        let mut arg = GnttabSetupTable {
            dom: NO_DOMAIN,
            nr_frames: 1,
            frame_list: (&raw mut frame) as u64,
            ..Default::default()
        };
        done("setup_table", ask_one(GNTTABOP_SETUP_TABLE, &mut arg))?;
        ensure_eq!(arg.status, GNTST_BAD_DOMAIN, "the status");
        Ok(())
    }

    pub(super) fn query_size(_: &Env) -> Verdict {
        let _held = Granted::new(1, false)?;
        let mut size = GnttabQuerySize { dom: DOMID_SELF, ..Default::default() };
        done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
        okay("query_size", size.status)?;
        ensure!(
            1 <= size.nr_frames && size.nr_frames <= size.max_nr_frames,
            "{} of {} frames",
            size.nr_frames,
            size.max_nr_frames
        );
        let mut size = GnttabQuerySize { dom: NO_DOMAIN, ..Default::default() };
        done("query_size", ask_one(GNTTABOP_QUERY_SIZE, &mut size))?;
        ensure_eq!(size.status, GNTST_BAD_DOMAIN, "the status for no domain");
        Ok(())
    }

    pub(super) fn version(_: &Env) -> Verdict {
        let mut arg = GnttabGetVersion { dom: DOMID_SELF, ..Default::default() };
        done("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg))?;
        // The runtime's table is of version 1.
        ensure_eq!(arg.version, 1, "the version");
        let mut arg = GnttabSetVersion { version: 1 };
        done("set_version", ask_one(GNTTABOP_SET_VERSION, &mut arg))?;
        ensure_eq!(arg.version, 1, "the version set");
        Ok(())
    }

    pub(super) fn version_unknown(_: &Env) -> Verdict {
        for version in [0, 3, u32::MAX] {
            refused(
                "set_version",
                ask_one(GNTTABOP_SET_VERSION, &mut GnttabSetVersion { version }),
                &[EINVAL],
            )?;
        }
        let mut arg = GnttabGetVersion { dom: DOMID_SELF, ..Default::default() };
        done("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg))?;
        ensure_eq!(arg.version, 1, "the version");
        Ok(())
    }

    pub(super) fn version_other(_: &Env) -> Verdict {
        let mut arg = GnttabGetVersion { dom: NO_DOMAIN, ..Default::default() };
        refused("get_version", ask_one(GNTTABOP_GET_VERSION, &mut arg), &[ESRCH])
    }

    pub(super) fn map_host(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let at = page.scratch.at(0);
        store("the page", page.scratch.page(0), 0x1111)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        ensure_eq!(load("the mapping", at)?, 0x1111, "what it shows");
        store("the mapping", at + 8, 0x2222)?;
        ensure_eq!(load("the page", page.scratch.page(0) + 8)?, 0x2222, "what it was written");
        okay("unmap", unmap_ref(mapped.handle, at, 0))?;
        trapped("the address after", probe::read(at).err(), 14).map(|_| ())
    }

    pub(super) fn map_bus_address(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (status, mapped) = page.map(GNTMAP_DEVICE_MAP, 0);
        okay("map", status)?;
        let frame = page.scratch.mfn(0) << 12;
        okay("unmap", unmap_ref(mapped.handle, 0, frame))?;
        ensure_eq!(mapped.dev_bus_addr, frame, "dev_bus_addr");
        Ok(())
    }

    pub(super) fn map_readonly(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let at = page.scratch.at(0);
        store("the page", page.scratch.page(0), 0x1111)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP | GNTMAP_READONLY, at);
        okay("map", status)?;
        ensure_eq!(load("the mapping", at)?, 0x1111, "what it shows");
        let trap = probe::write(at, 0x2222);
        okay("unmap", unmap_ref(mapped.handle, at, 0))?;
        trapped("a write", trap, 14)?;
        ensure_eq!(load("the page", page.scratch.page(0))?, 0x1111, "the page");
        Ok(())
    }

    pub(super) fn map_device(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (status, mapped) = page.map(GNTMAP_DEVICE_MAP, 0);
        okay("map", status)?;
        ensure!(page.flags()? & GTF_WRITING != 0, "the entry is not in use");
        okay("unmap", unmap_ref(mapped.handle, 0, mapped.dev_bus_addr))?;
        ensure!(page.flags()? & (GTF_READING | GTF_WRITING) == 0, "the entry is still in use");
        Ok(())
    }

    pub(super) fn map_entry(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        store("the page", page.scratch.page(0), 0x1111)?;
        let entry = page.scratch.entry_address(0);
        let (status, mapped) = page.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, entry);
        okay("map", status)?;
        ensure_eq!(load("the mapping", page.scratch.at(0))?, 0x1111, "what it shows");
        okay("unmap", unmap_ref(mapped.handle, entry, 0))?;
        ensure_eq!(leaf(page.scratch.at(0)), 0, "the entry after");
        Ok(())
    }

    pub(super) fn map_both(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        store("the page", page.scratch.page(0), 0x1111)?;
        let (first, one) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        let (second, two) = page.map(GNTMAP_HOST_MAP, page.scratch.at(1));
        okay("map", first)?;
        okay("map again", second)?;
        ensure!(one.handle != two.handle, "one handle for both");
        okay("unmap", unmap_ref(one.handle, page.scratch.at(0), 0))?;
        ensure_eq!(load("the other", page.scratch.at(1))?, 0x1111, "what it shows");
        okay("unmap", unmap_ref(two.handle, page.scratch.at(1), 0))
    }

    pub(super) fn flags_writing(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags before");
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        let during = page.flags();
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        ensure_eq!(during?, GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING, "the flags while mapped");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags after");
        Ok(())
    }

    pub(super) fn flags_reading(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP | GNTMAP_READONLY, page.scratch.at(0));
        okay("map", status)?;
        let during = page.flags();
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        ensure_eq!(during?, GTF_PERMIT_ACCESS | GTF_READONLY | GTF_READING, "the flags while mapped");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS | GTF_READONLY, "the flags after");
        Ok(())
    }

    pub(super) fn flags_last(_: &Env) -> Verdict {
        let page = Granted::new(3, false)?;
        let (first, read) = page.map(GNTMAP_HOST_MAP | GNTMAP_READONLY, page.scratch.at(0));
        okay("map for reading", first)?;
        let reading = page.flags()?;
        let (second, write) = page.map(GNTMAP_HOST_MAP, page.scratch.at(1));
        okay("map for writing", second)?;
        okay("unmap", unmap_ref(write.handle, page.scratch.at(1), 0))?;
        let one_left = page.flags()?;
        okay("unmap", unmap_ref(read.handle, page.scratch.at(0), 0))?;
        ensure_eq!(reading, GTF_PERMIT_ACCESS | GTF_READING, "with one for reading");
        ensure_eq!(one_left, GTF_PERMIT_ACCESS | GTF_READING, "after the one for writing");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags at last");
        Ok(())
    }

    fn not_mapped(what: &str, status: i16, wanted: &[i16]) -> Verdict {
        ensure!(wanted.contains(&status), "{what}: status {status}, not {wanted:?}");
        Ok(())
    }

    pub(super) fn map_readonly_as_writable(_: &Env) -> Verdict {
        let page = Granted::new(1, true)?;
        let (status, _) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR])?;
        let (status, _) = page.map(GNTMAP_DEVICE_MAP, 0);
        not_mapped("map for a device", status, &[GNTST_GENERAL_ERROR])?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS | GTF_READONLY, "the flags");
        Ok(())
    }

    pub(super) fn map_not_granted(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        // The reserved entry 7 has never been used.
        let (status, _) = map_ref(page.me, 7, GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR, GNTST_BAD_GNTREF])
    }

    pub(super) fn map_others(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let other = grant(page.me ^ 1, page.scratch.mfn(0), false)?;
        let (status, _) = map_ref(page.me, other.number().raw(), GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_GENERAL_ERROR])
    }

    pub(super) fn map_bad_reference(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for gref in [64 * 512, 1 << 24, u32::MAX] {
            let (status, _) = map_ref(page.me, gref, GNTMAP_HOST_MAP, page.scratch.at(0));
            not_mapped("map", status, &[GNTST_BAD_GNTREF])?;
        }
        Ok(())
    }

    pub(super) fn map_bad_domain(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (status, _) = map_ref(NO_DOMAIN, page.number(), GNTMAP_HOST_MAP, page.scratch.at(0));
        not_mapped("map", status, &[GNTST_BAD_DOMAIN])
    }

    pub(super) fn map_no_kind(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for flags in [0, GNTMAP_READONLY] {
            let (status, _) = page.map(flags, page.scratch.at(0));
            ensure!(status < 0, "map: status {status}");
        }
        ensure_eq!(leaf(page.scratch.at(0)), 0, "the entry");
        Ok(())
    }

    pub(super) fn map_bad_address(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for at in [0x0000_5555_5555_5000, M2P, 0xffff_8300_0000_0000] {
            let (status, _) = page.map(GNTMAP_HOST_MAP, at);
            ensure!(status < 0, "map at {at:#x}: status {status}");
        }
        let (status, _) = page.map(GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, page.scratch.entry_address(0) + 4);
        ensure!(status < 0, "map by half an entry: status {status}");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags");
        Ok(())
    }

    pub(super) fn map_table(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for mfn in tables(page.scratch.at(0)) {
            let table = grant(page.me, mfn, false)?;
            let (status, _) = map_ref(page.me, table.number().raw(), GNTMAP_HOST_MAP, page.scratch.at(0));
            ensure!(status < 0, "a table for writing: status {status}");
        }
        ensure_eq!(leaf(page.scratch.at(0)), 0, "the entry");
        Ok(())
    }

    pub(super) fn map_pins_type(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        for (flags, at) in [(GNTMAP_HOST_MAP, page.scratch.at(0)), (GNTMAP_DEVICE_MAP, 0)] {
            let (status, mapped) = page.map(flags, at);
            okay("map", status)?;
            done("read-only", page.scratch.protect(0))?;
            let got = extended(MMUEXT_PIN_L1_TABLE, page.scratch.mfn(0), 0);
            let unmapped = unmap_ref(mapped.handle, at, if at == 0 { mapped.dev_bus_addr } else { 0 });
            done("writable", page.scratch.unprotect(0))?;
            okay("unmap", unmapped)?;
            refused("pin", got, &[EINVAL, EBUSY])?;
        }
        Ok(())
    }

    pub(super) fn unmap_twice(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let at = page.scratch.at(0);
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        okay("unmap", unmap_ref(mapped.handle, at, 0))?;
        not_mapped("unmap again", unmap_ref(mapped.handle, at, 0), &[GNTST_BAD_HANDLE])?;
        for handle in [1 << 20, u32::MAX] {
            not_mapped("no handle", unmap_ref(handle, at, 0), &[GNTST_BAD_HANDLE])?;
        }
        Ok(())
    }

    pub(super) fn unmap_elsewhere(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let at = page.scratch.at(0);
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        let wrong = unmap_ref(mapped.handle, page.scratch.at(1), 0);
        let there = probe::read(at);
        let right = unmap_ref(mapped.handle, at, 0);
        ensure!(wrong < 0, "unmap elsewhere: status {wrong}");
        ensure!(there.is_ok(), "the mapping is gone: {there:x?}");
        okay("unmap", right)
    }

    pub(super) fn unmap_and_replace(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let (at, other) = (page.scratch.at(0), page.scratch.at(1));
        store("the other page", page.scratch.page(1), 0x77)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, at);
        okay("map", status)?;
        done("the other mapping", map(other, page.scratch.mfn(1) << 12 | RW))?;
        let mut arg = GnttabUnmapAndReplace {
            host_addr: at,
            new_addr: other,
            handle: mapped.handle,
            ..Default::default()
        };
        let got = ask_one(GNTTABOP_UNMAP_AND_REPLACE, &mut arg);
        if got != 0 || arg.status != 0 {
            unmap_ref(mapped.handle, at, 0);
        }
        require!(got != ENOSYS.negated() && got != EOPNOTSUPP.negated(), "no such operation here");
        done("unmap_and_replace", got)?;
        okay("unmap_and_replace", arg.status)?;
        ensure_eq!(load("the address", at)?, 0x77, "what it shows");
        ensure_eq!(leaf(other), 0, "the entry at new_addr");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags");
        Ok(())
    }

    pub(super) fn revoked(_: &Env) -> Verdict {
        let page = Granted::new(1, false)?;
        let (me, gref) = (page.me, page.number());
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        let Granted { scratch, grant, .. } = page;
        drop(grant);
        let (status, _) = map_ref(me, gref, GNTMAP_HOST_MAP, scratch.at(0));
        not_mapped("map after", status, &[GNTST_GENERAL_ERROR, GNTST_BAD_GNTREF])
    }

    pub(super) fn map_batch(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let one = |gref, n: usize| GnttabMapGrantRef {
            host_addr: page.scratch.at(n),
            flags: GNTMAP_HOST_MAP,
            r#ref: gref,
            dom: page.me,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [one(page.number(), 0), one(u32::MAX, 0), one(page.number(), 1)];
        done("map", ask(GNTTABOP_MAP_GRANT_REF, &mut list))?;
        ensure_eq!(
            list.map(|entry| entry.status),
            [GNTST_OKAY, GNTST_BAD_GNTREF, GNTST_OKAY],
            "the statuses"
        );
        let two = |entry: &GnttabMapGrantRef| GnttabUnmapGrantRef {
            host_addr: entry.host_addr,
            handle: entry.handle,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [two(&list[0]), two(&list[2])];
        done("unmap", ask(GNTTABOP_UNMAP_GRANT_REF, &mut list))?;
        ensure_eq!(list.map(|entry| entry.status), [GNTST_OKAY; 2], "the statuses");
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags");
        Ok(())
    }

    pub(super) fn map_empty(_: &Env) -> Verdict {
        for command in [GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF, GNTTABOP_COPY] {
            done("no entries", call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), 0x1000, 0, 0, 0]))?;
        }
        Ok(())
    }

    fn frame_place(mfn: u64, offset: u16) -> GnttabCopyPtr {
        GnttabCopyPtr { u: mfn, domid: DOMID_SELF, offset, ..Default::default() }
    }

    fn grant_place(page: &Granted, offset: u16) -> GnttabCopyPtr {
        GnttabCopyPtr { u: page.number().into(), domid: page.me, offset, ..Default::default() }
    }

    fn copy(source: GnttabCopyPtr, dest: GnttabCopyPtr, len: u16, flags: u16) -> i16 {
        let mut arg = GnttabCopy { source, dest, len, flags, ..Default::default() };
        let got = ask_one(GNTTABOP_COPY, &mut arg);
        if got == 0 { arg.status } else { i16::MIN }
    }

    /// Fills a page with a pattern of its own.
    fn fill(scratch: &Scratch, page: usize) -> Verdict {
        for word in 0..512 {
            store("filling", scratch.page(page) + word * 8, pattern(page, word))?;
        }
        Ok(())
    }

    fn pattern(page: usize, word: u64) -> u64 {
        (page as u64 + 1) << 56 | word << 32 | !word & 0xffff
    }

    /// Page `to` is as it was but for `words` from `at` on, which are those of page `from`, from `start` on.
    fn moved(scratch: &Scratch, from: (usize, u64), to: (usize, u64), words: u64) -> Verdict {
        for word in 0..512 {
            let inside = (to.1..to.1 + words).contains(&word);
            let wanted = if inside { pattern(from.0, word - to.1 + from.1) } else { pattern(to.0, word) };
            ensure_eq!(load("the target", scratch.page(to.0) + word * 8)?, wanted, "word {word}");
        }
        Ok(())
    }

    pub(super) fn copy_from(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        okay(
            "copy",
            copy(grant_place(&page, 64), frame_place(page.scratch.mfn(1), 256), 128, GNTCOPY_SOURCE_GREF),
        )?;
        moved(&page.scratch, (0, 8), (1, 32), 16)
    }

    pub(super) fn copy_to(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        okay(
            "copy",
            copy(frame_place(page.scratch.mfn(1), 4096 - 80), grant_place(&page, 8), 80, GNTCOPY_DEST_GREF),
        )?;
        moved(&page.scratch, (1, 502), (0, 1), 10)
    }

    pub(super) fn copy_between(_: &Env) -> Verdict {
        let page = Granted::new(3, false)?;
        let other = grant(page.me, page.scratch.mfn(1), true)?;
        for n in 0..3 {
            fill(&page.scratch, n)?;
        }
        let source = GnttabCopyPtr { u: other.number().raw().into(), domid: page.me, ..Default::default() };
        okay(
            "between references",
            copy(source, grant_place(&page, 0), 64, GNTCOPY_SOURCE_GREF | GNTCOPY_DEST_GREF),
        )?;
        moved(&page.scratch, (1, 0), (0, 0), 8)?;
        okay(
            "between frames",
            copy(frame_place(page.scratch.mfn(1), 0), frame_place(page.scratch.mfn(2), 8), 64, 0),
        )?;
        moved(&page.scratch, (1, 0), (2, 1), 8)
    }

    pub(super) fn copy_page(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        okay(
            "copy",
            copy(grant_place(&page, 0), frame_place(page.scratch.mfn(1), 0), 4096, GNTCOPY_SOURCE_GREF),
        )?;
        moved(&page.scratch, (0, 0), (1, 0), 512)
    }

    pub(super) fn copy_bounds(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        let own = page.scratch.mfn(1);
        for (from, to, len) in [(4000, 0, 97), (0, 4095, 2), (0, 0, 4097), (1, 0, 4096), (0xffff, 0, 0xffff)]
        {
            let status = copy(grant_place(&page, from), frame_place(own, to), len, GNTCOPY_SOURCE_GREF);
            not_mapped("copy", status, &[GNTST_BAD_COPY_ARG])?;
        }
        moved(&page.scratch, (0, 0), (1, 0), 0)
    }

    pub(super) fn copy_readonly(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        let status = copy(frame_place(page.scratch.mfn(1), 0), grant_place(&page, 0), 64, GNTCOPY_DEST_GREF);
        not_mapped("copy", status, &[GNTST_GENERAL_ERROR])?;
        moved(&page.scratch, (0, 0), (0, 0), 0)
    }

    pub(super) fn copy_flags(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        okay(
            "copy",
            copy(grant_place(&page, 0), frame_place(page.scratch.mfn(1), 0), 64, GNTCOPY_SOURCE_GREF),
        )?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags after a copy from it");
        okay(
            "copy",
            copy(frame_place(page.scratch.mfn(1), 0), grant_place(&page, 0), 64, GNTCOPY_DEST_GREF),
        )?;
        ensure_eq!(page.flags()?, GTF_PERMIT_ACCESS, "the flags after a copy to it");
        Ok(())
    }

    pub(super) fn copy_batch(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        fill(&page.scratch, 0)?;
        fill(&page.scratch, 1)?;
        let own = page.scratch.mfn(1);
        let one = |offset, len| GnttabCopy {
            source: grant_place(&page, offset),
            dest: frame_place(own, offset % 4096),
            len,
            flags: GNTCOPY_SOURCE_GREF,
            status: 0x55,
            ..Default::default()
        };
        let mut list = [one(0, 8), one(4090, 100), one(8, 8), one(16, 8)];
        done("copy", ask(GNTTABOP_COPY, &mut list))?;
        let wanted = [GNTST_OKAY, GNTST_BAD_COPY_ARG, GNTST_OKAY, GNTST_OKAY];
        ensure_eq!(list.map(|entry| entry.status), wanted, "the statuses");
        moved(&page.scratch, (0, 0), (1, 0), 3)
    }

    pub(super) fn copy_bad_reference(_: &Env) -> Verdict {
        let page = Granted::new(2, true)?;
        let own = frame_place(page.scratch.mfn(1), 0);
        let beyond = GnttabCopyPtr { u: u32::MAX.into(), domid: page.me, ..Default::default() };
        not_mapped("no reference", copy(beyond, own, 64, GNTCOPY_SOURCE_GREF), &[GNTST_BAD_GNTREF])?;
        let nobody = GnttabCopyPtr { u: page.number().into(), domid: NO_DOMAIN, ..Default::default() };
        not_mapped("no domain", copy(nobody, own, 64, GNTCOPY_SOURCE_GREF), &[GNTST_BAD_DOMAIN])
    }

    fn swap_refs(ref_a: u32, ref_b: u32) -> Verdict<i16> {
        let mut arg = GnttabSwapGrantRef { ref_a, ref_b, ..Default::default() };
        let got = ask_one(GNTTABOP_SWAP_GRANT_REF, &mut arg);
        require!(got != ENOSYS.negated() && got != EOPNOTSUPP.negated(), "no such operation here");
        done("swap_grant_ref", got)?;
        Ok(arg.status)
    }

    pub(super) fn swap(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let other = grant(page.me, page.scratch.mfn(1), true)?;
        let (a, b) = (page.number(), other.number().raw());
        let before = (entry_word(a)?, entry_word(b)?);
        okay("swap", swap_refs(a, b)?)?;
        let after = (entry_word(a)?, entry_word(b)?);
        okay("swap back", swap_refs(a, b)?)?;
        ensure_eq!(after, (before.1, before.0), "the entries");
        ensure_eq!((entry_word(a)?, entry_word(b)?), before, "the entries at last");
        not_mapped("swap with none", swap_refs(a, u32::MAX)?, &[GNTST_BAD_GNTREF])
    }

    pub(super) fn swap_busy(_: &Env) -> Verdict {
        let page = Granted::new(2, false)?;
        let other = grant(page.me, page.scratch.mfn(1), true)?;
        let (status, mapped) = page.map(GNTMAP_HOST_MAP, page.scratch.at(0));
        okay("map", status)?;
        let swapped = swap_refs(page.number(), other.number().raw());
        okay("unmap", unmap_ref(mapped.handle, page.scratch.at(0), 0))?;
        not_mapped("swap", swapped?, &[GNTST_EAGAIN])
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [13, 99, 0xfff] {
            let mut words = [0u64; 8];
            refused("grant_table_op", ask_one(command, &mut words), &[ENOSYS])?;
        }
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for command in [
            GNTTABOP_MAP_GRANT_REF,
            GNTTABOP_UNMAP_GRANT_REF,
            GNTTABOP_SETUP_TABLE,
            GNTTABOP_COPY,
            GNTTABOP_QUERY_SIZE,
            GNTTABOP_GET_VERSION,
            GNTTABOP_SET_VERSION,
        ] {
            let got = call(__HYPERVISOR_GRANT_TABLE_OP, [command.into(), scratch.at(0), 1, 0, 0]);
            refused("grant_table_op", got, &[EFAULT])?;
        }
        Ok(())
    }
}
