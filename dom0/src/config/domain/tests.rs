//! Whole configurations, good and bad.

use super::*;
use crate::config::keys::{self, Fate};

const LEAST: &str = "name='x'\nkernel='/boot/k'\n";

fn read(text: &str) -> Result<(DomainConfig, Vec<Diagnostic>), Diagnostic> {
    DomainConfig::from_config(&Config::parse("t.cfg", text.as_bytes()).unwrap())
}

fn with(text: &str) -> DomainConfig {
    let (domain, warnings) = read(&format!("{LEAST}{text}")).unwrap_or_else(|e| panic!("{text}: {e}"));
    assert!(warnings.is_empty(), "{text}: {warnings:?}");
    domain
}

fn error(text: &str) -> String {
    read(&format!("{LEAST}{text}")).unwrap_err().to_string()
}

#[test]
fn defaults() {
    let domain = with("");
    assert_eq!((domain.name.as_str(), domain.kernel.as_str()), ("x", "/boot/k"));
    assert_eq!((domain.memory_mib, domain.maxmem_mib, domain.vcpus, domain.maxvcpus), (32, 32, 1, 1));
    assert_eq!((domain.on_poweroff, domain.on_reboot), (Action::Destroy, Action::Restart));
    assert!(domain.disks.is_empty() && domain.cmdline.is_empty() && domain.ramdisk.is_none());
}

#[test]
fn a_usual_file() {
    let domain = with(
        "type='pv'\nbuilder=\"generic\"\nramdisk='/boot/r'\nroot='/dev/xvda1 ro'\nextra='console=hvc0'\n\
         memory='128'; maxmem=256\nvcpus=2\nmaxvcpus=4\ncpus=['0','1-3',]\ncpu_weight=512\n\
         disk = [ 'phy:/dev/vda,xvda,w',\n 'format=raw, vdev=xvdb, access=ro, target=/boot/d.img' ]\n\
         vif=['mac=00:16:3e:00:00:01','']\non_crash='preserve'\non_reboot='coredump-restart'\n\
         tsc_mode=2\nlocaltime=1\nuuid='123e4567-e89b-12d3-a456-426614174000'\nrtc_timeoffset='-3600'",
    );
    assert_eq!(domain.cmdline, b"root=/dev/xvda1 ro console=hvc0");
    assert_eq!((domain.memory_mib, domain.maxmem_mib, domain.vcpus, domain.maxvcpus), (128, 256, 2, 4));
    assert_eq!((domain.cpus.len(), domain.disks.len(), domain.vifs.len()), (2, 2, 2));
    assert_eq!((domain.on_crash, domain.on_reboot), (Action::Preserve, Action::Restart));
    assert_eq!((domain.tsc_mode, domain.localtime, domain.rtc_timeoffset), (TscMode::Native, true, -3600));
    assert_eq!(domain.uuid.unwrap()[..4], [0x12, 0x3e, 0x45, 0x67]);
    assert_eq!(with("cpus='all'").cpus, [CpuSet::All]);
    assert_eq!(with("cpus=3").cpus.len(), 1);
    assert_eq!(with("cmdline='a b'").cmdline, b"a b");
    assert_eq!(with("tsc_mode='always_emulate'").tsc_mode, TscMode::AlwaysEmulate);
}

#[test]
fn words_of_the_command_line() {
    let mut config = Config::parse("t.cfg", LEAST.as_bytes()).unwrap();
    for word in ["disk=['phy:/dev/vda,xvda,w']", "name=foo", "memory=64", "colour=red"] {
        config.add_word(word).unwrap();
    }
    let (domain, warnings) = DomainConfig::from_config(&config).unwrap();
    assert_eq!((domain.name.as_str(), domain.memory_mib), ("foo", 64));
    assert_eq!(domain.disks[0].target, "/dev/vda");
    assert_eq!(warnings[0].to_string(), "command line:4:1: colour: unknown key, ignored");
}

#[test]
fn warnings_say_where() {
    let (_, warnings) = read(&format!("{LEAST}memroy=3\npci=['0:1']\ncmdline='x'\nroot='y'")).unwrap();
    let texts: Vec<_> = warnings.iter().map(|warning| format!("{warning}")).collect();
    assert_eq!(
        texts,
        [
            "t.cfg:3:1: memroy: unknown key, ignored",
            "t.cfg:4:1: pci: ignored: no hardware is passed through to guests",
            "t.cfg:6:1: root: ignored, as `cmdline` is given",
        ]
    );
}

#[test]
fn warnings_come_with_an_error_too() {
    let config = Config::parse("t.cfg", b"name='x'\nbootloader='pygrub'\nmemroy=3").unwrap();
    let (domain, warnings) = DomainConfig::read(&config);
    assert_eq!(domain.unwrap_err().to_string(), "t.cfg: no `kernel` is given");
    let texts: Vec<_> = warnings.iter().map(|warning| format!("{warning}")).collect();
    assert!(texts[0].starts_with("t.cfg:2:1: bootloader: ignored: dom0 runs no boot loader"), "{texts:?}");
    assert_eq!(texts[1], "t.cfg:3:1: memroy: unknown key, ignored");
}

#[test]
fn words_of_a_network_that_mean_nothing_are_warned_of() {
    let text = format!("{LEAST}vif=['bridge=br0,vlans=7',\n 'backend=netvm','accel=x']");
    let (domain, warnings) = read(&text).unwrap();
    assert_eq!(domain.vifs.len(), 3);
    let texts: Vec<_> = warnings.iter().map(|warning| format!("{warning}")).collect();
    assert_eq!(
        texts,
        [
            "t.cfg:3:6: vif: `vlans=7`: no such word of a network interface, ignored",
            "t.cfg:4:18: vif: `accel=x`: there is no such thing any more, ignored",
        ]
    );
    // However many entries there are, what is said of them is limited.
    let many = format!("{LEAST}vif=[{}]", "'a,b,c,d',".repeat(16));
    assert_eq!(read(&many).unwrap().1.len(), 32);
}

/// The reader uses exactly the keys that the table calls done.
#[test]
fn the_table_of_keys_is_the_readers() {
    for key in keys::KEYS.iter().filter(|key| key.name != "name" && key.name != "kernel") {
        let list = read(&format!("{LEAST}{}=[[1]]", key.name));
        match key.fate {
            // No key takes a list of lists, so the test's value fails for each key in use. Two keys are
            // accepted without effect.
            Fate::Done if matches!(key.name, "nomigrate" | "driver_domain") => {
                assert!(list.unwrap().1.is_empty())
            }
            Fate::Done => assert_eq!(list.unwrap_err().key.as_deref(), Some(key.name)),
            Fate::Ignored => {
                let want = format!("t.cfg:3:1: {}: ignored: {}", key.name, key.why);
                assert_eq!(list.unwrap().1[0].to_string(), want);
            }
            Fate::Refused => {
                assert_eq!(list.unwrap_err().to_string(), format!("t.cfg:3:1: {}: {}", key.name, key.why));
            }
        }
    }
}

#[test]
fn bytes_go_to_the_kernel_as_they_are() {
    let text =
        [LEAST.as_bytes(), b"# caf\xe9\nroot='/dev/\xfc'\nextra='who=Andr\xe9'\ndisk=['/d\xe9,raw,xvda']"]
            .concat();
    let (domain, warnings) = DomainConfig::from_config(&Config::parse("t.cfg", &text).unwrap()).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(domain.cmdline, b"root=/dev/\xfc who=Andr\xe9");
    // A name is text, so bytes that are not UTF-8 are read as Latin-1.
    assert_eq!(domain.disks[0].target, "/d\u{e9}");
}

#[test]
fn errors_say_key_and_place() {
    for (text, want) in [
        ("memory='lots'", "t.cfg:3:8: memory: expected a number"),
        ("memory=0", "t.cfg:3:8: memory: 0 is out of range: 1 to 16777216"),
        ("memory=16777217", "t.cfg:3:8: memory: 16777217 is out of range"),
        ("memory=64\nmaxmem=63", "t.cfg:4:8: maxmem: 63 is less than `memory`, 64"),
        ("vcpus=0", "t.cfg:3:7: vcpus: 0 is out of range"),
        ("vcpus=129", "t.cfg:3:7: vcpus: 129 is out of range"),
        ("vcpus=2\nmaxvcpus=1", "t.cfg:4:10: maxvcpus: 1 is less than `vcpus`, 2"),
        ("type='hvm'", "t.cfg:3:6: type: `hvm`: only `pv`"),
        ("builder='hvm'", "t.cfg:3:9: builder: `hvm`"),
        ("name=[]", "t.cfg:3:6: name: expected a string"),
        ("name=''", "t.cfg:3:6: name: expected 1 to 255 bytes"),
        ("name='a/b'", "t.cfg:3:6: name: expected"),
        ("name='12'", "t.cfg:3:6: name: a name must not be a number"),
        ("disk='x'", "t.cfg:3:6: disk: expected a list"),
        ("disk=['/dev/vda,raw,xvda',\n'/dev/vdb,qcow2,xvdb']", "t.cfg:4:1: disk: format `qcow2`"),
        ("disk=['/a,raw,xvda','/b,raw,d0p0']", "t.cfg:3:21: disk: vdev `d0p0` is given twice"),
        ("disk=[['x']]", "t.cfg:3:7: disk: expected a string"),
        ("vif=['mac=x']", "t.cfg:3:6: vif: mac `x`"),
        ("on_crash='explode'", "t.cfg:3:10: on_crash: `explode`: expected one of `destroy`"),
        ("tsc_mode=4", "t.cfg:3:10: tsc_mode: `4`: expected one of"),
        ("uuid='123'", "t.cfg:3:6: uuid: expected a UUID"),
        ("cpus='4-2'", "t.cfg:3:6: cpus: `4-2`"),
        ("cpu_weight=65536", "t.cfg:3:12: cpu_weight: 65536 is out of range"),
        ("vcpus=2\ncap=201", "t.cfg:4:5: cap: 201 is out of range: 0 to 200"),
        ("localtime=2", "t.cfg:3:11: localtime: 2 is out of range"),
        ("rtc_timeoffset='x'", "t.cfg:3:16: rtc_timeoffset: expected"),
        ("kernel=''", "t.cfg: no `kernel` is given"),
    ] {
        assert!(error(text).starts_with(want), "{text}: {}", error(text));
    }
    assert_eq!(read("kernel='k'").unwrap_err().to_string(), "t.cfg: no `name` is given");
    assert_eq!(read("name='k'").unwrap_err().to_string(), "t.cfg: no `kernel` is given");
}

#[test]
fn uuids() {
    assert!(parse_uuid("123e4567e89b12d3a456426614174000").is_some());
    for bad in [
        "",
        "123e4567-e89b-12d3-a456-42661417400",
        "123e4567-e89b-12d3-a456-42661417400g",
        "éééééééééééééééé",
        "123e4567e-89b-12d3-a456-426614174000",
    ] {
        assert!(parse_uuid(bad).is_none(), "{bad}");
    }
}
