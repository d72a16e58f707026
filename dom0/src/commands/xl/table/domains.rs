//! Commands for domains.

use super::{Command, MANY, command, flag, with};

const NO_DISPLAY: &str = "domains have no display";
const NO_HVM: &str = "only an HVM domain has such buttons, and all domains here are PV";
const NO_COPY: &str = "no copy of a domain is kept on another machine: `xl migrate` moves one";
const DUMP: &str = "dom0 has no file system to write a dump to; \
                    `cargo xtask run --log` keeps what the domain printed";
const WATCHED: &str = "dom0 looks after every domain's end";
const NO_MASKS: &str = "there is no xl.conf, and so no global mask";

pub(super) const DOMAINS: &[Command] = &[
    command("create", "FILE [KEY=VALUE...]", (0, MANY), "builds a domain and lets it run")
        .options(&[
            flag('c', "", "attaches to its console, until the domain is gone"),
            flag('p', "paused", "leaves it paused"),
            flag(
                'F',
                "",
                "waits until the domain is gone; with -c, behind the key that leaves the console too",
            ),
            with('f', "defconfig", "FILE", "the file to read"),
            flag('n', "dryrun", "checks and shows the configuration, and makes nothing"),
            flag('q', "quiet", "without warnings"),
            flag('d', "", "shows the configuration too"),
            flag('e', "", "does not wait for the domain's end").idle(WATCHED),
            flag('i', "ignore-global-affinity-masks", "ignores masks of xl.conf").idle(NO_MASKS),
            flag('V', "vncviewer", "attaches to its display").warned(NO_DISPLAY),
            flag('A', "vncviewer-autopass", "gives the display's password").warned(NO_DISPLAY),
        ])
        .dry(),
    command("config-update", "DOMAIN FILE [KEY=VALUE...]", (2, MANY), "changes what a restart is made from")
        .options(&[
            with('f', "defconfig", "FILE", "the file to read"),
            flag('d', "", "shows the configuration"),
        ])
        .dry()
        .refused(
            "disks that come and go are kept for a restart; for all else destroy the domain and create it",
        ),
    command("list", "[DOMAIN...]", (0, MANY), "lists domains").options(&[
        flag('l', "long", "as JSON, with their configuration"),
        flag('v', "verbose", "with UUIDs, reasons of shutdown and labels"),
        flag('Z', "context", "with security labels"),
        flag('c', "cpupool", "with CPU pools"),
        flag('n', "numa", "with NUMA nodes"),
    ]),
    command("destroy", "DOMAIN", (1, 1), "ends a domain at once").options(&[
        flag('f', "", "even domain 0").idle("dom0 cannot outlive itself: `poweroff` ends the machine")
    ]),
    command("shutdown", "DOMAIN...|-a", (0, MANY), "asks a domain to shut down").options(&REQUEST),
    command("reboot", "DOMAIN...|-a", (0, MANY), "asks a domain to reboot").options(&REQUEST),
    command("pause", "DOMAIN", (1, 1), "stops a domain's vCPUs"),
    command("unpause", "DOMAIN", (1, 1), "lets them run again"),
    command("console", "DOMAIN", (1, 1), "attaches to a domain's console; ^] leaves it").options(&[
        with('t', "", "TYPE", "the console's type: pv"),
        with('n', "", "NUMBER", "the console's number: 0"),
        flag('\0', "log", "shows what is kept of the console, each line with about its time"),
    ]),
    command("vncviewer", "DOMAIN", (1, 1), "shows a domain's display")
        .options(&[
            flag('\0', "autopass", "gives the display's password"),
            flag('\0', "vncviewer-autopass", "the same"),
        ])
        .refused(NO_DISPLAY),
    command("dump-core", "DOMAIN FILE", (2, 2), "writes a domain's memory to a file").refused(DUMP),
    command(
        "mem-max",
        "DOMAIN SIZE",
        (2, 2),
        "sets the most memory a domain may be given: MiB, or with b, k, m, g, t",
    ),
    command(
        "mem-set",
        "DOMAIN SIZE",
        (2, 2),
        "asks a domain to use that much memory: MiB, or with b, k, m, g, t",
    ),
    command("button-press", "DOMAIN power|sleep", (2, 2), "presses a button").refused(NO_HVM),
    command("vcpu-list", "[DOMAIN...]", (0, MANY), "lists vCPUs"),
    command(
        "vcpu-pin",
        "DOMAIN VCPU|all HARD|-|all [SOFT|-|all]",
        (3, 4),
        "sets on which CPUs (such as 0-3,^2 or node:0) a vCPU may run, and had better run",
    )
    .options(&[
        flag('f', "force", "undoes a pinning of the kernel's").idle("no kernel pins vCPUs here"),
        flag('i', "ignore-global-affinity-masks", "ignores masks of xl.conf").idle(NO_MASKS),
    ])
    .dry(),
    command("vcpu-set", "DOMAIN COUNT", (2, 2), "asks a domain to use its first vCPUs").options(&[flag(
        'i',
        "ignore-host",
        "even more than the machine has CPUs",
    )
    .idle("the machine's count is no limit")]),
    command("vm-list", "", (0, 0), "lists domains but dom0 with their UUIDs"),
    command("domid", "NAME", (1, 1), "shows a domain's number"),
    command("domname", "DOMID", (1, 1), "shows a domain's name"),
    command("rename", "DOMAIN NAME", (2, 2), "gives a domain another name"),
    command("trigger", "DOMAIN nmi|reset|init|power|sleep [VCPU]", (2, 3), "sends a vCPU an NMI"),
    command("sysrq", "DOMAIN KEY", (2, 2), "sends a magic SysRq key to a domain's kernel"),
    command("uptime", "[DOMAIN...]", (0, MANY), "shows how long domains have run").options(&[flag(
        's',
        "",
        "in one line each, with the time of day",
    )]),
    command(
        "dirty-rate",
        "DOMAIN [SECONDS]",
        (1, 2),
        "shows how many pages a domain writes in each second; not Xen's",
    ),
    command("sharing", "[DOMAIN]", (0, 1), "shows how many pages domains share"),
];

const REQUEST: [super::Opt; 3] = [
    flag('a', "all", "asks all domains"),
    flag('w', "wait", "waits until the domain has ended; twice: until it is gone"),
    flag('F', "", "presses the button if the domain has no PV drivers").idle("every domain here is PV"),
];

const SSH: super::Opt = with('s', "", "COMMAND", "instead of ssh");

pub(super) const SAVE: &[Command] = &[
    command("save", "DOMAIN FILE [CONFIG]", (2, 3), "writes a domain's state to a disk, named /dev/...")
        .options(&[
            flag('c', "", "and lets it run on"),
            flag('p', "", "and leaves it paused"),
            flag('D', "", "with its number").warned("a domain gets the next free number"),
        ]),
    command("restore", "[CONFIG] FILE", (1, 2), "makes a domain from what was saved").options(&[
        flag('p', "", "leaves it paused"),
        flag('e', "", "does not wait for the domain's end").idle(WATCHED),
        flag('d', "", "shows the configuration"),
        flag('V', "vncviewer", "attaches to its display").warned(NO_DISPLAY),
        flag('A', "vncviewer-autopass", "gives the display's password").warned(NO_DISPLAY),
    ]),
    command(
        "migrate",
        "DOMAIN ADDRESS[:PORT]",
        (2, 2),
        "moves a running domain to a machine where `xl migrate-receive` waits; not encrypted",
    )
    .options(&[
        with('C', "", "CONFIG", "another configuration"),
        SSH.refused("a machine is reached by TCP"),
        flag('e', "", "does not wait for the domain's end").idle(WATCHED),
        flag('p', "", "leaves it paused").refused("the target says so: `xl migrate-receive -p`"),
        flag('D', "", "with its number").warned("a domain gets the next free number"),
        flag('\0', "debug", "shows very much").idle("rounds are always shown"),
        flag('\0', "live", "of old, without meaning").idle("it always runs until little is left"),
        with('t', "downtime", "MS", "stops it once the rest takes so long; 300"),
        with('r', "rounds", "COUNT", "stops it after so many rounds; 30"),
    ]),
    command("migrate-receive", "", (0, 0), "waits for a domain from another machine")
        .options(&[flag('p', "", "leaves it paused"), with('P', "", "PORT", "at another port than 8002")]),
    command("resume", "DOMAIN", (1, 1), "lets a suspended domain go on, after a migration that is in doubt"),
    command("remus", "DOMAIN [HOST]", (1, 2), "keeps a copy of a domain on another machine")
        .options(&[
            with('i', "", "MS", "how often"),
            flag('u', "", "without compression"),
            SSH,
            flag('e', "", "does not wait for the domain's end"),
            with('N', "", "SCRIPT", "for network buffers"),
            flag('F', "", "allows what is unsafe"),
            flag('b', "", "to nowhere"),
            flag('n', "", "without network buffers"),
            flag('d', "", "without disks"),
            flag('c', "colo", "by COLO"),
            flag('p', "", "by the COLO proxy"),
            with('\0', "coloft-script", "SCRIPT", "for COLO"),
        ])
        .refused(NO_COPY),
];
