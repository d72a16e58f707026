//! What a domain gets while another attacks: the latency of its reads of xenstore, and its disk.
//!
//! Each attack has a machine of its own, whose time counts executed instructions, so the host's load does not matter.
//! Nor do the host's disks: the machine's disks answer at once and keep nothing (QEMU's `null-co`), and the
//! emulator's thread for disks shares one host CPU with the thread that executes, and goes first. So a disk's share
//! is a share of dom0's and the hypervisor's time.

mod bombs;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::{BenchOptions, counting_machine, run};
use crate::images;
use crate::machine::{Machine, Module};
use crate::qemu::RunDirectory;

/// The bounds: a read of xenstore on average and at worst, and the part of the disk that is left, in hundredths.
const MEAN_US: u64 = 5_000;
const WORST_US: u64 = 20_000;
const DISK_PERCENT: u64 = 40;
/// How often the neighbour reads xenstore, and its disk.
const STORE_READS: u32 = 2000;
const DISK_READS: u32 = 10_000;
/// How many rounds of disk reads there are. The median counts, since a rare event can disturb one round.
const DISK_ROUNDS: usize = 3;
/// The pause between two reads of xenstore: the reads then spread over a time in which rare events happen
/// too.
const PAUSE_NS: u32 = 1_000_000;
const DISK_BYTES: u64 = 16 << 20;
/// The first row: an honest busy guest. The disk's figures are ratios to this row.
const BUSY: &str = "honest-busy";
/// Another honest guest to which the figures are compared.
const READS: &str = "honest-reads";

/// One attack.
#[derive(Debug)]
struct Attack {
    name: &'static str,
    title: &'static str,
    /// What is beside the neighbour.
    by: By,
}

/// What is beside the neighbour.
#[derive(Clone, Copy, Debug)]
enum By {
    /// The guest `hello` with these words: it reads its disk as fast as it can.
    Honest(&'static str),
    /// The guest `hostile` with the case of the row's name, and more words for its configuration.
    Guest(&'static str),
    /// A domain of 128 MiB made again and again of a file that is no kernel.
    Kernel(fn() -> Vec<u8>),
}

/// The disk of the guest beside: one of its own, or the neighbour's.
const OWN: &str = "disk=['phy:/dev/vda,xvda,w']";
const SHARED: &str = "disk=['phy:/dev/vdb,xvda,r']";
const REBOOTS: &str = "on_reboot='restart'";

const fn attack(name: &'static str, title: &'static str, by: By) -> Attack {
    Attack { name, title, by }
}

/// All of them.
const ATTACKS: &[Attack] = &[
    attack(BUSY, "none: an honest guest that computes and reads its disk", By::Honest("busy")),
    attack(READS, "none: one that only reads its disk", By::Honest("")),
    attack("newlines", "console: newlines", By::Guest(OWN)),
    attack("lines", "console: lines of 1 KiB", By::Guest(OWN)),
    attack("bytes", "console: single bytes", By::Guest(OWN)),
    attack("directories", "store: 990 children listed in a transaction", By::Guest(OWN)),
    attack("writes", "store: a storm of large values", By::Guest(OWN)),
    attack("watches", "store: 128 watches on a path that is rewritten", By::Guest(OWN)),
    attack("transactions", "store: commits of 400 nodes that conflict", By::Guest(OWN)),
    attack("subtrees", "store: subtrees made and removed", By::Guest(OWN)),
    attack("prefixes", "store: deep paths beside 60 removed subtrees of long names", By::Guest(OWN)),
    attack("removals", "store: commits that remove these, and 128 watches reset", By::Guest(OWN)),
    attack("long-commits", "store: commits of 140 long names", By::Guest(OWN)),
    attack("long-perms", "store: commits of the permissions of 120 long names", By::Guest(OWN)),
    attack("mute", "store: requests without taking the replies", By::Guest(OWN)),
    attack("quotas", "store: all quotas full", By::Guest(OWN)),
    attack("unheard", "store: all quotas full, and nothing is taken", By::Guest(OWN)),
    attack("ring-of-reads", "disk: a full ring of reads", By::Guest(OWN)),
    attack("shared-disk", "disk: the same on the neighbour's own disk", By::Guest(SHARED)),
    attack("indirect", "disk: indirect requests of the largest size", By::Guest(OWN)),
    attack("barriers", "disk: barriers and flushes", By::Guest(OWN)),
    attack("garbage", "disk: garbage in the ring, and a new connection", By::Guest(OWN)),
    attack("reconnect", "disk: connected and closed in a loop", By::Guest(OWN)),
    attack("reboot-at-once", "reboot at once", By::Guest(REBOOTS)),
    attack("reboot-of-256-mib", "reboot at once, of 256 MiB", By::Guest("on_reboot='restart' memory=256")),
    attack("crash-at-once", "crash at once", By::Guest("on_crash='restart'")),
    attack("yields", "CPU: yields", By::Guest(OWN)),
    attack("event-storm", "CPU: events to itself", By::Guest(OWN)),
    attack("hypercalls", "CPU: the longest hypercalls", By::Guest(OWN)),
    attack("zstd", "kernel: 96 MiB in 6 KB of zstd", By::Kernel(bombs::zstd)),
    attack("lz4", "kernel: 96 MiB in 400 KB of lz4", By::Kernel(bombs::lz4)),
    attack("gzip", "kernel: 96 MiB in 640 KB of gzip", By::Kernel(bombs::gzip)),
    attack("xz", "kernel: 16 MiB in xz", By::Kernel(bombs::xz)),
    attack("elf", "kernel: 64 segments full of notes", By::Kernel(bombs::elf)),
    attack("elf-headers", "kernel: 65,535 program headers", By::Kernel(bombs::elf_headers)),
];

/// What the neighbour measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// A read of xenstore on average, in microseconds.
    pub mean_us: u64,
    /// The longest.
    pub worst_us: u64,
    /// Reads of the disk in a second.
    pub disk: u64,
}

impl Figures {
    /// Whether the bounds for reads of xenstore are kept.
    pub fn keeps_store_bounds(&self) -> bool {
        self.mean_us < MEAN_US && self.worst_us < WORST_US
    }

    /// The neighbour's disk reads as a ratio to those beside `busy`, in hundredths.
    fn disk_percent(&self, busy: &Self) -> u64 {
        self.disk * 100 / busy.disk.max(1)
    }

    /// Whether each bound is kept.
    pub fn keeps_bounds(&self, busy: &Self) -> bool {
        self.keeps_store_bounds() && self.disk_percent(busy) >= DISK_PERCENT
    }
}

/// Prints the table; true if every bound is kept.
///
/// # Errors
/// There is no such attack, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions) -> Result<bool> {
    let only = options.only.as_deref();
    println!(
        "| attack | neighbour's read of xenstore, average, ms | worst, ms | its disk, reads/s | part of the first row | of the second | bound |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let busy = measure(BUSY)?;
    let reads = measure(READS)?;
    let mut rows = Map::new();
    let mut missed = 0;
    for attack in ATTACKS.iter().filter(|attack| only.is_none_or(|only| only == attack.name)) {
        let figures = match attack.name {
            BUSY => busy,
            READS => reads,
            name => match measure(name) {
                Ok(figures) => figures,
                // The others are measured all the same.
                Err(error) => {
                    eprintln!("{error:#}");
                    missed += 1;
                    println!("| {} | - | - | - | - | - | not measured |", attack.title);
                    continue;
                }
            },
        };
        // An honest guest may take what it is given.
        let kept = matches!(attack.by, By::Honest(_)) || figures.keeps_bounds(&busy);
        missed += u32::from(!kept);
        println!("{}", row(attack, &figures, [&busy, &reads], kept));
        rows.insert(attack.name.into(), json(&figures, &busy, kept));
    }
    if let Some(path) = &options.json {
        images::write(path, Value::Object(rows).to_string().as_bytes())?;
    }
    println!("\n{missed} of the attacks are not held to the bounds");
    Ok(missed == 0)
}

/// The names of all attacks.
pub fn names() -> impl Iterator<Item = &'static str> {
    ATTACKS.iter().map(|attack| attack.name)
}

/// The cases of `hostile` among them.
pub fn cases() -> impl Iterator<Item = &'static str> {
    ATTACKS.iter().filter(|attack| matches!(attack.by, By::Guest(OWN))).map(|attack| attack.name)
}

fn row(attack: &Attack, figures: &Figures, parts_of: [&Figures; 2], kept: bool) -> String {
    let ms = |us: u64| format!("{}.{:02}", us / 1000, us % 1000 / 10);
    let parts = parts_of.map(|whole| {
        let percent = figures.disk_percent(whole);
        format!("{}.{:02}", percent / 100, percent % 100)
    });
    format!(
        "| {} | {} | {} | {} | {} | {} |",
        attack.title,
        ms(figures.mean_us),
        ms(figures.worst_us),
        figures.disk,
        parts.join(" | "),
        if kept { "kept" } else { "missed" }
    )
}

fn json(figures: &Figures, busy: &Figures, kept: bool) -> Value {
    json!({
        "mean_us": figures.mean_us,
        "worst_us": figures.worst_us,
        "disk_reads_per_second": figures.disk,
        "disk_percent": figures.disk_percent(busy),
        "kept": kept,
    })
}

/// Runs the attack of this name; returns what the neighbour measured.
///
/// # Errors
/// There is none of this name, its machine did not run to its end, or the attack did not take place.
pub fn measure(name: &str) -> Result<Figures> {
    let attack = ATTACKS.iter().find(|attack| attack.name == name).context("no attack of this name")?;
    let directory = RunDirectory::new()?;
    let mut machine = machine(attack);
    if let By::Kernel(make) = attack.by {
        let path = directory.file("bomb");
        std::fs::write(&path, make())?;
        machine.modules.push(Module { path, name: BOMB.into() });
    }
    let console = run(&machine)?;
    if !attack.took_place(&console) {
        bail!("the attack {name} did not take place, or not all the while: {console}");
    }
    figures(&console).with_context(|| format!("no figures beside {name}: {console}"))
}

/// The file's name under `/boot`.
const BOMB: &str = "bomb";
/// What dom0 says whenever it refuses that.
const REFUSED: &str = "error: kernel /boot/bomb: ";
/// How often a domain is made of that file while the neighbour reads xenstore, and while the neighbour reads
/// its disk.
const MADE: [u32; 2] = [24, 40];

/// QEMU's arguments for a virtio disk of this name that answers at once and keeps nothing. Without an I/O thread, the
/// thread that executes the machine starts the requests itself.
fn disk(name: &str) -> [String; 4] {
    [
        "-blockdev".into(),
        format!("driver=null-co,node-name={name},size={DISK_BYTES},read-zeroes=off"),
        "-device".into(),
        format!("virtio-blk-pci,drive={name},disable-legacy=on,ioeventfd=off"),
    ]
}

fn machine(attack: &Attack) -> Machine {
    let neighbour = |words: &str| {
        format!(
            "xl create /boot/hello.cfg name='neighbour' disk=['phy:/dev/vdb,xvda,r'] extra='disk-reads={words}'"
        )
    };
    let disk_reads = neighbour(&format!("{DISK_READS} disk-rounds={DISK_ROUNDS}"));
    let guest = |file: &str, words: &str, extra: &str| {
        vec![format!("xl create /boot/{file}.cfg name='attacker' {words} extra='{extra}'"), "sleep 1".into()]
    };
    let bomb = |times: u32| match attack.by {
        By::Kernel(_) => vec![format!(
            "repeat {times} try xl create /boot/hello.cfg name='attacker' memory=128 kernel='/boot/{BOMB}'"
        )],
        _ => vec![],
    };
    let (before, case) = match attack.by {
        By::Honest(words) => (guest("hello", OWN, &format!("disk-reads={} {words}", u32::MAX)), true),
        By::Guest(words) => (guest("hostile", words, &format!("case={}", attack.case())), true),
        By::Kernel(_) => (vec![], false),
    };
    let wait = || vec!["wait neighbour".to_string()];
    let mut script = [
        before,
        vec![neighbour(&format!("1 store-reads={STORE_READS} store-pause={PAUSE_NS}"))],
        bomb(MADE[0]),
        wait(),
        // This guest has the least weight: it takes only time that nobody else wants.
        vec!["xl create /boot/hello.cfg name='awake' cpu_weight=1 extra='awake'".into()],
        vec![disk_reads],
        bomb(MADE[1]),
        wait(),
        vec!["xl destroy awake".into()],
    ]
    .concat();
    if case {
        script.push("xl destroy attacker".into());
    }
    let mut machine = Machine { script: Some(script), one_host_cpu: true, ..counting_machine() };
    // The attacker has the first disk, the neighbour the second.
    machine.qemu_arguments.extend(["theirs", "neighbours"].iter().flat_map(|name| disk(name)));
    machine
}

impl Attack {
    /// The attack's name as a case of `hostile`.
    fn case(&self) -> &'static str {
        match self.name {
            "shared-disk" => "ring-of-reads",
            "reboot-of-256-mib" => "reboot-at-once",
            other => other,
        }
    }

    /// Whether the console shows that the attack went on for as long as the neighbour measured.
    fn took_place(&self, console: &str) -> bool {
        match self.by {
            By::Honest(_) => true,
            By::Guest(_) => {
                let begun = format!("hostile: {} from now on", self.case());
                console.contains(&begun) && !console.contains("hostile: FAIL")
            }
            By::Kernel(_) => {
                let refused = |text: &str| text.contains(REFUSED);
                let (store, rest) = console.split_once("reads of the store").unwrap_or_default();
                let (disk, rest) = rest.rsplit_once(&reads_of_the_disk()).unwrap_or_default();
                refused(store) && refused(disk) && refused(rest)
            }
        }
    }
}

/// What the neighbour says behind each round of its disk.
fn reads_of_the_disk() -> String {
    format!("{DISK_READS} reads of the disk")
}

/// The figures in the neighbour's words.
fn figures(console: &str) -> Option<Figures> {
    let numbers = |what: &str| -> Vec<Vec<u64>> {
        let said = console.lines().filter_map(|line| line.split_once("neighbour) hello: "));
        said.filter(|(_, said)| said.contains(what))
            .map(|(_, said)| said.split(' ').filter_map(|word| word.trim().parse().ok()).collect())
            .collect()
    };
    let [_, mean_us, worst_us] = numbers("reads of the store").first()?[..] else { return None };
    let mut disk: Vec<u64> =
        numbers(&reads_of_the_disk()).iter().filter_map(|line| line.get(2).copied()).collect();
    disk.sort_unstable();
    (disk.len() == DISK_ROUNDS).then(|| Figures { mean_us, worst_us, disk: disk[DISK_ROUNDS / 2] })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "(d1 attacker) hello: 9 reads of the store: 9 us each, 9 us at worst\n\
        (d2 neighbour) hello: 1000 reads of the store: 50 us each, 700 us at worst\r\n\
        (d2 neighbour) hello: 1 reads of the disk, 16 at a time: 9 a second\r\n\
        (d3 neighbour) hello: 10000 reads of the disk, 16 at a time: 4000 a second\r\n\
        (d3 neighbour) hello: 10000 reads of the disk, 16 at a time: 9000 a second\r\n\
        (d3 neighbour) hello: 10000 reads of the disk, 16 at a time: 3000 a second\r\n";

    #[test]
    fn the_neighbours_figures_count() {
        assert_eq!(figures(CONSOLE), Some(Figures { mean_us: 50, worst_us: 700, disk: 4000 }));
        assert_eq!(figures(&CONSOLE.replace("neighbour", "attacker")), None);
        assert_eq!(figures(&CONSOLE.replace("3000", "none")), None);
    }

    #[test]
    fn an_attack_must_take_place_all_the_while() {
        let attack = |name| ATTACKS.iter().find(|attack| attack.name == name).expect("there");
        let guest = attack("shared-disk");
        assert!(guest.took_place("(d1 attacker) hostile: ring-of-reads from now on\r\n"));
        assert!(!guest.took_place("hostile: ring-of-reads from now on\nhostile: FAIL ring-of-reads: ended"));
        let kernel = attack("zstd");
        let refused = format!("{REFUSED}no Xen notes\n");
        let store = "hello: 1000 reads of the store\n";
        let disk = format!("hello: {DISK_READS} reads of the disk\n");
        assert!(kernel.took_place(&[&*refused, store, &refused, &disk, &refused].concat()));
        assert!(!kernel.took_place(&[&*refused, store, &refused, &disk].concat()));
        assert!(!kernel.took_place(&[&*refused, store, &disk, &refused].concat()));
        assert!(!kernel.took_place(&[store, &refused, &disk, &refused].concat()));
    }

    #[test]
    fn each_bound_counts() {
        let honest = Figures { mean_us: 9, worst_us: 9, disk: 1000 };
        let least = Figures { mean_us: MEAN_US - 1, worst_us: WORST_US - 1, disk: 400 };
        assert!(least.keeps_bounds(&honest));
        assert!(!Figures { mean_us: MEAN_US, ..least }.keeps_bounds(&honest));
        assert!(!Figures { worst_us: WORST_US, ..least }.keeps_bounds(&honest));
        assert!(!Figures { disk: 399, ..least }.keeps_bounds(&honest));
    }

    #[test]
    fn names_are_words_of_their_own() {
        let mut all: Vec<&str> = names().collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(names().next(), Some(BUSY));
    }
}
