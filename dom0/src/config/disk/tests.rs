//! Disks, by examples and by noise.

use proptest::prelude::*;

use super::*;

fn disk(target: &str, backend: BackendType, vdev: &str, writable: bool) -> DiskConfig {
    let devid = vdev_number(vdev).unwrap();
    let vdev = vdev.to_owned();
    let target = target.to_owned();
    let backend_domain = None;
    DiskConfig {
        target,
        backend_domain,
        backend,
        vdev,
        devid,
        writable,
        cdrom: false,
        discard: true,
        trusted: true,
    }
}

#[test]
fn all_ways_to_say_the_same() {
    let want = disk("/dev/vda", BackendType::Any, "xvda", true);
    for text in [
        "/dev/vda,raw,xvda,rw",
        "/dev/vda,raw,xvda",
        "/dev/vda,,xvda",
        " /dev/vda , raw , xvda , w ",
        "/dev/vda,raw,xvda,",
        "format=raw, vdev=xvda, access=rw, target=/dev/vda",
        "vdev=xvda,target=/dev/vda",
        "raw:/dev/vda,xvda,w",
        "file:/dev/vda,xvda,w",
        "tap:aio:/dev/vda,xvda",
        "tap2:aio:/dev/vda,xvda,w",
        "tap:tapdisk:ioemu:file:raw:/dev/vda,xvda,w",
        "specification=xen,/dev/vda,raw,xvda",
        "vdev=xvda,raw:/dev/vda",
        "raw:/dev/vda,format=raw,xvda",
        "no-colo,colo-host=h,colo-port=9000,trusted,/dev/vda,,xvda",
        "backendtype=qdisk,vdev=xvda,target=/dev/vda,",
        "/dev/vda,vdev=xvda",
        "/dev/vda,raw,xvda,rw,direct-io-safe",
    ] {
        assert_eq!(DiskConfig::parse(text), Ok(want.clone()), "{text}");
    }
    let want = disk("/dev/vda", BackendType::Phy, "xvda", false);
    for text in [
        "phy:raw:/dev/vda,xvda,r",
        "aio:phy:/dev/vda,xvda,r",
        "phy:/dev/vda,xvda,r",
        "phy:/dev/vda,xvda,ro",
        "backendtype=phy,access=ro,vdev=xvda,target=/dev/vda",
    ] {
        assert_eq!(DiskConfig::parse(text), Ok(want.clone()), "{text}");
    }
}

#[test]
fn a_named_target_takes_the_rest() {
    let got = DiskConfig::parse("vdev=xvda,target=/a,b=c,d").unwrap();
    assert_eq!(got.target, "/a,b=c,d");
}

#[test]
fn a_driver_domain() {
    for (text, want) in [
        ("backend=d1,vdev=xvda,target=/dev/vda", Some("d1")),
        ("backend=0,vdev=xvda,target=/dev/vda", None),
        ("phy:/dev/vda,xvda,w,backend=Domain-0", None),
    ] {
        assert_eq!(DiskConfig::parse(text).unwrap().backend_domain.as_deref(), want, "{text}");
    }
}

#[test]
fn cd_drives() {
    for text in [
        "/boot/cd.iso,raw,xvdc,cdrom",
        "/boot/cd.iso,,xvdc,,cdrom",
        "/boot/cd.iso,,xvdc:cdrom",
        "raw:/boot/cd.iso,xvdc:cdrom,ro",
        "devtype=cdrom,vdev=xvdc,target=/boot/cd.iso",
    ] {
        let got = DiskConfig::parse(text).unwrap();
        assert!(got.cdrom && !got.writable && got.target == "/boot/cd.iso", "{text}");
    }
    for text in [
        ",,xvdc,cdrom",
        ",xvdc:cdrom,r",
        "devtype=cdrom,,,xvdc",
        ",empty,xvdc:cdrom,r",
        "vdev=xvdc,access=r,devtype=cdrom,target=",
        "vdev=xvdc,devtype=cdrom,format=empty",
    ] {
        let got = DiskConfig::parse(text).unwrap();
        assert!(got.cdrom && got.target.is_empty() && got.vdev == "xvdc", "{text}");
    }
}

#[test]
fn flags() {
    let read = |flags: &str| DiskConfig::parse(&format!("{flags},vdev=xvda,target=/dev/vda")).unwrap();
    let got = read("discard,trusted,direct-io-safe");
    assert!(got.discard && got.trusted);
    let got = read("no-discard,untrusted");
    assert!(!got.discard && !got.trusted);
    // The later of two contradicting words counts.
    assert!(read("no-discard,discard,untrusted,trusted").discard);
}

#[test]
fn colons_that_are_no_prefixes() {
    for (text, target) in
        [("foo:bar,raw,xvda,w", "foo:bar"), ("/dev/a:b,,xvda", "/dev/a:b"), ("2:/a,,xvda", "2:/a")]
    {
        assert_eq!(DiskConfig::parse(text).unwrap().target, target, "{text}");
    }
}

#[test]
fn wrong_entries() {
    for (text, want) in [
        ("", "no target"),
        ("/dev/vda", "no vdev"),
        ("/dev/vda,raw,,w", "no vdev"),
        ("/dev/vda,qcow2,xvda", "format `qcow2`: dom0 reads `raw` disks only"),
        ("tap:qcow2:/dev/vda,xvda,w", "format `qcow2`"),
        ("format=floppy,vdev=xvda,target=/a", "format `floppy`: expected one of raw, qcow"),
        ("format=raw,format=vhd,vdev=xvda,target=/a", "format `vhd`: it is `raw` already"),
        ("/a,empty,xvda", "format `empty`: there is a target, `/a`"),
        // A word is missing, and the message must not take `xvda` for a format.
        ("/dev/vda,xvda,w", "`xvda` stands where the format does"),
        ("/dev/vda,raw,vda", "vdev `vda`"),
        ("/dev/vda,raw,xvda,x", "access `x`"),
        ("/dev/vda,raw,xvda,rw,more", "`more`: too many"),
        ("/dev/vda,raw,xvda,flavour=x", "`flavour`: no such"),
        ("/dev/by=id,raw,xvda", "`/dev/by`: no such parameter of a disk (a target with"),
        ("phy:/dev/vda,xvda,w,target=/dev/vdb", "the target is given twice"),
        ("vdev=xvda,vdev=xvdb,target=/a", "the vdev is given twice"),
        ("backend=a,backend=b,vdev=xvda,target=/a", "the backend is given twice"),
        ("phy:/dev/vda,xvda:tape,w", "devtype `tape`"),
        ("devtype=tape,vdev=xvda,target=/a", "devtype `tape`"),
        ("backend=,vdev=xvda,target=/dev/vda", "backend: no domain"),
        ("script=x,vdev=xvda,target=/dev/vda", "script `x`: dom0 runs no scripts"),
        ("iscsi:iqn.2001,xvda,w", "`iscsi:` means `script=block-iscsi`: dom0 runs no scripts"),
        ("drbd:app,xvda,w", "`drbd:` means"),
        ("nfs:/a,xvda,w", "`nfs:`: no such prefix"),
        ("tap:nfs:/a,xvda,w", "`nfs:`: no such prefix"),
        ("backendtype=x,vdev=xvda,target=/dev/vda", "backendtype `x`"),
        ("backendtype=standalone,vdev=xvda,target=/a", "backendtype `standalone`"),
        ("specification=virtio,vdev=xvda,target=/a", "specification `virtio`: dom0 serves `xen` disks only"),
        ("specification=scsi,vdev=xvda,target=/a", "specification `scsi`: expected `xen`"),
        ("colo,vdev=xvda,target=/a", "colo: dom0 copies no domain"),
        ("colo-port=x,vdev=xvda,target=/a", "colo-port `x`"),
        ("phy:,xvda,w", "no target"),
        ("phy:", "no target"),
    ] {
        let error = DiskConfig::parse(text).expect_err(text);
        assert!(error.contains(want), "{text}: {error}");
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "[a-z,=:/ ]{0,40}") {
        let _ = DiskConfig::parse(&text);
    }
}
