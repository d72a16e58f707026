//! Guests that ask for what they must not have: each gets the documented refusal or the documented end, and a
//! neighbour reads its disk as if nobody else were there.

use anyhow::Result;
use tests::scratch::sha256;
use tests::{Machine, Scratch};
use xtask::bench::{neighbour, stretch};
use xtask::deps::{self, Need};

use crate::Case;
use crate::domains::{FIGURES, values};

const MIB: usize = 1 << 20;
/// What ends a domain; the names are those of `guests/hostile`.
pub(crate) const DEADLY: &[&str] = &[
    "null-handler",
    "hypervisor-handler",
    "hypervisor-stack",
    "noncanonical-stack",
    "unmapped-stack",
    "table-as-stack",
    "iret-bad-frame",
    "iret-hypervisor-frame",
    "iret-no-user-tables",
    "null-event-callback",
    "trap-loop",
    "crash",
];

/// Instructions of another CPU that show that a call waited for the other's work.
const WAITED: u64 = 20_000;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![hostile:
        everything_refused_and_the_neighbour_undisturbed,
        what_must_die_dies_alone,
        what_always_ends_is_held_back,
        newlines_without_end_do_not_hold_a_neighbour_up,
        two_attacks_do_not_hold_a_neighbour_up,
        two_vcpus_keep_interrupts_off_no_longer_than_is_stated,
        a_ruined_console_does_not_keep_who_types,
        a_flood_of_events_cuts_off_no_driver_domain,
        twenty_hostile_guests_leave_nothing_behind,
        free_memory_without_two_frames_in_a_row_ends_in_refusals,
        two_thousand_vcpus_that_wake_at_once_take_no_memory_that_is_not_there,
        registers_are_what_they_were,
    ]);
    let soak = crate::cases![hostile:
        no_attack_holds_a_neighbour_up,
        a_thousand_hostile_guests_leave_nothing_behind,
        registers_are_what_they_were_for_long,
    ];
    cases.extend(soak.map(|case| Case { soak: true, ..case }));
    cases
}

/// Hypercalls, tables, descriptors, traps, events, grants, memory, rings and the store, while a neighbour reads,
/// writes and verifies its disk.
fn everything_refused_and_the_neighbour_undisturbed() -> Result<()> {
    let scratch = Scratch::new("hostile")?;
    let prey = scratch.disk("prey", 8 * MIB, 1)?;
    let disk = scratch.disk("neighbour", 64 * MIB, 2)?;
    let before = sha256(&disk)?;
    Machine::new("hostile")
        .disk(&prey)
        .disk(&disk)
        .line("xl create /boot/hello.cfg name='neighbour' disk=['phy:/dev/vdb,xvda,w']")
        .line("xl create -c /boot/hostile.cfg disk=['phy:/dev/vda,xvda,w']")
        .line("wait neighbour")
        .line("xl create -c /boot/hello.cfg disk=['phy:/dev/vda,xvda,w']")
        .run()?
        .succeeded()?
        .says("hostile: PASS")?
        .says(&format!("(d1 neighbour) hello: sha256 {before}"))?
        .says("(d1 neighbour) hello: goodbye")?;
    anyhow::ensure!(sha256(&disk)? == before, "the neighbour's disk has changed");
    Ok(())
}

/// Each deadly case ends its own domain as crashed; the machine goes on, and what they had comes back.
fn what_must_die_dies_alone() -> Result<()> {
    let mut machine = Machine::new("deadly").start()?;
    machine.expect("dom0# ", 60)?;
    for case in DEADLY {
        machine.type_line(&format!("xl create -c /boot/hostile.cfg extra='case={case}'"))?;
        machine.expect(&format!("hostile: {case} must die"), 60)?;
        let rest = machine.expect("hostile crashed", 60)?;
        anyhow::ensure!(!rest.contains("FAIL"), "{case}: survived: {rest}");
        machine.expect("dom0# ", 20)?;
    }
    // The same from the side of who waits for all.
    machine.type_line("xl create /boot/hostile.cfg extra='case=crash'")?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("wait --all")?;
    machine.expect("hostile crashed", 60)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create -c /boot/hello.cfg")?;
    machine.expect("hello: goodbye", 60)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// A guest leaves no two free frames in a row to a hypervisor whose heap grows by such, and makes it allocate: refusals, for
/// that guest alone.
fn free_memory_without_two_frames_in_a_row_ends_in_refusals() -> Result<()> {
    Machine::new("scatter")
        .with(|machine| machine.memory_mib = 192)
        .line("xl create -c /boot/hostile.cfg memory=112 extra='case=scatter'")
        .line("xl create -c /boot/hello.cfg")
        .run()?
        .succeeded()?
        .says("hostile: scatter ok")?
        .says("hello: goodbye")?;
    Ok(())
}

/// Guests of 128 vCPUs each, which sleep. Another guest leaves the hypervisor's heap no frames in a row. Then all vCPUs wake
/// at once, and that guest makes the hypervisor read the longest lists.
fn two_thousand_vcpus_that_wake_at_once_take_no_memory_that_is_not_there() -> Result<()> {
    /// So many that the list of those that wait for the CPU doubles behind 2,048.
    const HERDS: u32 = 17;
    let herds: Vec<String> = (1..=HERDS).map(|n| format!("herd{n}")).collect();
    // Each CPU has room for all vCPUs.
    let mut machine =
        Machine::new("herds").with(|machine| machine.memory_mib = 256 + machine.cpus).start()?;
    machine.expect("dom0# ", 60)?;
    for name in &herds {
        machine.type_line(&format!(
            "xl create /boot/hostile.cfg name='{name}' memory=8 vcpus=128 extra='case=herd'"
        ))?;
        machine.expect(&format!("{name}) herd: 127 vCPUs sleep"), 60)?;
    }
    let words = "name='scattered' memory=48 extra='case=scattered-lists'";
    machine.type_line(&format!("xl create /boot/hostile.cfg {words}"))?;
    machine.expect("scattered-lists: no free frames in a row", 60)?;
    machine.type_line("xl shutdown -a")?;
    for _ in &herds {
        machine.expect("herd: 127 vCPUs have woken", 60)?;
    }
    machine.type_line("xl shutdown scattered")?;
    machine.expect("scattered-lists: done", 60)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// A domain that ends as soon as it starts is started again ever later, and an administrator need not wait for that.
fn what_always_ends_is_held_back() -> Result<()> {
    let mut machine = Machine::new("restarts").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create /boot/hostile.cfg extra='case=crash' on_crash='restart'")?;
    for seconds in ["1.", "3."] {
        machine.expect(&format!("since the last restart): it waits for {seconds}"), 60)?;
    }
    machine.type_line("xl destroy hostile")?;
    machine.expect("dom0# ", 20)?;
    machine.type_line("xl create -c /boot/hello.cfg")?;
    machine.expect("hello: goodbye", 60)?;
    machine.expect("dom0# ", 20)?; // before, what is typed goes to the guest
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// A guest changes more nodes below its frontend's state than its driver domain can be told of.
fn a_flood_of_events_cuts_off_no_driver_domain() -> Result<()> {
    let run = Machine::new("flooded-driver")
        .line("xl create /boot/hostile.cfg name='server' extra='case=watched'")
        .line("xl create /boot/hostile.cfg name='front' extra='case=floods' disk=['phy:/d,xvda,w,backend=server']")
        .line("sleep 5")
        .line("xl destroy front")
        .line("xl destroy server")
        .run()?
        .succeeded()?
        .says("hostile: 4 floods")?
        .says("hostile: 64 events")?;
    let is_cut_off = |line: &&str| line.contains("disconnected") || line.contains("the watch is broken");
    let cut_off = run.console().lines().find(is_cut_off);
    run.require(cut_off.is_none(), cut_off.unwrap_or_default())
}

/// A guest ruins the ring of what is typed and sends no event: one key ends the attachment, and the shell is there again.
fn a_ruined_console_does_not_keep_who_types() -> Result<()> {
    let mut machine = Machine::new("ruined-console").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create /boot/hostile.cfg extra='case=ruined-input'")?;
    machine.expect("ruining its input", 60)?;
    machine.type_line("xl console hostile")?;
    machine.expect("ruining its input", 20)?;
    machine.type_text("x")?;
    machine.expect("hostile: the domain has ruined its console's ring", 20)?;
    machine.type_line("xl destroy hostile")?;
    machine.type_line("xl list hostile")?;
    machine.expect("hostile: no such domain", 20)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// Two vCPUs make long calls at the same time, each of thirteen kinds beside each, on two CPUs: what an interrupt waits for is counted, and is
/// within the bound of docs/ARCHITECTURE.md; and so it is while dom0 ends such a guest. Some calls did wait for the other CPU, or the bound would be shown of one CPU alone; how many depends on the host.
fn two_vcpus_keep_interrupts_off_no_longer_than_is_stated() -> Result<()> {
    deps::ensure(&[Need::CCompiler])?;
    let pairs = stretch::of_pairs()?;
    anyhow::ensure!(pairs.len() == 13 * 13 + 1, "{} cases ran", pairs.len());
    for (name, stretch) in &pairs {
        let (length, waited, limit) = (stretch.length, stretch.waited, stretch::PAIR_LIMIT);
        anyhow::ensure!(
            length <= limit,
            "{name}: {length} instructions, {waited} of another CPU: over {limit}"
        );
    }
    let waited = pairs.iter().filter(|(_, stretch)| stretch.waited > WAITED).count();
    anyhow::ensure!(waited >= 10, "of {waited} pairs alone the longest wait was over {WAITED} instructions");
    Ok(())
}

/// A guest fills its console's ring with newlines: what is printed of them is bounded, the neighbour's reads of the store
/// take as long as the requirement allows, and a line of the neighbour's own comes through.
fn newlines_without_end_do_not_hold_a_neighbour_up() -> Result<()> {
    const MEAN_US: u64 = 5_000;
    const WORST_US: u64 = 20_000;
    let run = Machine::new("newlines")
        // Time is what was executed, so that the host's own load does not count.
        .with(|machine| machine.qemu_arguments.extend(["-icount".into(), "shift=0,sleep=off".into()]))
        .line("xl create /boot/hostile.cfg name='flood' extra='case=newlines'")
        .line("sleep 2")
        .line("xl create /boot/hello.cfg extra='store-reads=1000'")
        .line("wait hello")
        .line("xl destroy flood")
        .line("xl list")
        .run()?
        .succeeded()?
        .says("(d1 flood) hostile: newlines from now on")?
        .says("(d2 hello) hello: goodbye")?;
    let line = run.console().lines().find(|line| line.contains("reads of the store")).unwrap_or_default();
    let figures: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [_, mean, worst] = figures[..] else { anyhow::bail!("no figures: {line}") };
    run.require(mean < MEAN_US && worst < WORST_US, line)
}

/// A domain whose restarts cost the most, and the store's dearest requests in what dom0 spends for them. The disk's bound is
/// for the whole table.
fn two_attacks_do_not_hold_a_neighbour_up() -> Result<()> {
    for attack in ["reboot-of-256-mib", "subtrees"] {
        let figures = neighbour::measure(attack)?;
        anyhow::ensure!(figures.keeps_store_bounds(), "beside {attack}: {figures:?}");
    }
    Ok(())
}

/// The table of `cargo xtask bench neighbour`.
fn no_attack_holds_a_neighbour_up() -> Result<()> {
    let busy = neighbour::measure("honest-busy")?;
    let mut missed = Vec::new();
    for attack in neighbour::names().filter(|name| !name.starts_with("honest")) {
        let figures = neighbour::measure(attack)?;
        if !figures.keeps_bounds(&busy) {
            missed.push(format!("beside {attack}: {figures:?}"));
        }
    }
    anyhow::ensure!(missed.is_empty(), "beside an honest guest: {busy:?}\n{}", missed.join("\n"));
    Ok(())
}

/// Creates so many hostile guests one after the other, each destroyed in the midst of its attack, after one of each attack
/// that warms up what stays for good, and compares the figures.
///
/// dom0 is over with a guest that flooded its console when the rest of its lines is printed. A guest that comes before
/// needs an account beside the former's, and dom0 keeps a record for as many accounts as there ever were at once: with
/// guests that overlap as the host has time for it, the figures would depend on that.
fn hostile_guests_leave_nothing_behind(name: &str, times: usize, seconds: u64) -> Result<()> {
    let scratch = Scratch::new(name)?;
    let disk = scratch.disk("d.img", MIB, 4)?;
    let attacks: Vec<&str> = neighbour::cases().collect();
    let guests = |mut machine: Machine, times: usize| {
        for attack in attacks.iter().cycle().take(times) {
            let words = format!("name='attacker' extra='case={attack}' disk=['phy:/dev/vda,xvda,w']");
            machine = machine
                .line(&format!("xl create /boot/hostile.cfg {words}"))
                .line("sleep 0.2")
                .line("try xl destroy attacker")
                .line("wait --all");
            if matches!(*attack, "newlines" | "lines" | "bytes") {
                machine = machine.line("sleep 3");
            }
        }
        machine.line("sleep 1").line("xl info")
    };
    let machine = guests(Machine::new(name).seconds(seconds).disk(&disk), attacks.len());
    let run = guests(machine, times).run()?.succeeded()?;
    for figure in FIGURES {
        let values = values(run.console(), figure);
        run.require(values.len() == 2, &format!("xl info shows {figure} {} times", values.len()))?;
        run.require(values[0] == values[1], &format!("{figure} went from {} to {}", values[0], values[1]))?;
    }
    Ok(())
}

fn twenty_hostile_guests_leave_nothing_behind() -> Result<()> {
    hostile_guests_leave_nothing_behind("twenty-hostile", 20, 300)
}

fn a_thousand_hostile_guests_leave_nothing_behind() -> Result<()> {
    hostile_guests_leave_nothing_behind("thousand-hostile", 1000, 3600)
}

/// All registers, flags and bases of segments on all ways into the hypervisor and back, returns that the processor refuses among them,
/// while descriptors change under them and NMIs come.
fn keepers(seconds: u64) -> Result<()> {
    let everything = format!("xpti=yes {}", crate::edges::EVERYTHING);
    for (name, model, cpus, words) in [
        ("keepers", "Haswell", 2, ""),
        ("keepers-own-tables", "qemu64", 2, &*everything),
        // With SMAP.
        ("keepers-smap", "Skylake-Client", 1, &*everything),
    ] {
        let mut machine = Machine::new(name)
            .with(|machine| {
                (machine.cpu_model, machine.cpus) = (model.into(), cpus);
                machine.hypervisor_arguments = words.into();
            })
            .seconds(120 + 4 * seconds)
            .start()?;
        machine.expect("dom0# ", 60)?;
        let line = format!("xl create /boot/hostile.cfg vcpus=5 extra='case=keepers seconds={seconds}'");
        machine.type_line(&line)?;
        machine.expect("dom0# ", 60)?;
        for vcpu in 1..5 {
            machine.type_line(&format!("xl trigger hostile nmi {vcpu}"))?;
            machine.expect("dom0# ", 60)?;
        }
        machine.expect("keepers: PASS", 60 + 3 * seconds)?;
        machine.type_line("poweroff")?;
        machine.finish().succeeded()?;
    }
    Ok(())
}

fn registers_are_what_they_were() -> Result<()> {
    keepers(4)
}

fn registers_are_what_they_were_for_long() -> Result<()> {
    keepers(120)
}
