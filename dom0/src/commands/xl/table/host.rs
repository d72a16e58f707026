//! Commands for the machine.

use super::{Command, MANY, Opt, command, flag, with};

const CREDIT2: &str = "the scheduler is credit2: `xl sched-credit2`";
const NO_FLASK: &str = "there is no FLASK in the hypervisor";
const NO_PSR: &str = "the hypervisor measures and divides neither caches nor bandwidth";

pub(super) const MACHINE: &[Command] = &[
    command("info", "", (0, 0), "describes the machine and what is in use").options(&[flag(
        'n',
        "numa",
        "with the places of CPUs and memory",
    )]),
    command("top", "", (0, 0), "shows what domains use, until ^C").options(&[
        with('d', "delay", "SECONDS", "the time between two rounds"),
        with('i', "iterations", "ROUNDS", "how many rounds"),
    ]),
    command("dmesg", "", (0, 0), "shows the hypervisor's messages").options(&[flag(
        'c',
        "clear",
        "and forgets them",
    )]),
    command("debug-keys", "KEYS", (1, 1), "presses the hypervisor's debug keys"),
    command("set-parameters", "PARAMETERS", (1, MANY), "changes parameters of the hypervisor")
        .refused("the hypervisor's parameters are set at boot: `cargo xtask run --append`"),
    command("claims", "", (0, 0), "lists domains with the memory that is set aside for them"),
    command("help", "[COMMAND]", (0, 1), "shows the commands, or one and its options").options(&[flag(
        '\0',
        "long",
        "with the commands that are refused",
    )]),
    command("devd", "", (0, 0), "serves devices from a driver domain")
        .options(&[
            flag('F', "", "in the foreground"),
            with('p', "pidfile", "FILE", "for the process's number"),
        ])
        .refused("dom0 itself serves disks; a driver domain brings its own backend"),
    command("qemu-monitor-command", "DOMAIN COMMAND", (2, MANY), "asks a domain's device model")
        .refused("PV domains have no device model"),
];

const WEIGHT: Opt = with('w', "weight", "WEIGHT", "its weight, 1 to 65535; 256 is usual");
const CAP: Opt = with(
    'c',
    "cap",
    "CAP",
    "the most it may use, in percent of a CPU, at most 100 for each vCPU; 0: no bound",
);
const DOMAIN: Opt = with('d', "domain", "DOMAIN", "the domain");
const POOL: Opt = with('p', "cpupool", "POOL", "the CPU pool");
const SCHEDULE: Opt = flag('s', "schedparam", "the scheduler's own parameters");
const RATE: Opt = with('r', "ratelimit_us", "US", "how long a vCPU runs at least");

pub(super) const SCHEDULERS: &[Command] = &[
    command("sched-credit", "", (0, 0), "sets a domain's share of the CPUs")
        .options(&[
            DOMAIN,
            WEIGHT,
            CAP,
            SCHEDULE,
            with('t', "tslice_ms", "MS", "how long a vCPU runs at most"),
            RATE,
            with('m', "migration_delay_us", "US", "how long a vCPU's cache is warm"),
            POOL,
        ])
        .refused(CREDIT2),
    command("sched-credit2", "", (0, 0), "shows domains' shares of the CPUs, or sets one's").options(&[
        DOMAIN,
        WEIGHT,
        CAP,
        POOL,
        SCHEDULE.refused("the scheduler has no parameters of its own"),
        RATE.refused("the scheduler has no parameters of its own"),
    ]),
    command("sched-rtds", "", (0, 0), "sets a domain's share of the CPUs")
        .options(&[
            DOMAIN,
            with('v', "vcpuid", "VCPU|all", "the vCPU"),
            with('p', "period", "US", "its period"),
            with('b', "budget", "US", "its time in a period"),
            with('e', "extratime", "0|1", "may it have more"),
            with('c', "cpupool", "POOL", "the CPU pool"),
        ])
        .refused(CREDIT2),
];

pub(super) const POOLS: &[Command] = &[
    command("cpupool-list", "[POOL]", (0, 1), "lists CPU pools").options(&[flag(
        'c',
        "cpus",
        "with their CPUs",
    )]),
    command(
        "cpupool-create",
        "[FILE] [KEY=VALUE...]",
        (0, MANY),
        "makes a CPU pool of name=, sched= (credit2 or null) and cpus= or nodes=",
    )
    .options(&[with('f', "defconfig", "FILE", "the file to read"), flag('n', "dryrun", "makes nothing")])
    .dry(),
    command("cpupool-destroy", "POOL", (1, 1), "takes a CPU pool away"),
    command("cpupool-rename", "POOL NAME", (2, 2), "gives a CPU pool another name"),
    command("cpupool-cpu-add", "POOL CPUS|node:NODES", (2, 2), "adds CPUs to a pool"),
    command("cpupool-cpu-remove", "POOL CPUS|node:NODES", (2, 2), "takes CPUs from a pool"),
    command("cpupool-migrate", "DOMAIN POOL", (2, 2), "moves a domain to another pool"),
    command("cpupool-numa-split", "", (0, 0), "makes a pool for each NUMA node")
        .refused("the machine is one NUMA node"),
    command("cpu-offline", "CPU", (1, 1), "lets a CPU stop, as `xen-hptool cpu-offline` does on Xen"),
    command("cpu-online", "CPU", (1, 1), "lets a CPU that was stopped go on"),
];

const LEVEL: Opt = with('l', "level", "LEVEL", "the cache's level");
const SOCKET: Opt = with('s', "socket", "SOCKET", "the socket");

pub(super) const FLASK_AND_PSR: &[Command] = &[
    command("getenforce", "", (0, 0), "shows whether FLASK enforces its policy").refused(NO_FLASK),
    command("setenforce", "0|1|Enforcing|Permissive", (1, 1), "lets FLASK enforce its policy")
        .refused(NO_FLASK),
    command("loadpolicy", "FILE", (1, 1), "gives FLASK a policy").refused(NO_FLASK),
    command("psr-hwinfo", "", (0, 0), "shows what can be measured and divided")
        .options(&[
            flag('m', "cmt", "monitoring of caches"),
            flag('a', "cat", "division of caches"),
            flag('b', "mba", "division of bandwidth"),
        ])
        .refused(NO_PSR),
    command("psr-cmt-attach", "DOMAIN", (1, 1), "measures a domain").refused(NO_PSR),
    command("psr-cmt-detach", "DOMAIN", (1, 1), "measures it no more").refused(NO_PSR),
    command("psr-cmt-show", "TYPE [DOMAIN]", (1, 2), "shows what was measured").refused(NO_PSR),
    command("psr-cat-set", "DOMAIN CBM", (2, 2), "sets a domain's part of a cache")
        .options(&[SOCKET, LEVEL, flag('c', "code", "for code"), flag('d', "data", "for data")])
        .refused(NO_PSR),
    command("psr-cat-show", "[DOMAIN]", (0, 1), "shows domains' parts of a cache")
        .options(&[LEVEL])
        .refused(NO_PSR),
    command("psr-mba-set", "DOMAIN THROTTLE", (2, 2), "slows a domain's memory accesses")
        .options(&[SOCKET])
        .refused(NO_PSR),
    command("psr-mba-show", "[DOMAIN]", (0, 1), "shows how domains are slowed").refused(NO_PSR),
];
