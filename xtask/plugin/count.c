/* A QEMU TCG plugin: counts the guest instructions that were executed, by what the address belongs to, and
 * writes the counts whenever a CPU executes the marker
 *
 *     nopl 0x4d4b0000+N(%rax)        bytes 0f 1f 80 NN NN 4b 4d
 *
 * one line each: "mark N cpu C firmware F hyp H kernel K user U cr3 L wrmsr W". Mark 65535 is the machine's end. L and W: how often
 * the hypervisor loaded CR3 and wrote an MSR.
 *
 * Arguments: out=FILE (required); hot=A-B also lists, at the first mark B after a mark A, the
 * translation blocks of the hypervisor and of kernels that ran in between: "hot ADDRESS RUNS INSTRUCTIONS". A = 0 is the machine's start.
 * pages=1 adds the blocks of user mode, and to each line the number of the machine page that the block begins in: code
 * of two kernels at one address lies in two pages.
 * stretch=A-B-C-D-E says behind each mark which was the longest stretch of the hypervisor's instructions on any CPU, since the last
 * mark, between two moments at which that CPU takes interrupts: "stretch LENGTH GUEST WAITED", and the blocks that ran in it as
 * "in ADDRESS RUNS INSTRUCTIONS". GUEST is the block from which the hypervisor was entered. The hypervisor takes
 * interrupts when it returns to a guest, by SYSRET or the IRET at address B (hexadecimal, as all), and when it halts. If
 * that IRET faults, it returns to nobody: the next stub to run is then that of exception 10 to 13, in the table of
 * stubs, 16 bytes each, at address A.
 * From C to D is the function in which the hypervisor waits for another CPU. What a CPU executes there does not count. What
 * the other CPUs execute of the hypervisor meanwhile does: WAITED is that part of LENGTH. So it counts neither how often a CPU looks
 * whether its wait is over, nor how long the emulator lets a CPU stand. All CPUs must be executed by one of QEMU's threads.
 * E is where the hypervisor has looked for interrupts and found none, or 0. A stretch begins anew there: what counts is what an interrupt waits for.
 *
 * The plugin interface (version 1) is declared by hand: Debian ships no header for it. */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
enum { CB_NO_REGISTERS = 0, INLINE_ADD_U64 = 0 };

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

/* What an address belongs to. The PV ABI keeps the first half of the upper addresses' first 16 slots for the
 * hypervisor. Everything before the first instruction of the upper half is the firmware and the loader. */
enum part { FIRMWARE, HYPERVISOR, KERNEL, USER, PARTS };
#define HYPERVISOR_START 0xffff800000000000u
#define HYPERVISOR_END   0xffff880000000000u

static uint64_t executed[PARTS], cr3_loads, msr_writes;
static int system_seen;
static FILE *out;

#define MAX_CPUS 8

/* Runs of one translation block. Blocks are kept for good: QEMU goes on adding to a counter whose address it
 * was given, and translates the same code again after a flush. */
struct block {
    struct block *next;
    uint64_t address, page, runs, runs_at_start;
    size_t instructions;
    /* Of the stretch that runs now on each CPU: which one that is, its runs in it, the next of its blocks. */
    struct { uint64_t stretch, runs; struct block *next; } now[MAX_CPUS];
};
#define BUCKETS 32768
static struct block *buckets[BUCKETS];
static long hot_from = -1, hot_to = -1;
static int hot_running, with_pages;
/* Where the host has the machine's memory. */
static uintptr_t memory_start;

static struct block *block_of(uint64_t address, uint64_t page, size_t instructions)
{
    struct block **bucket = &buckets[(address ^ address >> 15 ^ page) % BUCKETS];
    for (struct block *block = *bucket; block; block = block->next)
        if (block->address == address && block->page == page && block->instructions == instructions)
            return block;
    struct block *block = calloc(1, sizeof *block);
    if (!block)
        abort();
    block->address = address;
    block->page = page;
    block->instructions = instructions;
    block->next = *bucket;
    return *bucket = block;
}

static void hot_start(void)
{
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct block *block = buckets[i]; block; block = block->next)
            block->runs_at_start = block->runs;
    hot_running = 1;
}

static void hot_end(void)
{
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct block *block = buckets[i]; block; block = block->next)
            if (block->runs != block->runs_at_start) {
                fprintf(out, "hot %" PRIx64 " %" PRIu64 " %zu", block->address,
                        block->runs - block->runs_at_start, block->instructions);
                if (with_pages)
                    fprintf(out, " %" PRIu64, block->page);
                fputc('\n', out);
            }
    hot_running = 0;
}

/* Stretches of the hypervisor's, on each CPU. */
static uint64_t stub_table, guest_iret, wait_start, wait_end, none_waits;
static uint64_t stretch_number;
static struct cpu {
    /* Instructions of the hypervisor until `counted`, but for those of waits. */
    uint64_t own;
    /* What others executed during this CPU's waits, until the last one's end. */
    uint64_t waited;
    /* In how many nested waits the CPU is; the others' instructions, and its own, as the first began. */
    unsigned waits;
    uint64_t others_before, own_before;
    /* The stretch that runs now, and where the one before began. */
    uint64_t number, start, before, waited_at_start, waited_before, entered_from;
    struct block *blocks;
    int ended_by_iret, is_known, guest_ran;
} cpus[MAX_CPUS];
/* The CPU that executes, since the hypervisor's instruction `counted`. */
static unsigned executing;
static uint64_t counted;

/* The longest one since the last mark, and its blocks. */
static uint64_t longest, longest_from, longest_waited;
static size_t longest_blocks, longest_room;
static struct { uint64_t address, runs; size_t instructions; } *longest_list;

/* The state of the CPU that executes now. What was executed until here goes to the CPU that did. */
static struct cpu *now_on(unsigned cpu)
{
    if (cpu >= MAX_CPUS)
        abort();
    cpus[executing].own += executed[HYPERVISOR] - counted;
    counted = executed[HYPERVISOR];
    executing = cpu;
    return &cpus[cpu];
}

/* What the other CPUs have executed. */
static uint64_t of_others(const struct cpu *cpu)
{
    uint64_t sum = 0;
    for (const struct cpu *other = cpus; other < cpus + MAX_CPUS; other++)
        if (other != cpu)
            sum += other->waits ? other->own_before : other->own;
    return sum;
}

static void wait_begins(unsigned number, void *data)
{
    struct cpu *cpu = now_on(number);
    (void)data;
    if (cpu->waits++)
        return;
    cpu->own_before = cpu->own;
    cpu->others_before = of_others(cpu);
}

static void wait_ends(unsigned number, void *data)
{
    struct cpu *cpu = now_on(number);
    (void)data;
    if (!cpu->waits || --cpu->waits)
        return;
    cpu->own = cpu->own_before;
    cpu->waited += of_others(cpu) - cpu->others_before;
}

static void block_in_stretch(unsigned number, void *data)
{
    struct block *block = data;
    struct cpu *cpu = number == executing ? &cpus[number] : now_on(number);
    if (block->now[number].stretch != cpu->number) {
        block->now[number].stretch = cpu->number;
        block->now[number].runs = 0;
        block->now[number].next = cpu->blocks;
        cpu->blocks = block;
    }
    block->now[number].runs++;
}

static void guest_block(unsigned number, void *address)
{
    struct cpu *cpu = now_on(number);
    cpu->entered_from = (uint64_t)(uintptr_t)address;
    cpu->guest_ran = 1;
}

static void keep_longest(unsigned number, uint64_t length)
{
    longest = length;
    longest_from = cpus[number].entered_from;
    longest_waited = cpus[number].waited - cpus[number].waited_at_start;
    longest_blocks = 0;
    for (struct block *block = cpus[number].blocks; block; block = block->now[number].next) {
        if (longest_blocks == longest_room) {
            longest_room = longest_room ? 2 * longest_room : 1024;
            longest_list = realloc(longest_list, longest_room * sizeof *longest_list);
            if (!longest_list)
                abort();
        }
        longest_list[longest_blocks].address = block->address;
        longest_list[longest_blocks].runs = block->now[number].runs;
        longest_list[longest_blocks++].instructions = block->instructions;
    }
}

static void stretch_begins(struct cpu *cpu)
{
    cpu->before = cpu->start;
    cpu->waited_before = cpu->waited_at_start;
    cpu->start = cpu->own;
    cpu->waited_at_start = cpu->waited;
    cpu->number = ++stretch_number;
    cpu->blocks = NULL;
    cpu->guest_ran = 0;
    cpu->ended_by_iret = 0;
}

/* The hypervisor is about to take interrupts. */
static void stretch_ends(unsigned number, void *by_iret)
{
    struct cpu *cpu = now_on(number);
    uint64_t length = cpu->own - cpu->start + cpu->waited - cpu->waited_at_start;
    if (cpu->is_known && length > longest)
        keep_longest(number, length);
    /* The first one is the boot. */
    cpu->is_known = 1;
    stretch_begins(cpu);
    cpu->ended_by_iret = by_iret != NULL;
}

static void found_none(unsigned number, void *data)
{
    (void)data;
    stretch_begins(now_on(number));
}

/* An exception that may be the IRET's own: then nobody was returned to, and the stretch goes on. Its blocks until here
 * are not listed. */
static void fault_entered(unsigned number, void *data)
{
    struct cpu *cpu = now_on(number);
    (void)data;
    if (cpu->ended_by_iret && !cpu->guest_ran) {
        cpu->start = cpu->before;
        cpu->waited_at_start = cpu->waited_before;
    }
}

static void print_longest(void)
{
    fprintf(out, "stretch %" PRIu64 " %" PRIx64 " %" PRIu64 "\n", longest, longest_from, longest_waited);
    for (size_t i = 0; i < longest_blocks; i++)
        fprintf(out, "in %" PRIx64 " %" PRIu64 " %zu\n", longest_list[i].address, longest_list[i].runs,
                longest_list[i].instructions);
    longest = longest_blocks = longest_waited = 0;
}

/* Whether the hypervisor takes interrupts after this instruction of its own. */
static int opens_interrupts(const struct qemu_plugin_insn *instruction, uint64_t address)
{
    const uint8_t *bytes = qemu_plugin_insn_data(instruction);
    size_t size = qemu_plugin_insn_size(instruction);
    return address == guest_iret || (size == 1 && (bytes[0] == 0xf4 || bytes[0] == 0xfb)) || (size == 3 && !memcmp(bytes, "\x48\x0f\x07", 3));
}

/* MOV to CR3, with or without a REX prefix. */
static int loads_cr3(const struct qemu_plugin_insn *instruction)
{
    const uint8_t *bytes = qemu_plugin_insn_data(instruction);
    size_t size = qemu_plugin_insn_size(instruction);
    if (size == 4 && (bytes[0] & 0xf0) == 0x40)
        bytes++, size--;
    return size == 3 && !memcmp(bytes, "\x0f\x22", 2) && (bytes[2] >> 3 & 7) == 3;
}

static int writes_msr(const struct qemu_plugin_insn *instruction)
{
    return qemu_plugin_insn_size(instruction) == 2 && !memcmp(qemu_plugin_insn_data(instruction), "\x0f\x30", 2);
}

/* Whether the function of waits ends with the instruction: a return, or a jump to a function that returns in its place. */
static int ends_wait(const struct qemu_plugin_insn *instruction)
{
    const uint8_t *bytes = qemu_plugin_insn_data(instruction);
    size_t size = qemu_plugin_insn_size(instruction);
    int32_t offset;
    if (size == 1 && bytes[0] == 0xc3)
        return 1;
    if (size != 5 || bytes[0] != 0xe9)
        return 0;
    memcpy(&offset, bytes + 1, sizeof offset);
    uint64_t target = qemu_plugin_insn_vaddr(instruction) + size + (uint64_t)(int64_t)offset;
    return target < wait_start || target >= wait_end;
}

static enum part part_of(uint64_t address)
{
    if (address >= HYPERVISOR_START)
        system_seen = 1;
    if (!system_seen)
        return FIRMWARE;
    if (address < HYPERVISOR_START)
        return USER;
    return address < HYPERVISOR_END ? HYPERVISOR : KERNEL;
}

static void mark(unsigned cpu, void *number_as_pointer)
{
    long number = (long)(uintptr_t)number_as_pointer;
    fprintf(out, "mark %ld cpu %u firmware %" PRIu64 " hyp %" PRIu64 " kernel %" PRIu64 " user %" PRIu64 " cr3 %" PRIu64 " wrmsr %" PRIu64 "\n",
            number, cpu, executed[FIRMWARE], executed[HYPERVISOR], executed[KERNEL], executed[USER], cr3_loads, msr_writes);
    if (guest_iret)
        print_longest();
    if (hot_running && number == hot_to)
        hot_end();
    if (number == hot_from)
        hot_start();
    fflush(out);
}

/* The number of a marker instruction, or -1. */
static long marker(const struct qemu_plugin_insn *instruction)
{
    const uint8_t *bytes = qemu_plugin_insn_data(instruction);
    if (qemu_plugin_insn_size(instruction) != 7 || memcmp(bytes, "\x0f\x1f\x80", 3) || memcmp(bytes + 5, "\x4b\x4d", 2))
        return -1;
    return bytes[3] | bytes[4] << 8;
}

/* The number of the machine page that an instruction lies in; 0 where nobody asks. */
static uint64_t page_of(const struct qemu_plugin_insn *instruction, uint64_t address)
{
    if (!with_pages)
        return 0;
    uintptr_t there = (uintptr_t)qemu_plugin_insn_haddr(instruction);
    /* A loader's code above the first MiB runs without page tables: its addresses are the machine's. */
    if (!memory_start && !system_seen && address >= 0x100000 && address < 0x80000000u)
        memory_start = there - address;
    return (there - memory_start) >> 12;
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    size_t count = qemu_plugin_tb_n_insns(block);
    (void)id;
    /* Instruction by instruction: a block may be left in its middle by a fault. */
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint64_t address = qemu_plugin_insn_vaddr(instruction);
        enum part part = part_of(address);
        uint64_t page = i ? 0 : page_of(instruction, address);
        long number = marker(instruction);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, &executed[part], 1);
        if (part == HYPERVISOR && loads_cr3(instruction))
            qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, &cr3_loads, 1);
        if (part == HYPERVISOR && writes_msr(instruction))
            qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64, &msr_writes, 1);
        if (number >= 0)
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, mark, CB_NO_REGISTERS, (void *)(uintptr_t)number);
        if (guest_iret && part == HYPERVISOR) {
            uint64_t stub = address - stub_table;
            if (opens_interrupts(instruction, address))
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, stretch_ends, CB_NO_REGISTERS,
                                                       (void *)(uintptr_t)(address == guest_iret));
            if (stub % 16 == 0 && stub / 16 >= 10 && stub / 16 <= 13)
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, fault_entered, CB_NO_REGISTERS, NULL);
            if (address == none_waits)
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, found_none, CB_NO_REGISTERS, NULL);
            if (address == wait_start)
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, wait_begins, CB_NO_REGISTERS, NULL);
            if (address > wait_start && address < wait_end && ends_wait(instruction))
                qemu_plugin_register_vcpu_insn_exec_cb(instruction, wait_ends, CB_NO_REGISTERS, NULL);
        }
        if (guest_iret && i == 0 && part == HYPERVISOR)
            qemu_plugin_register_vcpu_tb_exec_cb(block, block_in_stretch, CB_NO_REGISTERS,
                                                 block_of(address, page, count));
        if (guest_iret && i == 0 && (part == KERNEL || part == USER))
            qemu_plugin_register_vcpu_tb_exec_cb(block, guest_block, CB_NO_REGISTERS, (void *)(uintptr_t)address);
        if (i == 0 && (part == HYPERVISOR || part == KERNEL || (part == USER && with_pages)) && hot_from >= 0)
            qemu_plugin_register_vcpu_insn_exec_inline(instruction, INLINE_ADD_U64,
                                                       &block_of(address, page, count)->runs, 1);
    }
}

static void finished(plugin_id id, void *data)
{
    (void)id;
    (void)data;
    mark(0, (void *)(uintptr_t)65535);
    fclose(out);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++) {
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "w");
        else if (sscanf(argv[i], "stretch=%" SCNx64 "-%" SCNx64 "-%" SCNx64 "-%" SCNx64 "-%" SCNx64, &stub_table,
                        &guest_iret, &wait_start, &wait_end, &none_waits) == 5)
            continue;
        else if (!strcmp(argv[i], "pages=1"))
            with_pages = 1;
        else if (sscanf(argv[i], "hot=%ld-%ld", &hot_from, &hot_to) != 2) {
            fprintf(stderr, "count: unknown argument %s\n", argv[i]);
            return -1;
        }
    }
    if (!out) {
        fprintf(stderr, "count: out=FILE is required and must be writable\n");
        return -1;
    }
    hot_running = hot_from == 0;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
