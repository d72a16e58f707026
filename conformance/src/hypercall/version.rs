//! `xen_version`: how the hypervisor describes itself.

hypercall_cases! {
    "version.version" = version {
        title: "the version, twice and by CPUID",
        rule: "XENVER_version gives the major version in bits 16 to 31 and the minor one below, the same as CPUID leaf 0x40000001 in eax.",
        source: "version.h, XENVER_version; arch-x86/cpuid.h, leaf 2",
    }
    "version.extra" = extra {
        title: "the extra version fits its 16 bytes",
        rule: "XENVER_extraversion writes a NUL-terminated text of at most 16 bytes.",
        source: "version.h, XENVER_extraversion",
    }
    "version.compile-info" = compile_info {
        title: "four texts about the build",
        rule: "XENVER_compile_info writes four NUL-terminated texts of 64, 16, 32 and 32 bytes.",
        source: "version.h, struct xen_compile_info",
    }
    "version.capabilities" = capabilities {
        title: "64-bit PV guests are among the capabilities",
        rule: "XENVER_capabilities writes a NUL-terminated list of at most 1024 bytes, and a system that runs 64-bit PV guests has xen-3.0-x86_64 in it.",
        source: "version.h, XENVER_capabilities",
    }
    "version.changeset" = changeset {
        title: "the changeset fits its 64 bytes",
        rule: "XENVER_changeset writes a NUL-terminated text of at most 64 bytes.",
        source: "version.h, XENVER_changeset",
    }
    "version.platform-parameters" = platform_parameters {
        title: "where the hypervisor's addresses begin",
        rule: "XENVER_platform_parameters gives HYPERVISOR_VIRT_START, which on x86_64 is 0xffff800000000000.",
        source: "version.h, XENVER_platform_parameters; arch-x86/xen-x86_64.h",
    }
    "version.features" = features {
        title: "the features of a PV guest",
        rule: "XENVER_get_features has mmu_pt_update_preserve_ad set, auto_translated_physmap and supervisor_mode_kernel clear for a PV guest, and dom0 set in the control domain alone.",
        source: "features.h; version.h, XENVER_get_features",
    }
    "version.features-submap" = features_submap {
        title: "features beyond the last submap",
        rule: "XENVER_get_features refuses a submap index of XENFEAT_NR_SUBMAPS or more with EINVAL.",
        source: "version.h, XENVER_get_features; features.h, XENFEAT_NR_SUBMAPS",
    }
    "version.page-size" = page_size {
        title: "the page size",
        rule: "XENVER_pagesize gives 4096 on x86.",
        source: "version.h, XENVER_pagesize",
    }
    "version.guest-handle" = guest_handle {
        title: "the domain's handle has 16 bytes",
        rule: "XENVER_guest_handle writes the 16 bytes of xen_domain_handle_t, the same each time, and no more.",
        source: "version.h, XENVER_guest_handle",
    }
    "version.command-line" = command_line {
        title: "the hypervisor's command line, or a word of refusal",
        rule: "XENVER_commandline writes a NUL-terminated text of at most 1024 bytes.",
        source: "version.h, XENVER_commandline",
    }
    "version.build-id-size" = build_id_size {
        title: "the size of the build id, and a buffer too small for it",
        rule: "XENVER_build_id with a null pointer gives the size in bytes; with a shorter buffer it gives ENOBUFS, and with none EINVAL.",
        source: "version.h, XENVER_build_id",
        also: [Dom0],
    }
    "version.build-id-unprivileged" = build_id_unprivileged {
        title: "the build id is the control domain's",
        rule: "XENVER_build_id gives EPERM to a domain without privileges.",
        source: "version.h, XENVER_build_id",
        also: [DomU],
    }
    "version.unknown" = unknown {
        title: "a sub-operation that there is not",
        rule: "A sub-operation without a meaning gives ENOSYS.",
        source: "xen.h, 'HYPERCALLS'; version.h",
    }
    "version.fault" = fault {
        title: "a buffer that cannot be written",
        rule: "A buffer that is not mapped gives EFAULT.",
        source: "version.h",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use ring_abi::version::*;

    const CANARY: u8 = 0xa5;

    fn ask<T>(command: u32, arg: &mut T) -> i64 {
        op(__HYPERVISOR_XEN_VERSION, command, arg)
    }

    /// Asks for a text of at most `N` bytes, and checks that the hypervisor writes nothing behind them.
    fn text<const N: usize>(command: u32) -> Verdict<Vec<u8>> {
        let mut buffer = alloc::vec![CANARY; N + 64];
        let got = call(__HYPERVISOR_XEN_VERSION, [command.into(), buffer.as_mut_ptr() as u64, 0, 0, 0]);
        value("xen_version", got)?;
        ensure!(buffer[N..].iter().all(|byte| *byte == CANARY), "more than {N} bytes were written");
        let Some(end) = buffer[..N].iter().position(|byte| *byte == 0) else {
            return Err(Problem::Fail("the text has no end".into()));
        };
        buffer.truncate(end);
        Ok(buffer)
    }

    pub(super) fn version(_: &Env) -> Verdict {
        let first = value("version", nothing())?;
        ensure_eq!(value("version", nothing())?, first, "the version again");
        ensure!(first >> 16 >= 3 && first < 1 << 31, "version {first:#x}");
        let [leaf, ..] = cpuid(0x4000_0001, 0);
        ensure_eq!(u64::from(leaf), first, "the version by CPUID");
        Ok(())
    }

    pub(super) fn extra(_: &Env) -> Verdict {
        text::<16>(XENVER_EXTRAVERSION).map(|_| ())
    }

    pub(super) fn compile_info(_: &Env) -> Verdict {
        let mut buffer = [CANARY; 160];
        value("compile_info", ask(XENVER_COMPILE_INFO, &mut buffer))?;
        for (name, at, len) in [("compiler", 0, 64), ("by", 64, 16), ("domain", 80, 32), ("date", 112, 32)] {
            ensure!(buffer[at..at + len].contains(&0), "compile_{name} has no end");
        }
        ensure!(buffer[144..].iter().all(|byte| *byte == CANARY), "more than the structure was written");
        Ok(())
    }

    pub(super) fn capabilities(_: &Env) -> Verdict {
        let list = text::<1024>(XENVER_CAPABILITIES)?;
        let found = list.split(|byte| *byte == b' ').any(|word| word == b"xen-3.0-x86_64");
        ensure!(found, "capabilities {:?}", core::str::from_utf8(&list));
        Ok(())
    }

    pub(super) fn changeset(_: &Env) -> Verdict {
        text::<64>(XENVER_CHANGESET).map(|_| ())
    }

    pub(super) fn platform_parameters(_: &Env) -> Verdict {
        let mut arg = XenPlatformParameters::default();
        done("platform_parameters", ask(XENVER_PLATFORM_PARAMETERS, &mut arg))?;
        ensure_eq!(arg.virt_start, 0xffff_8000_0000_0000, "virt_start");
        Ok(())
    }

    pub(super) fn features(env: &Env) -> Verdict {
        let mut arg = XenFeatureInfo { submap_idx: 0, submap: 0 };
        done("get_features", ask(XENVER_GET_FEATURES, &mut arg))?;
        let has = |feature: u32| arg.submap & 1 << feature != 0;
        ensure!(has(XENFEAT_MMU_PT_UPDATE_PRESERVE_AD), "no preserve_ad: {:#x}", arg.submap);
        ensure!(!has(XENFEAT_AUTO_TRANSLATED_PHYSMAP), "auto-translated: {:#x}", arg.submap);
        ensure!(!has(XENFEAT_SUPERVISOR_MODE_KERNEL), "supervisor mode: {:#x}", arg.submap);
        ensure_eq!(has(XENFEAT_DOM0), env.privileged, "the dom0 feature");
        Ok(())
    }

    pub(super) fn features_submap(_: &Env) -> Verdict {
        for submap_idx in [XENFEAT_NR_SUBMAPS, 64, u32::MAX] {
            let mut arg = XenFeatureInfo { submap_idx, submap: 0 };
            refused("get_features", ask(XENVER_GET_FEATURES, &mut arg), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn page_size(_: &Env) -> Verdict {
        let got = call(__HYPERVISOR_XEN_VERSION, [XENVER_PAGESIZE.into(), 0, 0, 0, 0]);
        ensure_eq!(got, 4096, "the page size");
        Ok(())
    }

    pub(super) fn guest_handle(_: &Env) -> Verdict {
        let mut first = [CANARY; 32];
        let mut second = [!CANARY; 32];
        done("guest_handle", ask(XENVER_GUEST_HANDLE, &mut first))?;
        done("guest_handle", ask(XENVER_GUEST_HANDLE, &mut second))?;
        ensure_eq!(first[..16], second[..16], "the handle twice");
        ensure!(first[16..].iter().all(|byte| *byte == CANARY), "more than 16 bytes were written");
        Ok(())
    }

    pub(super) fn command_line(_: &Env) -> Verdict {
        text::<1024>(XENVER_COMMANDLINE).map(|_| ())
    }

    pub(super) fn build_id_size(_: &Env) -> Verdict {
        let size = call(__HYPERVISOR_XEN_VERSION, [XENVER_BUILD_ID.into(), 0, 0, 0, 0]);
        require!(size != ENODATA.negated(), "this hypervisor has no build id");
        let size = value("the size", size)?;
        ensure!((8..=64).contains(&size), "a build id of {size} bytes");
        let mut buffer = [0u32; 32];
        buffer[0] = size as u32 - 1;
        refused("one byte too few", ask(XENVER_BUILD_ID, &mut buffer), &[ENOBUFS])?;
        buffer[0] = 0;
        refused("no bytes", ask(XENVER_BUILD_ID, &mut buffer), &[EINVAL])?;
        buffer[0] = size as u32;
        ensure_eq!(value("the id", ask(XENVER_BUILD_ID, &mut buffer))?, size, "its size");
        ensure!(buffer[1..].iter().any(|word| *word != 0), "an id of zeros");
        Ok(())
    }

    pub(super) fn build_id_unprivileged(_: &Env) -> Verdict {
        refused("build_id", call(__HYPERVISOR_XEN_VERSION, [XENVER_BUILD_ID.into(), 0, 0, 0, 0]), &[EPERM])
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [11, 57, 0x7fff_ffff, u32::MAX] {
            refused("xen_version", ask(command, &mut [0u64; 16]), &[ENOSYS])?;
        }
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for command in [
            XENVER_EXTRAVERSION,
            XENVER_COMPILE_INFO,
            XENVER_CAPABILITIES,
            XENVER_CHANGESET,
            XENVER_PLATFORM_PARAMETERS,
            XENVER_GET_FEATURES,
            XENVER_GUEST_HANDLE,
            XENVER_COMMANDLINE,
        ] {
            let got = call(__HYPERVISOR_XEN_VERSION, [command.into(), scratch.at(0), 0, 0, 0]);
            refused("xen_version", got, &[EFAULT])?;
        }
        Ok(())
    }
}
