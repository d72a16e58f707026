//! `install.sh` in a scratch root, with small programs in place of GRUB's and of those that look at disks: what the script
//! refuses, what it leaves after each step when the power fails, and that it takes away what it brought.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use tests::Scratch;
use tests::scratch::sha256;
use xtask::iso::Files;

const SCRIPT: &str = xtask::install::PROGRAM;

/// In place of the system's: each prints what a machine with one virtio disk would.
const PROGRAMS: [(&str, &str); 10] = [
    ("uname", "case $1 in -m) echo x86_64 ;; -r) echo 6.1.0-test ;; esac"),
    ("id", "echo 0"),
    ("grub-probe", "case $1 in *abstraction) ;; *=fs) echo ext2 ;; *) echo 1234-abcd ;; esac"),
    ("grub-mkrelpath", "echo \"${1#\"$ROOT\"}\""),
    ("grub-editenv", ":"),
    ("findmnt", "case $3 in /) echo /dev/vda2 ;; *) exit 1 ;; esac"),
    ("lsblk", "case $* in *SERIAL*) echo QEMU system ;; *) echo vda2 part; echo vda disk ;; esac"),
    ("ip", "echo default via 10.0.2.2 dev ens3 proto dhcp src 10.0.2.15"),
    ("df", "echo head; echo /dev/vda2 1000000 1 900000 1% /boot"),
    ("update-grub", UPDATE),
];

/// Runs what is in `/etc/grub.d`, as `grub-mkconfig` does.
const UPDATE: &str = r#"
echo "linux /vmlinuz root=UUID=1234 ro # next_entry" > "$ROOT/boot/grub/grub.cfg.new"
for part in "$ROOT"/etc/grub.d/*; do
    [ ! -x "$part" ] || "$part" >> "$ROOT/boot/grub/grub.cfg.new"
done
mv "$ROOT/boot/grub/grub.cfg.new" "$ROOT/boot/grub/grub.cfg""#;

/// What changes the disk: with `CUT` in the environment, all processes die at that use, and a copy is half done.
const CHANGES: [&str; 5] = ["mv", "cp", "rm", "mkdir", "chmod"];

/// A Debian machine: its root directory, the programs, and the directory of the installation.
struct Debian {
    scratch: Scratch,
    root: PathBuf,
}

fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("writable");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("ours");
}

impl Debian {
    fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let scratch = Scratch::new(&name).expect("a directory");
        let root = scratch.directory("root").expect("a directory");
        let debian = Self { scratch, root };
        let pci = "sys/devices/pci0000:00";
        for directory in [
            "boot/grub/i386-pc",
            "etc/grub.d",
            "etc/initramfs-tools",
            "proc",
            "dev/disk/by-id",
            "sys/block/vda",
        ] {
            fs::create_dir_all(debian.root.join(directory)).expect("writable");
        }
        for (device, driver) in
            [("0000:00:03.0/virtio0", "virtio_net"), ("0000:00:04.0/virtio1", "virtio_blk")]
        {
            let device = debian.root.join(pci).join(device);
            let driver = debian.root.join("sys/bus/virtio/drivers").join(driver);
            fs::create_dir_all(&device).expect("writable");
            fs::create_dir_all(&driver).expect("writable");
            symlink(driver, device.join("driver")).expect("writable");
        }
        let device = debian.root.join(pci).join("0000:00:04.0/virtio1");
        symlink(device, debian.root.join("sys/block/vda/device")).expect("writable");
        let card = debian.root.join("sys/class/net/ens3");
        fs::create_dir_all(&card).expect("writable");
        symlink(debian.root.join(pci).join("0000:00:03.0/virtio0"), card.join("device")).expect("writable");
        debian.write("sys/class/net/ens3/address", "52:54:00:12:34:56\n");
        symlink("../../vda", debian.root.join("dev/disk/by-id/virtio-system")).expect("writable");
        symlink("../../vda2", debian.root.join("dev/disk/by-id/virtio-system-part2")).expect("writable");
        debian.write("boot/grub/grub.cfg", "linux /vmlinuz root=UUID=1234 ro # next_entry\n");
        debian.write("boot/grub/i386-pc/multiboot2.mod", "");
        debian.write("boot/config-6.1.0-test", "CONFIG_XEN_PV=y\nCONFIG_XEN_BLKDEV_FRONTEND=y\n");
        debian.write("etc/fstab", "UUID=1234 / ext4 defaults 0 1\n/dev/sr0 /media iso9660 noauto 0 0\n");
        debian.write("proc/meminfo", "MemTotal:        1048576 kB\n");
        let programs = debian.scratch.directory("programs").expect("a directory");
        for (name, text) in PROGRAMS {
            program(&programs.join(name), text);
        }
        program(&programs.join("sync"), ":");
        for name in CHANGES {
            let text = format!(
                "if [ -n \"$CUT\" ]; then\n\
                 n=$(($(cat \"$ROOT/../count\") + 1)); echo $n > \"$ROOT/../count\"\n\
                 if [ $n = $CUT ]; then [ {name} != cp ] || [ $# != 2 ] || head -c 2 \"$1\" > \"$2\"; kill -9 0; fi; fi\n\
                 exec /bin/{name} \"$@\""
            );
            program(&programs.join(name), &text);
        }
        debian.deliver("first");
        debian
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.root.join(name), text).expect("writable");
    }

    /// Another program in place of the system's.
    fn program(&self, name: &str, text: &str) {
        program(&self.scratch.path("programs").join(name), text);
    }

    /// The system lies on `disk` behind a PCI device at `place`, instead of on a virtio disk.
    fn controller(&self, place: &str, driver: &str, class: &str, disk: &str) {
        let device = self.root.join("sys/devices/pci0000:00").join(place);
        let (block, driver) =
            (self.root.join("sys/block").join(disk), self.root.join("sys/bus/pci/drivers").join(driver));
        for directory in [&device.join("host/target"), &driver, &block] {
            fs::create_dir_all(directory).expect("writable");
        }
        symlink(driver, device.join("driver")).expect("writable");
        fs::write(device.join("class"), format!("{class}\n")).expect("writable");
        symlink(device.join("host/target"), block.join("device")).expect("writable");
        let kind = if disk.starts_with("nvme") { "nvme" } else { "ata" };
        symlink(format!("../../{disk}"), self.root.join(format!("dev/disk/by-id/{kind}-A_B")))
            .expect("writable");
        self.program("findmnt", &format!("case $3 in /) echo /dev/{disk}p2 ;; *) exit 1 ;; esac"));
        self.program("lsblk", &format!("case $* in *SERIAL*) echo A B ;; *) echo {disk} disk ;; esac"));
    }

    /// Makes the installation's directory, with a hypervisor of these bytes.
    fn deliver(&self, hypervisor: &str) {
        let file = |name: &str, text: &str| self.scratch.file(name, text.as_bytes()).expect("writable");
        let hypervisor = file("hypervisor", hypervisor);
        let (dom0, bundle) = (file("dom0", "dom0"), file("bundle", "070701"));
        let files = Files { hypervisor: &hypervisor, dom0: &dom0, bundle: &bundle };
        xtask::install::make(&self.scratch.path("install"), &files).expect("made");
    }

    fn run(&self, words: &[&str], cut: &str) -> Output {
        self.scratch.file("count", b"0").expect("writable");
        let mut command = Command::new("sh");
        command.arg(self.scratch.path("install").join(SCRIPT)).args(words).arg("--root").arg(&self.root);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.scratch.path("programs").display()));
        command.env("ROOT", &self.root).env("CUT", cut).env("TMPDIR", self.scratch.path("")).process_group(0);
        command.output().expect("a shell")
    }

    /// The script succeeds; gives what it says.
    fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words, "");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).expect("text");
        assert!(output.status.success(), "{words:?}: {said}");
        said
    }

    /// The script refuses, for a reason that holds `why`, and has changed nothing.
    fn refuses(&self, why: &str) {
        let before = self.tree();
        let output = self.run(&[], "");
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success() && said.contains(why), "{why}: {said}");
        assert!(said.contains("nothing has been changed"), "{said}");
        assert_eq!(self.tree(), before, "{why}");
    }

    /// All files below the root, with their sums.
    fn tree(&self) -> Vec<String> {
        let list = Command::new("find").arg(&self.root).args(["-type", "f"]).output().expect("find");
        let list = String::from_utf8(list.stdout).expect("text");
        let mut files: Vec<String> = list
            .lines()
            .map(|file| format!("{file} {}", sha256(Path::new(file)).expect("readable")))
            .collect();
        files.sort();
        files
    }

    /// What the menu names is whole: the directory's name is the sum of its files. Gives the name, if there is an entry.
    fn entry(&self) -> Option<String> {
        let menu = fs::read_to_string(self.root.join("boot/grub/grub.cfg")).expect("a menu");
        assert!(menu.starts_with("linux /vmlinuz root=UUID=1234"), "{menu}");
        let line = menu.lines().find(|line| line.contains("multiboot2 /"))?;
        let directory = Path::new(line.trim().strip_prefix("multiboot2 ")?).parent().expect("a directory");
        let version = directory.file_name().and_then(|name| name.to_str()).expect("a name").to_string();
        let directory = self.root.join("boot/microhv").join(&version);
        let bytes =
            ["microhv", "dom0", "boot.cpio"].map(|name| fs::read(directory.join(name)).expect("a file"));
        let whole = self.scratch.file("whole", &bytes.concat()).expect("writable");
        assert!(sha256(&whole).expect("readable").starts_with(&version), "{version}");
        Some(version)
    }

    fn versions(&self) -> usize {
        fs::read_dir(self.root.join("boot/microhv")).map_or(0, Iterator::count)
    }
}

#[test]
fn a_machine_gets_an_entry_and_its_system_a_configuration() {
    let debian = Debian::new("install-entry");
    let before = debian.tree();
    let said = debian.succeeds(&["--check"]);
    assert_eq!(debian.tree(), before);
    for line in [
        "disk = [ 'phy:/dev/disk/by-id/virtio-system,xvda,w' ]\n",
        "memory = 864\n",
        "kernel = \"/boot/pvgrub\"\n",
        "on_reboot = \"restart\"\n",
        ",bridge=eth0' ]\n",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(debian.succeeds(&[]).contains("grub-reboot microhv && reboot"));
    let version = debian.entry().expect("an entry");
    let menu = fs::read_to_string(debian.root.join("boot/grub/grub.cfg")).expect("a menu");
    assert!(menu.contains("--id microhv {") && menu.contains("--set=root 1234-abcd\n"), "{menu}");
    let bundle =
        fs::read(debian.root.join("boot/microhv").join(&version).join("boot.cpio")).expect("a bundle");
    // The members of the script stand before those of the bundle, each padded to 4.
    let text = String::from_utf8_lossy(&bundle);
    let script = text.find(".script\0").expect("a script");
    assert!(text[script..].contains("try xl create -c -F /boot/debian.cfg\n") && text.ends_with("070701"));
    let headers: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
    assert!(headers.len() == 3 && headers.iter().all(|at| at % 4 == 0), "{headers:?}");
    let link = fs::read_to_string(debian.root.join("etc/systemd/network/70-microhv.link")).expect("a link");
    assert!(link.contains("Name=ens3\n") && link.contains("MACAddress=00:16:3e:"), "{link}");

    // Again: nothing changes. Another version: the former goes. Removed: as before.
    let installed = debian.tree();
    debian.succeeds(&[]);
    assert_eq!(debian.tree(), installed);
    debian.deliver("second");
    debian.succeeds(&[]);
    assert!(debian.entry().is_some_and(|new| new != version) && debian.versions() == 1);
    debian.succeeds(&["--remove"]);
    assert_eq!(debian.tree(), before);
}

/// A machine that `change` has made unfit is refused, for a reason that holds `why`.
fn refused(change: impl FnOnce(&Debian), why: &str) {
    let debian = Debian::new("install-refused");
    change(&debian);
    debian.refuses(why);
}

#[test]
fn what_cannot_work_is_refused_before_anything_changes() {
    let programs: [(&str, &str, &str); 11] = [
        ("id", "echo 1000", "run as root"),
        ("uname", "echo aarch64", "aarch64: microhv runs on x86_64"),
        ("grub-probe", "echo lvm", "cannot write to"),
        ("grub-probe", "case $1 in *abstraction) ;; *) echo btrfs ;; esac", "on btrfs"),
        ("df", "echo head; echo /dev/vda2 10 1 9 1% /boot", "has room for 9 KiB"),
        ("lsblk", "echo sdx disk", "no driver for the disk sdx"),
        (
            "lsblk",
            "case $* in *SERIAL*/dev/vda) echo A ;; *SERIAL*) echo A; echo A ;; *) echo vda disk ;; esac",
            "tell vda from",
        ),
        ("findmnt", "exit 1", "/etc/fstab has /, which is not mounted"),
        ("findmnt", "echo tmpfs", "which disk holds /"),
        (
            "findmnt",
            "case $2 in FSTYPE) echo btrfs ;; *) echo /dev/vda2 ;; esac",
            "a btrfs over several disks",
        ),
        ("sha256sum", "exit 1", "copy the directory again"),
    ];
    for (name, text, why) in programs {
        refused(|debian| debian.program(name, text), why);
    }
    for (name, text, why) in [
        ("boot/config-6.1.0-test", "# CONFIG_XEN_PV is not set\n", "no CONFIG_XEN_PV"),
        (
            "boot/config-6.1.0-test",
            "CONFIG_XEN_PV=y\nCONFIG_XEN_BLKDEV_FRONTEND=y\nCONFIG_KERNEL_ZSTD=y\n",
            "zstd",
        ),
        ("etc/initramfs-tools/initramfs.conf", "MODULES=dep\n", "say MODULES=most"),
        ("etc/crypttab", "a /dev/sda3 none luks\n", "/etc/crypttab says /dev/sda3"),
        ("etc/fstab", "/dev/vda2 / ext4 defaults 0 1\n", "/etc/fstab says /dev/vda2"),
        ("boot/grub/grub.cfg", "linux /k root=/dev/vda2 # next_entry\n", "says root=/dev/vda2"),
        ("boot/grub/grub.cfg", "linux /k root=UUID=1\n", "does not know grub-reboot"),
        ("proc/meminfo", "MemTotal: 393216 kB\n", "384 MiB of memory leave 234 MiB"),
    ] {
        refused(|debian| debian.write(name, text), why);
    }
    let removed =
        |debian: &Debian, path: PathBuf| fs::remove_file(debian.scratch.path("").join(path)).expect("there");
    refused(|debian| removed(debian, "programs/update-grub".into()), "started by GRUB 2");
    refused(|debian| removed(debian, "root/boot/grub/i386-pc/multiboot2.mod".into()), "run grub-install");
}

#[test]
fn secure_boot_and_a_system_that_is_a_guest_are_refused() {
    let debian = Debian::new("install-refused");
    let variables = debian.root.join("sys/firmware/efi/efivars");
    fs::create_dir_all(&variables).expect("writable");
    fs::create_dir_all(debian.root.join("boot/grub/x86_64-efi")).expect("writable");
    debian.write("boot/grub/x86_64-efi/multiboot2.mod", "");
    fs::write(variables.join("SecureBoot-8be4df61"), [6, 0, 0, 0, 1]).expect("writable");
    debian.refuses("Secure Boot is on");
    fs::write(variables.join("SecureBoot-8be4df61"), [6, 0, 0, 0, 0]).expect("writable");
    debian.succeeds(&[]);
    fs::create_dir_all(debian.root.join("sys/hypervisor")).expect("writable");
    debian.write("sys/hypervisor/type", "xen\n");
    debian.refuses("runs as a guest");
}

/// Controllers by their place, driver, class and disk, and what stands behind `disk =` or why the disk is refused.
#[test]
fn a_disk_is_taken_where_dom0_finds_its_controller() {
    let (sata, raid, nvme) = ("0x010601", "0x010400", "0x010802");
    let (first, hidden) = ("0000:00:05.0", "0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0");
    let (no_driver, no_name) = ("no driver for the disk", "could not tell");
    for (place, driver, class, disk, outcome) in [
        (first, "ahci", sata, "sda", Ok("'phy:/dev/disk/by-id/ata-A_B,xvda,w'")),
        (first, "nvme", nvme, "nvme0n1", Ok("'phy:/dev/disk/by-id/nvme-A_B,xvda,w'")),
        (first, "ahci", raid, "sda", Err(no_driver)),
        (first, "nvme", raid, "nvme0n1", Err(no_driver)),
        (hidden, "nvme", nvme, "nvme0n1", Err(no_driver)),
        (first, "megaraid_sas", raid, "sda", Err(no_driver)),
        // dom0 knows a controller's first name space alone.
        (first, "nvme", nvme, "nvme0n2", Err(no_name)),
    ] {
        let debian = Debian::new("install-controller");
        debian.controller(place, driver, class, disk);
        match outcome {
            Ok(line) => {
                assert!(debian.succeeds(&["--check"]).contains(line), "{place} {driver} {class} {disk}")
            }
            Err(why) => debian.refuses(&format!("{why} {disk}")),
        }
    }
}

/// Where the menu's default is a saved one, PV GRUB looks where the machine's GRUB has saved it.
#[test]
fn the_guests_loader_looks_up_a_saved_default() {
    let debian = Debian::new("install-saved");
    debian.succeeds(&[]);
    let menu = fs::read_to_string(debian.root.join("boot/grub/grub.cfg")).expect("a menu");
    for line in [
        "elif [ -z \"$default\" ]; then\n",
        "    search --no-floppy --fs-uuid --set=microhv_grub 1234-abcd\n",
        "        load_env --file ($microhv_grub)/boot/grub/grubenv saved_entry\n",
        "        set default=\"$saved_entry\"\n",
    ] {
        assert!(menu.contains(line), "{line}: {menu}");
    }
}

#[test]
fn a_disk_without_a_name_of_its_own_must_be_the_only_one() {
    let debian = Debian::new("install-nameless");
    fs::remove_file(debian.root.join("dev/disk/by-id/virtio-system")).expect("there");
    assert!(debian.succeeds(&["--check"]).contains("'phy:/dev/vda,xvda,w'"));
    let second = debian.root.join("sys/block/vdb");
    fs::create_dir_all(&second).expect("writable");
    symlink(debian.root.join("sys/devices/pci0000:00/0000:00:04.0/virtio1"), second.join("device"))
        .expect("writable");
    debian.refuses("could not tell vda from other disks");
}

#[test]
fn when_the_menu_cannot_be_made_the_former_entry_stays() {
    let debian = Debian::new("install-menu");
    debian.program("update-grub", "exit 1");
    assert!(!debian.run(&[], "").status.success());
    assert!(!debian.root.join("etc/grub.d/45_microhv").exists());
    debian.program("update-grub", UPDATE);
    debian.succeeds(&[]);
    let version = debian.entry().expect("an entry");
    debian.deliver("second");
    debian.program("update-grub", "exit 1");
    assert!(!debian.run(&[], "").status.success());
    debian.program("update-grub", UPDATE);
    let made = debian.run_menu();
    assert!(made && debian.entry() == Some(version));
}

impl Debian {
    /// What an upgrade of Debian's kernel does.
    fn run_menu(&self) -> bool {
        let mut command = Command::new(self.scratch.path("programs").join("update-grub"));
        command.env("ROOT", &self.root).status().expect("a shell").success()
    }
}

/// The power fails before each change, in a first installation, in that of another version, and in a removal.
#[test]
fn after_a_power_cut_the_menu_names_what_is_whole() {
    let mut cuts = 0;
    for stage in 0..3 {
        for cut in 1.. {
            let debian = Debian::new("install-cut");
            if stage > 0 {
                debian.succeeds(&[]);
                debian.deliver("second");
            }
            let words: &[&str] = if stage == 2 { &["--remove"] } else { &[] };
            if debian.run(words, &cut.to_string()).status.success() {
                assert!(cut > 2, "stage {stage} has no change");
                break;
            }
            cuts += 1;
            let entry = debian.entry();
            assert!(stage == 0 || stage == 2 || entry.is_some(), "{stage}: {cut}");
            assert!(debian.run_menu(), "{stage}: {cut}");
            debian.entry();
            debian.succeeds(words);
            assert_eq!(debian.versions(), usize::from(stage != 2), "{stage}: {cut}");
        }
    }
    assert!(cuts > 15, "{cuts} cuts");
}
