//! A Linux guest's days: its clock, its neighbours, its crashes, its memory, and what `xl` asks of it.

use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use tests::linux::{COMPLAINTS, command, machine, machine_with, no_complaints, program};
use tests::{Live, Scratch};

use crate::Case;

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_life:
        clocks_agree_and_never_go_back,
        ten_boots_in_a_row,
        a_crashed_guest_starts_again_five_times,
        each_way_to_end_has_its_action,
        guests_go_down_when_asked,
        memory_goes_and_comes_back_under_load,
        vcpus_go_and_come_back,
        user_code_gets_its_traps,
        two_guests_share_a_cpu_for_ten_minutes,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first, and take minutes.
        case.soak = true;
    }
    cases
}

/// ns since 1970, here.
fn now() -> Result<i128> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos().cast_signed())
}

/// Waits for the guest called `clock` to say `word` and a number.
fn number(machine: &mut Live, word: &str, seconds: u64) -> Result<i128> {
    machine.expect(&format!(" clock) {word} "), seconds)?;
    let line = machine.expect("\r", seconds)?;
    line.trim().parse().with_context(|| format!("`{line}` is no number"))
}

/// How far the guest's clock is behind the host's, in ns: of many looks the least, since the way here takes time.
fn behind(machine: &mut Live, looks: u32) -> Result<i128> {
    let mut least = i128::MAX;
    for _ in 0..looks {
        let stamp = number(machine, "stamp", 300)?;
        least = least.min(now()? - stamp);
    }
    Ok(least)
}

/// The clock is the host's; and beside two domains that never rest, a minute is a minute, whoever of four vCPUs looks.
///
/// The two rest while the guest boots: until its kernel takes its clock from Xen it counts timer interrupts, and what
/// it misses then it never learns of.
fn clocks_agree_and_never_go_back() -> Result<()> {
    const LOOKS: u32 = 60;
    let scratch = Scratch::new("linux-clock")?;
    let clock = program(&scratch, "clock")?;
    let mut machine = machine_with("linux-clock", &scratch, &[("clock", &clock)])?.seconds(600).start()?;
    machine.expect("dom0# ", 60)?;
    for name in ["busy1", "busy2"] {
        let create = format!(
            "xl create /boot/debian-ramdisk.cfg name='{name}' memory=160 extra='quiet run=\"echo hot; while :; do :; done\"'"
        );
        command(&mut machine, &create, 60)?;
        machine.expect("run: echo hot", 120)?;
        command(&mut machine, &format!("xl pause {name}"), 20)?;
    }
    let run = format!(
        "run=\"/clock stamp {LOOKS}; /clock sleep 10; /clock user 1; /clock watch 60; echo watched $?; /clock stamp {LOOKS}\""
    );
    let create = format!("xl create /boot/debian-ramdisk.cfg name='clock' vcpus=4 extra='quiet {run}'");
    command(&mut machine, &create, 60)?;
    let before = behind(&mut machine, LOOKS)?;
    for name in ["busy1", "busy2"] {
        machine.type_line(&format!("xl unpause {name}"))?;
    }
    let mut shortest = i128::MAX;
    for _ in 0..10 {
        let slept = number(&mut machine, "slept", 200)?;
        ensure!(slept >= 1_000_000_000, "slept {slept} ns only");
        shortest = shortest.min(slept);
    }
    machine.expect("clock: read in user mode", 20)?;
    machine.expect("clock: 4 CPUs", 200)?;
    machine.expect("watched 0", 20)?;
    let after = behind(&mut machine, LOOKS)?;
    let drift = after - before;
    println!("behind by {before} ns, drift in a minute {drift} ns, shortest sleep {shortest} ns");
    // What it missed while it booted is a matter of how busy this machine is.
    ensure!(before.abs() < 20_000_000_000, "the guest's clock is {before} ns behind");
    ensure!(drift.abs() < 50_000_000, "the guest's clock drifted by {drift} ns");
    ensure!(shortest < 1_100_000_000, "no sleep of a second was shorter than {shortest} ns");
    for name in ["busy1", "busy2"] {
        command(&mut machine, &format!("xl destroy {name}"), 20)?;
    }
    command(&mut machine, "wait clock", 60)?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    // The others may well wonder where a minute went.
    let mut lines = run.console().lines().filter(|line| line.contains(" clock) "));
    let complaint = lines.find(|line| COMPLAINTS.iter().any(|words| line.contains(words)));
    run.require(complaint.is_none(), &format!("the kernel said {complaint:?}"))
}

fn ten_boots_in_a_row() -> Result<()> {
    let run = machine("linux-ten-boots")?
        .seconds(900)
        .line("repeat 10 xl create -c /boot/debian-ramdisk.cfg vcpus=2 extra=quiet")
        .run()?
        .succeeded()?;
    let boots = run.console().matches("userspace reached: Linux ").count();
    run.require(boots == 10, &format!("{boots} boots, not ten"))?;
    no_complaints(&run)
}

/// The disk counts the lives.
fn a_crashed_guest_starts_again_five_times() -> Result<()> {
    let scratch = Scratch::new("linux-crash")?;
    let disk = scratch.file("d.img", &[b'0'; MIB])?;
    let command = "lives=$(head -c 1 /dev/xvda); echo life $lives; \
                   echo $((lives + 1)) | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null; \
                   [ $lives = 5 ] || echo c > /proc/sysrq-trigger";
    let run = machine("linux-crash")?
        .seconds(600)
        .disk(&disk)
        .line("xl info")
        .line(&format!(
            "xl create -c /boot/debian-ramdisk.cfg on_crash='restart' disk=['phy:/dev/vda,xvda,w'] \
             extra='quiet run=\"{command}\"'"
        ))
        .line("xl info")
        .run()?
        .succeeded()?;
    for life in 0..=5 {
        run.require(run.console().contains(&format!("life {life}")), &format!("there was no life {life}"))?;
    }
    run.require(run.console().matches(" crashed").count() == 5, "there were not five crashes")?;
    let free = crate::domains::values(run.console(), "free_frames");
    run.require(free.len() == 2 && free[0] == free[1], &format!("frames are lost: {free:?}"))
}

/// The names of the domains, dom0 apart.
fn domains(machine: &mut Live) -> Result<Vec<String>> {
    let list = command(machine, "xl list", 20)?;
    let row = |line: &str| match *line.split_whitespace().collect::<Vec<_>>() {
        [name, id, _, _, _, _] if id.parse().is_ok_and(|id: u32| id != 0) => Some(name.to_string()),
        _ => None,
    };
    Ok(list.lines().filter_map(row).collect())
}

/// `on_crash`, `on_poweroff` and `on_reboot` with each action.
fn each_way_to_end_has_its_action() -> Result<()> {
    let mut machine = machine("linux-actions")?.seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    let ways = [
        ("on_crash", "echo c > /proc/sysrq-trigger", " crashed"),
        ("on_poweroff", "poweroff -f", "reboot: System halted"),
        ("on_reboot", "reboot -f", "reboot: Restarting system"),
    ];
    for (key, how, said) in ways {
        for action in ["destroy", "preserve", "rename-restart"] {
            let create = format!(
                "xl create /boot/debian-ramdisk.cfg name='g' {key}='{action}' extra='quiet run=\"sleep 1; {how}\"'"
            );
            command(&mut machine, &create, 60)?;
            machine.expect(said, 120)?;
            if action == "rename-restart" {
                // Its successor is on its way to the same end.
                machine.expect("userspace reached", 120)?;
            }
            command(&mut machine, "sleep 0.5", 20)?;
            let names = domains(&mut machine)?;
            let expected: &[&str] = match action {
                "destroy" => &[],
                "preserve" => &["g"],
                _ => &["g-1", "g"],
            };
            ensure!(names == expected, "{key}={action}: {names:?}");
            for name in names.iter().rev() {
                command(&mut machine, &format!("xl destroy {name}"), 20)?;
            }
            ensure!(domains(&mut machine)?.is_empty(), "{key}={action}: a domain is left");
        }
    }
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// `xl shutdown`, `xl reboot`, `xl sysrq`, `xl trigger`.
fn guests_go_down_when_asked() -> Result<()> {
    let mut machine = machine("linux-asked")?.seconds(600).start()?;
    machine.expect("dom0# ", 60)?;
    let create = "xl create /boot/debian-ramdisk.cfg name='g' extra='run=\"echo up; sleep 1000\"'";
    command(&mut machine, create, 60)?;
    machine.expect(") up", 120)?;
    command(&mut machine, "xl sysrq g h", 20)?;
    machine.expect("sysrq: HELP", 20)?;
    command(&mut machine, "xl trigger g nmi", 20)?;
    machine.expect("NMI received for unknown reason", 20)?;
    let said = command(&mut machine, "xl trigger g power", 20)?;
    ensure!(said.contains("error: g"), "a PV domain has no power button: {said}");
    command(&mut machine, "xl rename g h", 20)?;
    let said = command(&mut machine, "xl reboot -w h", 60)?;
    ensure!(said.contains("Rebooting domain 1") && said.contains("reason code 1"), "{said}");
    machine.expect(") up", 120)?;
    ensure!(domains(&mut machine)? == ["h"], "the name did not stay");
    let said = command(&mut machine, "xl shutdown -w h", 60)?;
    ensure!(said.contains("Shutting down domain 2") && said.contains("reason code 0"), "{said}");
    ensure!(domains(&mut machine)?.is_empty(), "a domain is left");
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// The guest says its memory every second: waits until that is between two figures of MiB; gives it.
fn settles(machine: &mut Live, from: u64, to: u64) -> Result<u64> {
    let mut total = 0;
    for _ in 0..100 {
        machine.expect(") MemTotal:", 60)?;
        let text = machine.expect(" kB", 10)?;
        let kib: u64 = text.trim_end_matches("kB").trim().parse().with_context(|| text.clone())?;
        total = kib >> 10;
        if (from..=to).contains(&total) {
            return Ok(total);
        }
    }
    anyhow::bail!("the guest has {total} MiB, not {from} to {to}")
}

/// A guest of 512 MiB gives all but 128 away while its processes run, another is made from what it gave, and it gets
/// everything back. It started below its maximum.
fn memory_goes_and_comes_back_under_load() -> Result<()> {
    let mut machine = machine("linux-balloon")?.seconds(900).start()?;
    machine.expect("dom0# ", 60)?;
    let load = "while :; do dd if=/dev/urandom of=/tmp/a bs=64k count=256; sha256sum /tmp/a; sh -c true; done \
                >/dev/null 2>&1 & while :; do grep MemTotal /proc/meminfo; sleep 1; done";
    let create = format!(
        "xl create /boot/debian-ramdisk.cfg name='g' memory=384 maxmem=512 extra='quiet run=\"{load}\"'"
    );
    command(&mut machine, &create, 60)?;
    let start = settles(&mut machine, 256, 384)?;
    for (size, change) in [(512, 128), (128, -256), (512, 128)] {
        command(&mut machine, &format!("xl mem-set g {size}"), 20)?;
        let total = start.strict_add_signed(change);
        settles(&mut machine, total - 1, total + 1)?;
        if size == 128 {
            // With all of the first one's memory there were not so much.
            let create = "xl create /boot/debian-ramdisk.cfg memory=700 extra='quiet run=\"echo fits\"'";
            command(&mut machine, create, 60)?;
            machine.expect("run: echo fits", 200)?;
            command(&mut machine, "wait debian-ramdisk", 60)?;
        }
    }
    let said = command(&mut machine, "xl mem-set g 513", 20)?;
    ensure!(said.contains("error: g"), "more than its maximum: {said}");
    let said = command(&mut machine, "xl mem-max g 256", 20)?;
    ensure!(said.contains("error: g"), "a maximum below what it has: {said}");
    command(&mut machine, "xl destroy g", 20)?;
    machine.type_line("poweroff")?;
    no_complaints(&machine.finish().succeeded()?)
}

/// `xl vcpu-set`, while processes run on all of them.
fn vcpus_go_and_come_back() -> Result<()> {
    let mut machine = machine("linux-vcpus")?.seconds(600).start()?;
    machine.expect("dom0# ", 60)?;
    // A system with udev has a rule for the CPUs that come.
    let load = "for n in 1 2 3 4; do while :; do sh -c true; done & done; while :; do \
                for f in /sys/devices/system/cpu/cpu*/online; do [ $(cat $f) = 1 ] || echo 1 > $f; done; \
                echo has $(nproc); sleep 1; done";
    let create = format!(
        "xl create /boot/debian-ramdisk.cfg name='g' vcpus=2 maxvcpus=4 extra='quiet run=\"{load}\"'"
    );
    command(&mut machine, &create, 60)?;
    machine.expect("has 2", 120)?;
    for count in [4, 1, 3, 2, 4] {
        command(&mut machine, &format!("xl vcpu-set g {count}"), 20)?;
        machine.expect(&format!("has {count}"), 120)?;
    }
    let said = command(&mut machine, "xl vcpu-set g 5", 20)?;
    ensure!(said.contains("error: g"), "it has four: {said}");
    command(&mut machine, "xl destroy g", 20)?;
    machine.type_line("poweroff")?;
    no_complaints(&machine.finish().succeeded()?)
}

/// The same as on the bare machine: `int1` is a trap, as processors have it.
fn user_code_gets_its_traps() -> Result<()> {
    let scratch = Scratch::new("linux-traps")?;
    let traps = program(&scratch, "traps")?;
    let run = machine_with("linux-traps", &scratch, &[("traps", &traps)])?
        .line("xl create -c /boot/debian-ramdisk.cfg extra='quiet run=/traps'")
        .run()?
        .succeeded()?
        .says("traps: int3 1, int1 1, steps 6")?;
    no_complaints(&run)
}

/// Processes, memory, files, pipes and time on four vCPUs in each of two guests, on one CPU: no kernel misses the CPU
/// for so long that it says so.
fn two_guests_share_a_cpu_for_ten_minutes() -> Result<()> {
    const SECONDS: u32 = 600;
    let scratch = Scratch::new("linux-two")?;
    let load = format!(
        "#!/bin/sh\n\
         end=$(($(cut -d. -f1 /proc/uptime) + {SECONDS}))\n\
         runs() {{ [ $(cut -d. -f1 /proc/uptime) -lt $end ]; }}\n\
         for n in 1 2; do\n\
             while runs; do for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'exit 0'; done; done &\n\
             while runs; do dd if=/dev/urandom of=/tmp/$n bs=64k count=64; sha256sum /tmp/$n; rm /tmp/$n; done &\n\
             while runs; do dd if=/dev/zero bs=4k count=2000 | gzip -1 | zcat | md5sum; done &\n\
             while runs; do sleep 0.01; done &\n\
         done >/dev/null 2>&1\n\
         for n in 1 2; do\n\
             while runs; do find /proc /sys -maxdepth 3 | sort | wc -l; done &\n\
         done >/dev/null 2>&1\n\
         wait\n\
         dmesg | grep -E 'soft lockup|detected stall|BUG|WARNING|blocked for more|Call Trace'\n\
         echo loaded for $(cut -d. -f1 /proc/uptime) s\n"
    );
    let machine = machine_with("linux-two", &scratch, &[("load.sh", load.as_bytes())])?;
    let create = |name: &str| {
        format!("xl create /boot/debian-ramdisk.cfg name='{name}' vcpus=4 extra='quiet run=/load.sh'")
    };
    let run = machine
        .seconds(u64::from(SECONDS) + 400)
        .line(&create("one"))
        .line(&create("two"))
        .line("wait --all")
        .line("xl vcpu-list")
        .run()?
        .succeeded()?;
    let loaded = run.console().matches("loaded for ").count();
    run.require(loaded == 2, "a guest did not end its work")?;
    no_complaints(&run)
}
